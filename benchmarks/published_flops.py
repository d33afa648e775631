"""Count the multiply-adds of each network for one video, with the published settings, and compare them with the published numbers of
GFLOPs.

    python -m benchmarks.published_flops

The multiply-adds are counted in the real modules. As in the publications, a multiply-add counts as one operation. The published numbers of
AdaFocusV2 include its auxiliary heads, which inference does not use; these heads take less than 0.1 % of the multiply-adds of a video.
"""

from dataclasses import dataclass, replace

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table

from agents.policies.networks import NetworkArchitecture, PolicyArchitecture, PolicyNetwork
from agents.policies.published_v2 import PublishedV2Architecture
from classifiers.classifier import Classifier
from classifiers.flops import VideoFlops, network_flops, video_flops
from classifiers.model_zoo import ARCHITECTURES


@dataclass(frozen=True)
class Family:
    """The published settings of one family.

    Attributes:
        architecture: name in `classifiers.model_zoo.ARCHITECTURES`.
        classes: K, number of classes.
        glances: number of frames that the glancer sees.
        patches: number of frames that the focuser sees.
        decisions: D, decisions per video.
        policy: architecture of the policy network, whose input is the stacked glance maps of one decision.
        grid: grid of the policy; None: continuous locations.
        published: published GFLOPs per video by patch size in pixels.
    """

    architecture: str
    classes: int
    glances: int
    patches: int
    decisions: int
    policy: NetworkArchitecture
    grid: int | None
    published: dict[int, float]


FAMILIES = {
    "ActivityNet": Family(
        "paper", 200, 16, 16, 16, PolicyArchitecture((1280, 7, 7)), 7, {96: 17.2, 128: 26.6, 160: 38.6, 192: 53.3}
    ),
    "Something": Family(
        "paper_tsm", 174, 8, 12, 1, PolicyArchitecture((10240, 7, 7), channels=64, batch_norm=True), None, {144: 23.5, 160: 27.5, 176: 33.7}
    ),
    "ActivityNet, V2": Family(
        "paper_v2", 200, 16, 16, 16, PublishedV2Architecture((1280, 7, 7)), None, {96: 17.6, 128: 27.0, 160: 39.0, 192: 53.6}
    ),
    "ActivityNet, V2, res50": Family(
        "paper_v2_res50", 200, 16, 16, 16, PublishedV2Architecture((2048, 3, 3)), None, {96: 24.8, 128: 34.1, 160: 46.1}
    ),
    "Something, V2": Family(
        "paper_v2_tsm", 174, 8, 12, 1, PublishedV2Architecture((10240, 7, 7), features=1024, hidden=512, memory=False), None,
        {128: 18.5, 144: 23.5, 160: 27.5, 176: 33.7},
    ),
}  # fmt: skip


def flops_of(family: Family, patch_size: int) -> VideoFlops:
    """Count the multiply-adds of one video."""
    architecture = replace(ARCHITECTURES[family.architecture], patch_size=patch_size)
    with torch.device("meta"):  # counts do not depend on weights, and initialisation takes seconds
        classifier = Classifier(architecture, [str(number) for number in range(family.classes)])
        policy = PolicyNetwork(family.policy, family.grid)
    classifier, policy = classifier.to_empty(device="cpu"), policy.to_empty(device="cpu")
    policy_step = network_flops(policy, 1, 1, *family.policy.map_shape)
    return video_flops(classifier, family.patches, family.glances, family.decisions, policy_step=policy_step)


def main() -> None:
    """Print the table."""
    figures = ("glancer", "policy", "focuser", "head", "sum", "published", "off by")
    table = Table(
        Column("family", no_wrap=True), Column("P", no_wrap=True), *(Column(each, justify="right", no_wrap=True) for each in figures),
        title="GFLOPs per video (a multiply-add counts as one)", box=box.SIMPLE, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for name, family in FAMILIES.items():
        for patch_size, published in family.published.items():
            flops = flops_of(family, patch_size)
            total = flops.total() / 1e9
            parts = [f"{value / 1e9:.2f}" for value in (flops.glancer, flops.policy, flops.focuser, flops.head)]
            table.add_row(name, str(patch_size), *parts, f"{total:.2f}", f"{published:.1f}", f"{total / published - 1:+.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
