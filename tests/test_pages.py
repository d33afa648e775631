"""Run the code blocks of the main pages as printed, in order and in one folder, on a few demo videos.

The folder has everything that a block needs: `video.mp4`, and `videos` with the class folders of twenty videos. For pages that begin with a
trained run, the folder also has that run, under its name and as `DIR`. Only sizes are changed: `SMALL` has the sizes of scripts, `SIZES`
those of commands. If two pages have the same command of `ONCE`, it is run only on the first page. docs/extend.md has a separate test,
`test_extend.py`.
"""

import contextlib
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TASK
from tiny_training import empty_plots

from adafocus_env import build
from adafocus_env.dataset_registry import DATASETS
from adafocus_env.demo.videos import TASKS, demo
from agents.__main__ import main as adafocus

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/quickstart.md", "docs/own_videos.md", "docs/predict.md", "docs/report.md")
NUMBERS = {"train_videos": 20, "val_videos": 4, "test_videos": 16}
SMALL = {r"learn\([\d_]+\)": "learn(2048)", r"num_envs=500": "num_envs=16", r"range\(500\)": "range(16)"}
STEPS = ["ppo.total_steps=2048"]
EPOCHS = [f"stages.{stage}.epochs=1" for stage in ("glancer", "focuser", "random_patches")]
SIZES = {
    "train_ppo": STEPS,
    "train": ["algo.total_steps=2048"],
    "train_stages": [*STEPS, *EPOCHS, "stages.finetune.epochs=1"],
}
"""Arguments that are added to a command."""
ONCE = {"train", "train_stages"}
"""Commands that no other one of a page builds on."""
NOT_RUN = re.compile(r"pip install|python -m (pytest|benchmarks|sphinx)")
"""Other tests and CI run these."""


def blocks(page):
    """Return the language and the content of every code block of a page, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def scripts(page):
    return [text for language, text in blocks(page) if language == "python"]


def small_demo(task, **arguments):
    appearance = TASKS[task] if isinstance(task, str) else task
    return demo(replace(appearance, **NUMBERS), val=arguments.get("val", 0.1))


@pytest.fixture(scope="module")
def small_tasks():
    """All demo tasks are small, and there are no plots of results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "demo", replace(DATASETS["demo"], build=lambda data: small_demo(data.task, val=data.val)))
        patch.setattr(build, "demo", small_demo)
        empty_plots(patch)
        yield


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, small_tasks):
    """A folder with the runs of two seeds."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for seed in (0, 1):
            run_command(["python", "-m", "agents.train_ppo", f"seed={seed}", f"run={root}/seed={seed}"], patch)
    return root


@pytest.fixture(scope="module")
def finished():
    """The commands that were run."""
    return set()


@pytest.fixture
def folder(tmp_path, small_tasks, monkeypatch):
    """Change to the folder for a page."""
    monkeypatch.chdir(tmp_path)
    data = small_demo("track", val=0.0)
    data.prepare(data.train)
    for video in data.train:
        path = tmp_path / "videos" / ("even", "odd")[video.label % 2] / video.path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(video.path, path)
    shutil.copy2(data.train[0].path, tmp_path / "video.mp4")
    yield tmp_path
    torch.use_deterministic_algorithms(False)


def commands(block):
    """Return the commands of a block as lists of words; `&&` separates commands."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(each, comments=True) for line in lines for each in line.split("&&") if shlex.split(each, comments=True)]


def run_command(words, monkeypatch):
    """Run `python -m agents.NAME …` or `adafocus …` in this process, with small sizes."""
    if NOT_RUN.match(" ".join(words)):
        return
    assert words[0] == "adafocus" or (words[:2] == ["python", "-m"] and words[2].startswith("agents.")), words
    name, *arguments = words[1:] if words[0] == "adafocus" else [words[2].removeprefix("agents."), *words[3:]]
    help_only = bool({"--help", "-h"} & {name, *arguments})
    sizes = [] if help_only else [*SIZES.get(name, [])]
    if {"algo=expected_pg", "algo=imitation"} & {*arguments}:  # which are set by the keys of PPO
        sizes = STEPS
    if name == "train_ppo" and "data=folder" in arguments:  # a classifier is trained first
        sizes += EPOCHS
    monkeypatch.setattr("sys.argv", ["adafocus", name, *arguments, *sizes])
    with contextlib.suppress(SystemExit) if help_only else contextlib.nullcontext():
        adafocus()


def run_script(text, page, names):
    for printed, small in SMALL.items():
        text = re.sub(printed, small, text)
    exec(compile(text, page, "exec"), names)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:'agents.* found in sys.modules:RuntimeWarning")  # the command is run in a process that has imported it
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, folder, finished, request, monkeypatch):
    if page in ("docs/predict.md", "docs/report.md"):  # which begin with a trained run
        sweep = shutil.copytree(request.getfixturevalue("sweep"), "runs/sweep")
        for copy in ("runs/train_ppo-demo-0", "DIR"):
            shutil.copytree(f"{sweep}/seed=0", copy)
    names = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            run_script(text, page, names)
        elif language == "bash":
            for words in commands(text):
                if not (ONCE & {word.removeprefix("agents.") for word in words} and tuple(words) in finished):
                    run_command(words, monkeypatch)
                    finished.add(tuple(words))


def test_all_of_them_are_found():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert len(blocks(page)) == text.count("\n```") // 2 > 0, page
        assert {language for language, _ in blocks(page)} <= {"bash", "python", "text"}, page


def test_the_first_script_runs(monkeypatch, clips, capsys):
    monkeypatch.setattr(build, "demo", lambda task: demo(TASK, val=0.0))
    run_script(scripts("README.md")[0], "README.md", {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 9 and printed[-1].endswith(("is classified correctly", "is classified wrongly"))
