"""Generate one page for each benchmark id from its arguments, the bundled classifier, docs/tasks.md and the stored scores."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

import classifiers
from adafocus_env import ARGUMENTS, FORMS, reference_scores
from adafocus_env.action import find_action
from adafocus_env.build import DEMO_FRAMES
from adafocus_env.demo.videos import TASKS, data_name
from adafocus_env.settings import EnvSettings

DOCS = Path(__file__).parents[1]
TABLE = {"hit_rate": "hits", "top1_first": "first look", "top1_anytime": "anytime", "top1": "top-1"}
SCORES = {"return": "mean return", "top1_anytime": "anytime", "top1": "top-1"}
EXPECTED = ("random", "saliency", "ppo", "expected_pg", "oracle")
"""Rows that readers expect in a table of scores. A page names those rows that have not been measured."""
WORDS = {
    "": "Actions are the cells of a grid.",
    "Continuous": "Actions are continuous locations.",
    "Skip": "Actions are the cells of a grid, and one that skips the patch; a step with a patch costs λ = {cost_weight}.",
}
TRAINING = {"": "", "Continuous": " env.action=continuous env.baseline=1", "Skip": " env.action=skip env.cost_weight={cost_weight}"}


def pages() -> dict[str, str]:
    """Return the pages as a dictionary from the path below docs/generated to the text."""
    tasks = [arguments["task"] for name, arguments in ARGUMENTS.items() if name.endswith("-v1") and "task" in arguments]
    ids = {(task, form): f"AdaFocus{task.title()}{form}-v1" for task in dict.fromkeys(tasks) for form in FORMS}
    found = {f"environments/{name}.md": _page(name, *key) for key, name in ids.items()}
    return {**found, "environments/index.md": _index(ids)}


def _index(ids: dict[tuple[str, str], str]) -> str:
    rows = [[f"[{name}]({name}.md)", task, WORDS[form].format(**FORMS[form])] for (task, form), name in ids.items()]
    return "\n".join([
        "# Environments\n",
        "The ids of the benchmark, for `gymnasium.make`. Each page has the videos, the spaces, the reward and the scores of one id.",
        "`AdaFocus-v1`, `AdaFocusContinuous-v1` and `AdaFocusSkip-v1` are those of the task track, and take any `task`.",
        "[Benchmark tasks](/tasks.md) explains the tasks, [Configuration](/generated/configuration.md#arguments-of-environments) and",
        "[the class](/generated/api.md#environments) the arguments.\n",
        _table(("id", "task", "actions"), rows),
        "```{toctree}\n:hidden:", *ids.values(), "```\n",
    ])  # fmt: skip


def _page(name: str, task: str, form: str) -> str:
    picture = next(path for path in (f"watch_{task}.gif", f"task_{task}.jpg") if (DOCS / path).exists())
    trained = picture.endswith(".gif")
    shown = "A trained policy follows the target." if trained else "Test videos, one per row; the boxes are the oracle's patches."
    words, training = (each[form].format(**FORMS[form]) for each in (WORDS, TRAINING))
    return "\n".join([
        f"# {name}\n",
        f"The benchmark task *{task}*: {_summary(task)}. {words}\n",
        f"![{shown}](/{picture})\n",
        f"*{shown}*\n",
        f"{_what(task)}\n",
        "```python",
        "import gymnasium as gym",
        "import adafocus_env  # registers the ids",
        "",
        f'env = gym.make("{name}")',
        f'envs = gym.make_vec(\n    "{name}", num_envs=64, vectorization_mode="vector_entry_point"\n)',
        "```\n",
        f"`python -m agents.train_ppo data.task={task}{training}` trains a policy on it.\n",
        "## Videos\n", *_videos(task), "",
        "## Actions\n",
        _table(("`action`", "space"), [[f"`{FORMS[form]['action']}`", f"`{_action(task, form).space}`"]]),
        "## Observations\n",
        "The default is `map`; `observation=` chooses another one.\n",
        _table(("`observation`", "space of one environment"), _observations(task)),
        "## Reward\n",
        _reward(form),
        "## Scores\n", *_scores(name, task, form),
    ])  # fmt: skip


def _reward(form: str) -> str:
    weight = FORMS[form].get("cost_weight")
    return "\n".join([
        "By default `random`: the confidence in the true class after the step, less its mean over random patches"
        + (f", less {weight} · the step's share of multiply-adds" if weight else "")
        + ".",
        "`reward=` takes the names in `adafocus_env.reward.REWARDS`; the training commands choose `standalone` unless actions skip.\n",
    ])  # fmt: skip


def _summary(task: str) -> str:
    """Return the sentence that states what must be learned in a task, from the table of ids in docs/tasks.md."""
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    match = re.search(rf"^\| `AdaFocus{task.title()}-v1`.*? \| (.*?) \|", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"docs/tasks.md has no row of AdaFocus{task.title()}-v1 in its table of ids")
    return match[1]


def _what(task: str) -> str:
    """Return the paragraph about a task in docs/tasks.md."""
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    match = re.search(rf"^\*\*{task}\.\*\* (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    if match is None:
        raise ValueError(f"docs/tasks.md has no paragraph that begins with **{task}.**")
    return match[1]


def _videos(task: str) -> Iterator[str]:
    about = TASKS[task]
    size, target, patch = (f"{side}×{side}" for side in (about.size, about.target, about.patch_size))
    yield f"- ten classes; {about.train_videos:,} training videos, of which a tenth is held out"
    yield f"- {about.val_videos} videos for validation (those that are held out, and further ones), {about.test_videos} for testing"
    yield f"- {about.length} frames of {size} pixels, of which a clip has {DEMO_FRAMES}: an episode has {DEMO_FRAMES} steps"
    yield f"- a target of {target} pixels among {about.lookalikes} look-alikes; patches have {patch}"


def _action(task: str, form: str):  # type: ignore[no-untyped-def]  # an `Action`
    about = TASKS[task]
    return find_action(FORMS[form]["action"])(EnvSettings().grid, about.size, about.patch_size)


def _observations(task: str) -> Iterable[list[str]]:
    classifier = classifiers.load(data_name(task), "cpu")
    side = classifier.architecture.glance_size
    (_, *map_shape), (_, length) = (each.shape for each in classifier.glance(torch.zeros(1, 3, side, side)))
    low, high = classifier.glancer.map_bounds
    yield ["`map`", f"`Box({low:g}, {high:g}, {tuple(map_shape)}, float32)`: the glance map"]
    yield ["`vector`", f"`Box(({length},), float32)`: the pooled glance map"]
    yield ["`pixels`", f"`Box(0, 255, (3, {side}, {side}), uint8)`: the frame as the glancer receives it"]
    yield ["`dict`", "`Dict`: glance map, progress, last patch, certainty of the scores, and state of the head"]
    yield ["`reference`", "`Box((2,), int64)`: indices of clip and step, for policies that read glances in place"]
    yield ["`reference_looks`", "`Box((3,), int64)`: clip, step, and the number of patches so far"]


def _scores(name: str, task: str, form: str) -> Iterator[str]:
    references = reference_scores(name)
    yield "On the first 2,000 test clips (`python -m benchmarks.task_scores`); accuracies in percent, returns with the reward `random`.\n"
    yield _table(
        ("policy", *SCORES.values()),
        [[policy, f"{each['return']:.2f}", *(f"{100 * each[key]:.1f}" for key in list(SCORES)[1:])] for policy, each in references.items()],
    )
    yield "Rules, references and learners: mean and, in parentheses, worst seed. [Leaderboard](/leaderboard.md) explains the columns."
    grid = f"AdaFocus{task.title()}-v1"
    yield f"They belong to [{grid}]({grid}.md): the same videos and classifier, with the cells of a grid as actions.\n" if form else ""
    board = json.loads((DOCS / "leaderboard.json").read_text(encoding="utf-8"))[task]
    ordered = sorted(board.items(), key=lambda item: -float(np.mean(item[1]["top1_anytime"])))
    rows = [[each, str(len(row["top1"])), *(_cell(row.get(key)) for key in TABLE)] for each, row in ordered]
    yield _table(("policy", "seeds", *TABLE.values()), rows)
    if missing := [each for each in EXPECTED if each not in board]:
        yield f"Not measured on this task: {', '.join(missing)}."


def _cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    return f"{100 * np.mean(values):.1f}" + (f" ({100 * min(values):.1f})" if len(values) > 1 else "")


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = list(headings)
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *map(list, rows)]) + "\n"
