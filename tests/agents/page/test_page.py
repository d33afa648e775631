"""The page about finished runs, as text and in Chromium."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from chromium import PROGRAM, WIDTHS, Chromium, save_screenshots
from tiny_training import SETTINGS, patch_demo, tiny_networks

from agents import report, train_ppo
from agents.config.command import compose_config
from agents.config.settings import Report, TrainPPO
from agents.page import page
from agents.page.finished import read_runs
from agents.runs.predictions import Predictions
from agents.runs.report import ORDER
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

LARGEST = 5_000_000  # bytes


@pytest.fixture(scope="module", autouse=True)
def demo_videos(clips):
    """Reduce the data set `demo` to a few videos, and restore PyTorch's settings afterwards."""
    with pytest.MonkeyPatch.context() as patch, tiny_networks():
        patch_demo(patch)
        yield


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return a folder with two runs that differ in the seed."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        settings = ["data=demo", *SETTINGS[1:], f"seed={seed}", f"run={root / f'seed={seed}'}"]
        train_ppo.main(compose_config(TrainPPO, "train_ppo", settings))
    return root


@pytest.fixture
def copied(sweep, tmp_path):
    """Return a copy of the sweep that a test may change."""
    return Path(shutil.copytree(sweep, tmp_path / "sweep"))


def made(run, out, **others):
    """Return the text of the page."""
    report.main(Report(run=str(run), out=str(out), **others))
    return Path(out).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(sweep, tmp_path_factory):
    """Return the page of one run and the page of both runs."""
    folder = tmp_path_factory.mktemp("pages")
    made(sweep / "seed=0", folder / "one.html")
    made(sweep / "seed=*", folder / "both.html")
    return folder / "one.html", folder / "both.html"


# The text


def test_the_page_has_all_sections_and_nothing_from_elsewhere(pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert path.stat().st_size <= LARGEST
        assert re.findall(r'<section id="(\w+)"', text) == ["verdict", "policies", "steps", "learning", "maps", "classes", "clips", "setup"]
        assert re.search(r'class="headline">The learned policy (gains|loses|cannot be distinguished)', text)
        linked = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
        assert linked and all(each.startswith(("data:", "#")) for each in linked)
        assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img [^>]*>", text))
        assert "<script" not in text and not re.search(r"url\((?!#)", text)


def test_the_numbers_are_those_of_the_result(pages, sweep):
    measured = RunDir(sweep / "seed=0").result()["policies"]
    row = re.search(r'<tr class="best"><th scope="row">learned</th>(.*?)</tr>', pages[0].read_text(), re.DOTALL)[1]
    gained, *cells = re.findall(r"<td>(.*?)</td>", row)
    learned = measured["learned"]
    expected = [f"{100 * learned[key]:.1f}" for key in ("top1_first", "top1_anytime", "top1", "hit_rate")]
    assert cells == [*expected, f"{learned['gflops']:.4f}"]
    points = 100 * (learned["top1"] - measured["random"]["top1"])
    assert re.match(rf"{'−' if points < 0 else '[+]'}{abs(points):.0f}(\.\d)? ± ", gained)


def test_the_same_run_gives_the_same_bytes(pages, sweep, tmp_path):
    assert made(sweep / "seed=0", tmp_path / "again.html") == pages[0].read_text(encoding="utf-8")


def test_several_runs_are_summed_up_over_seeds(pages):
    text = pages[1].read_text(encoding="utf-8")
    assert "seeds 0, 1" in text and "confidence interval of the mean over 2 seeds" in text
    rows = re.search(r'<table aria-labelledby="of-runs">(.*?)</table>', text, re.DOTALL)[1]
    assert re.findall(r'<tr><th scope="row">(\d)</th>', rows) == ["0", "1"]


def test_the_page_lies_in_the_run_folder_or_beside_several(copied, capsys):
    report.main(Report(run=str(copied / "seed=0"), clips=0))
    report.main(Report(run=str(copied / "seed=*"), clips=0))
    assert (copied / "seed=0" / "report.html").is_file() and (copied / "report.html").is_file()
    assert re.search(rf"saved to {copied / 'report.html'}: 0\.\d MB", " ".join(capsys.readouterr().out.split()))


def test_without_clips_no_video_is_read(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "build_split", lambda *args, **kwargs: pytest.fail("read"))
    text = made(sweep / "seed=0", tmp_path / "page.html", clips=0)
    assert 'id="clips"' not in text and "the target</strong>" not in text and "all clips</strong>" in text


def test_the_page_names_the_commands_that_use_the_run(pages, sweep):
    for path in pages:
        commands = re.search(r'<pre tabindex="0"><code>(.*?)</code>', path.read_text(encoding="utf-8"), re.DOTALL)[1]
        assert f"python -m agents.predict run={sweep}/seed=0 source=VIDEO\n" in commands
        assert f"python -m agents.watch run={sweep}/seed=0\n" in commands


def test_names_are_escaped(copied, tmp_path):
    run = copied / "seed=0"
    card = run / "checkpoints" / "classifier" / "card.json"
    changed(card, classes=["<b>é</b>", *json.loads(card.read_text())["classes"][1:]])
    table = (run / "predictions.csv").read_text(encoding="utf-8")
    (run / "predictions.csv").write_text(re.sub(r"(?<=,)0(?=,)", "<b>é</b>", table), encoding="utf-8")
    text = made(run, tmp_path / "page.html", clips=0)
    assert "<b>é" not in text and '<th scope="row">&lt;b&gt;é&lt;/b&gt;</th>' in text


def test_the_confusion_matrix_counts_predictions_in_the_clips_of_a_class(sweep, tmp_path):
    runs = read_runs(str(sweep / "seed=*"))
    found = page._confusion(runs)
    assert found["names"] == list(runs[0].card.classes) and found["complete"]
    label, guess, times = found["mistakes"][0]
    pairs = [pair for run in runs for pair in zip(run.predictions.column("label"), run.predictions.column("prediction"), strict=True)]
    assert times == pairs.count((label, guess)) / 2
    row = found["names"].index(label)
    assert found["shares"][row].sum() == pytest.approx(100)
    assert found["shares"][row, found["names"].index(guess)] == pytest.approx(200 * times / sum(each == label for each, _ in pairs))


def test_a_run_of_an_earlier_version_is_evaluated_once_more(copied, sweep, tmp_path, pages):
    (copied / "seed=0" / "predictions.csv").unlink()
    made(copied / "seed=0", tmp_path / "page.html", clips=0)
    assert (copied / "seed=0" / "predictions.csv").read_bytes() == (sweep / "seed=0" / "predictions.csv").read_bytes()


def test_wins_and_losses_are_what_one_of_the_two_gets_right(sweep, clips, monkeypatch):
    run = read_runs(str(sweep / "seed=0"))[0]
    rights = {"learned": [1, 1, 0, 0], "random": [0, 1, 1, 0]}
    confidences = {"learned": [0.9, 0.9, 0.1, 0.5], "random": [0.2, 0.1, 0.8, 0.1]}
    monkeypatch.setattr(Predictions, "correct", lambda self, policy="learned": np.array(rights[policy]))
    monkeypatch.setattr(Predictions, "confidence", lambda self, policy="learned": np.array(confidences[policy]))
    wins, losses = (page._clips(run, clips, count) for count in (3, -3))
    assert [[each["file"] for each in found] for found in (wins, losses)] == [[clips.names[0]], [clips.names[2]]]
    assert (wins[0]["learned"][1], wins[0]["random"][1]) == (pytest.approx(90), pytest.approx(20))
    assert page._clips(run, None, 3) == []


def test_every_policy_of_the_table_is_explained():
    assert set(page.POLICIES) == set(ORDER)


# What is refused


def changed(file, **values):
    """Change values in a YAML or JSON file; ``a__b`` is the value of ``a.b``, and None removes it."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key, value in values.items():
        *groups, name = key.split("__")
        owner = content
        for group in groups:
            owner = owner[group]
        if value is None:
            del owner[name]
        else:
            owner[name] = value
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("run", "change", "message"),
    [
        ("none", None, r"run=.*none does not exist; give the folder of a finished run, or a pattern such as 'runs/sweep/seed=\*' \("),
        ("seed=7*", None, r"run=.*seed=7\* does not exist; give the folder"),
        ("seed=0/checkpoints", None, "seed=0/checkpoints is not a run directory: it has no config.yaml"),
        (
            "seed=0", lambda run: (run / "result.json").unlink(),
            r"run=.*seed=0 is not finished: start its command again to finish it, or use its best policy so far: "
            r"python -m agents\.predict source=VIDEO classifier=demo policy=.*seed=0/checkpoints/best$",
        ),
        (
            "seed=*", lambda run: (run / "result.json").unlink() or shutil.rmtree(run / "checkpoints" / "best"),
            r"run=.*seed=0 is not finished: start its command again to finish it; it has no policy yet$",
        ),
        ("seed=0", lambda run: (run / "result.json").write_text("{}"), r"run=.*seed=0 cannot be read: KeyError\('policies'\); choose"),
        ("seed=0", lambda run: changed(run / "result.json", policies__learned=None), r"seed=0 has no learned policy; choose a run of"),
        ("seed=0", lambda run: changed(run / "config.yaml", plugin="mine"), r"seed=0 was made with plugin=mine, .*: add plugin=mine$"),
        (
            "seed=*", lambda run: changed(run / "config.yaml", ppo__gamma=0.9, env__grid=5),
            r"runs must differ only in the seed, got other values of env\.grid, ppo\.gamma in .*seed=1; make a page for each$",
        ),
        ("seed=*", lambda run: changed(run / "config.yaml", seed=1), r"seed=\*: runs must differ in the seed, got the seeds \[1, 1\];"),
        (
            "seed=*", lambda run: (run / "predictions.csv").write_text((run / "predictions.csv").read_text().replace(".mp4", ".avi")),
            r"runs must have the same test clips, got data=demo in .*seed=0 and data=demo in .*seed=1; make a page for each data set$",
        ),
        ("seed=0", lambda run: (run / "predictions.csv").write_text(""), r"predictions\.csv must have rows with the columns"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_used_is_refused(copied, run, change, message):
    if change:
        change(copied / "seed=0")
    with pytest.raises(InputError, match=message):
        report.main(Report(run=str(copied / run), clips=0))
    assert not list(copied.rglob("report.html"))


def test_a_page_that_exists_stays_without_force(copied):
    out = copied / "seed=0" / "report.html"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"out=.*seed=0/report\.html exists; force=true replaces it, or choose another file"):
        report.main(Report(run=str(copied / "seed=0"), clips=0))
    assert out.read_text() == "mine"
    report.main(Report(run=str(copied / "seed=0"), clips=0, force=True))
    assert "The learned policy" in out.read_text()


def test_missing_and_other_videos_are_refused_with_a_way_out(copied, tmp_path, monkeypatch):
    run = copied / "seed=0"
    table = (run / "predictions.csv").read_text().replace(".mp4", ".avi")
    (run / "predictions.csv").write_text(table)
    with pytest.raises(InputError, match=r"data=demo must have the test videos that .*seed=0 was evaluated on, got others; .*: clips=0"):
        made(run, tmp_path / "page.html")
    changed(run / "config.yaml", data__name="folder", data__root=str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"gone.*; or make a page without videos: clips=0$"):
        made(run, tmp_path / "page.html")


# In Chromium


@pytest.fixture(scope="module")
def tab():
    if PROGRAM is None:
        assert not os.environ.get("CI"), "the page must be tested in CI: install chromium"
        pytest.skip("chromium is not installed")
    with Chromium() as opened:
        yield opened


STYLE_OF = "getComputedStyle(document.querySelector('{}')).{}"
BEYOND = """[...document.querySelectorAll("body *")].filter(each => !each.closest(".scroll, pre, svg")
    && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"""
UNREADABLE = """[...document.querySelectorAll("svg text, p, li, td, th, dd, dt, figcaption, code")].filter(each =>
    each.getBoundingClientRect().height > 0 && each.getBoundingClientRect().height < 8).map(each => each.textContent.slice(0, 80))"""
LOADED = """Promise.all([...document.images].map(each => each.decode()))
    .then(() => [...document.images].every(each => each.naturalWidth >= 96))"""


@pytest.mark.skipif(sys.platform != "linux", reason="the debugging pipe is that of Linux")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("number", [0, 1])
def test_the_page_in_a_browser(tab, pages, number, width):
    tab.open(pages[number], width=width)
    assert tab.requests() == [pages[number].as_uri()] and tab.messages() == []
    assert tab.evaluate("document.title") == "AdaFocus report: demo"
    assert re.match("The learned policy (gains|loses|cannot)", tab.evaluate("document.querySelector('.headline').innerText"))
    assert tab.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert (tab.evaluate(BEYOND), tab.evaluate(UNREADABLE)) == ([], [])
    assert tab.evaluate(LOADED) is True and tab.evaluate("document.querySelectorAll('figure.chart svg').length") == 4
    assert tab.evaluate("document.querySelectorAll('#maps .overall figure').length") == 2, "all clips and the target"
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(sys.platform != "linux", reason="the debugging pipe is that of Linux")
def test_the_page_follows_the_colour_scheme(tab, pages, tmp_path):
    colours = []
    for dark in (False, True):
        tab.open(pages[0], width=390, dark=dark)
        colours.append([tab.evaluate(STYLE_OF.format(*each)) for each in (("body", "backgroundColor"), ("svg text", "fill"))])
    assert colours == [["rgb(246, 247, 248)", "rgb(28, 36, 41)"], ["rgb(20, 24, 27)", "rgb(230, 234, 236)"]]
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    save_screenshots(tab, pages[1], folder)
    assert {each.name for each in folder.glob("both-*.png")} == {f"both-{w}{dark}.png" for w in WIDTHS for dark in ("", "-dark")}
