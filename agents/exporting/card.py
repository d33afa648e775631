"""The Markdown card of an export, with a description, results, the origin, the intended use, and how to load the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from agents.evaluation.metrics import Metric, table_columns
from agents.exporting.modules import Counts
from agents.exporting.trained import Trained
from agents.policies.networks import PolicyNetwork
from agents.runs.report import ORDER
from classifiers.errors import shortened
from classifiers.flops import video_flops

README = "README.md"
MAX_CLASSES = 100  # maximum number of classes that the card lists


def card_text(trained: Trained, format: str, **more: Any) -> str:
    """Return the text of the card.

    Args:
        trained: The classifier and its policy.
        format: ``folder`` or ``onnx``.
        more: Further variables of the template, which depend on the format.
    """
    classifier, policy, result = trained.classifier, trained.policy, trained.result
    counts = Counts.of(classifier, policy)
    flops = video_flops(
        classifier, counts.frames, counts.glances, counts.decisions, skipped=trained.skipped, policy_step=policy.step_macs
    )
    columns = table_columns(result["policies"].values(), result.get("metric", "top1")) if result.get("policies") else {}
    data = "not known" if trained.card.data is None else f"`{trained.card.data}`"
    plugin = trained.plugin
    return _TEMPLATE.render(
        trained=trained, format=format, sizes=classifier.architecture, policy=policy, counts=counts, actions=_actions(policy),
        parameters=sum(each.numel() for network in (classifier, policy) for each in network.parameters()), gflops=flops.total() / 1e9,
        classes=shortened(classifier.classes, MAX_CLASSES), result=result, columns=["policy", *(each.heading for each in columns.values())],
        rows=list(_rows(result, columns)), metrics={**trained.card.metrics, **trained.about.get("metrics", {})}, commands=trained.commands,
        data=data, synthetic=str(trained.card.data).startswith("demo"), plugin=plugin,
        with_plugin=f" plugin={plugin}" if plugin else "", **more,
    )  # fmt: skip


_LOADER = PackageLoader("agents.exporting", ".")
_TEMPLATE = Environment(  # noqa: S701  # the card is Markdown, in which HTML's escapes would be shown
    loader=_LOADER, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
).get_template("card.md")


def _actions(policy: PolicyNetwork) -> str:
    where = "continuous locations" if policy.grid is None else f"cells of a {policy.grid} × {policy.grid} grid"
    return f"{where}; skips a frame where P(skip) is {policy.keep_threshold:.3g} or more" if policy.skips else where


def _rows(result: Mapping[str, Any], columns: Mapping[str, Metric]) -> Iterator[list[str]]:
    """Yield the rows of the table of results. Each row begins with the name of the policy."""
    for name in (each for each in ORDER if columns and each in result["policies"]):
        measured = result["policies"][name]
        yield [f"`{name}`", *(_cell(measured, key, metric) for key, metric in columns.items())]


def _cell(measured: Mapping[str, Any], key: str, metric: Metric) -> str:
    """Return a value and, if there is one, its confidence interval as text."""
    if key not in measured:
        return "–"
    bounds = measured.get(f"{key}_interval")
    between = f" [{', '.join(format(each, metric.format) for each in bounds)}]" if bounds else ""
    return f"{format(measured[key], metric.format)}{between}"
