"""What a video costs in the published settings, part by part, beside the published figures.

    python -m benchmarks.published_flops

Counted on the real modules. A multiply-add counts as one, as in the publication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from agents.config.arguments import run_command
from agents.policies.networks import GlanceActorCritic, PolicyArchitecture
from classifiers.classifier import Classifier
from classifiers.flops import classifier_cost, multiply_adds
from classifiers.model_zoo import ARCHITECTURES


@dataclass(frozen=True)
class Arguments:
    """The command has no keys."""


@dataclass(frozen=True)
class Family:
    """The published settings of one family.

    Attributes:
        architecture: name in `classifiers.model_zoo.ARCHITECTURES`.
        classes: K.
        glances: frames of the glancer.
        patches: frames of the focuser.
        decisions: D.
        policy: the policy's network; its maps are those of one decision, stacked.
        grid: of the policy; None: continuous.
        published: patch size in pixels → GFLOPs per video.
    """

    architecture: str
    classes: int
    glances: int
    patches: int
    decisions: int
    policy: PolicyArchitecture
    grid: int | None
    published: dict[int, float]


FAMILIES = {
    "ActivityNet": Family(
        "paper", 200, 16, 16, 16, PolicyArchitecture((1280, 7, 7)), 7, {96: 17.2, 128: 26.6, 160: 38.6, 192: 53.3}
    ),
    "Something": Family(
        "paper_tsm", 174, 8, 12, 1, PolicyArchitecture((10240, 7, 7), channels=64, batch_norm=True), None, {144: 23.5, 160: 27.5, 176: 33.7}
    ),
}


def parts(family: Family, patch_size: int) -> dict[str, int]:
    """Multiply-adds of one video: glancer, policy, focuser and head."""
    architecture = replace(ARCHITECTURES[family.architecture], patch_size=patch_size)
    with torch.device("meta"):  # costs do not depend on weights, and random ones take seconds
        classifier = Classifier(architecture, [str(number) for number in range(family.classes)])
        policy = GlanceActorCritic(family.policy, family.grid)
    cost = classifier_cost(classifier.to_empty(device="cpu"))
    policy = policy.to_empty(device="cpu").eval()
    one = multiply_adds(lambda: policy(torch.zeros(1, 1, *family.policy.map_shape)))
    return {
        "glancer": family.glances * cost.glance,
        "policy": family.decisions * one,
        "focuser": family.patches * cost.focus,
        "head": family.patches * cost.head,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    run_command(_command, Arguments, __doc__, arguments)


def _command(given: Arguments) -> int:
    """Prints the table."""
    table = Table(title="GFLOPs per video (a multiply-add as one)", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("family", "P"):
        table.add_column(heading, no_wrap=True)
    for heading in ("glancer", "policy", "focuser", "head", "sum", "published", "off by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, family in FAMILIES.items():
        for patch_size, published in family.published.items():
            counted = parts(family, patch_size)
            total = sum(counted.values()) / 1e9
            figures = [f"{value / 1e9:.2f}" for value in counted.values()]
            table.add_row(name, str(patch_size), *figures, f"{total:.2f}", f"{published:.1f}", f"{total / published - 1:+.1%}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    main()
