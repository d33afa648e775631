"""Episodes of a run or an id as moving pictures in a window, a GIF or an MP4 file."""

import json
import re

import av
import numpy as np
import pytest
from conftest import TASK, random_classifier, slow_except
from PIL import Image
from predictions import make_run, one_cell
from tiny_training import patch_demo

from adafocus_env.build import open_clips
from adafocus_env.clips import store
from adafocus_env.demo.videos import CLASSES, demo
from adafocus_env.env import AdaFocusEnv
from agents.config.command import run_command
from agents.config.effect import check_effect
from agents.config.settings import Watch
from agents.policies.networks import PolicyArchitecture, PolicyNetwork, save_policy
from agents.watch import main
from agents.watching import output, pictures, run
from agents.watching.episodes import Episode
from classifiers import checkpoint
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
SIDE, PANEL = 288, 288 + pictures.STRIP


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", config="env:\n  grid: 7\n")


@pytest.fixture
def call(finished, clips, capsys, monkeypatch, tmp_path):
    """Return a function that runs the command and returns its status and output, on one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "has_display", lambda: False)
    patch_demo(monkeypatch)

    def call(*arguments, run=f"run={finished}"):
        status = 0
        try:
            run_command(main, Watch, "watch", arguments=[*filter(None, [run]), "device=cpu", *arguments])
        except SystemExit as ended:
            status = ended.code
        return status, " ".join("".join(capsys.readouterr()).split())

    return call


def opened(path):
    """Return the pictures of a GIF and their durations in milliseconds."""
    with Image.open(path) as picture:
        shown = []
        for number in range(picture.n_frames):
            picture.seek(number)
            shown.append((np.asarray(picture.convert("RGB")), picture.info["duration"]))
        assert picture.info["loop"] == 0
        return shown


def test_a_run_becomes_a_gif_that_loops(call, tmp_path):
    status, printed = call("out=a.gif", "episodes=2")
    assert status == 0 and re.search(r"learned policy: \d of 2 clips right, \d of \d frames? with the target hit", printed)
    assert "saved to a.gif: 4 pictures" in printed
    shown = opened(tmp_path / "a.gif")
    assert [duration for _, duration in shown] == [330, 330, 330, 1330]
    height, width = pictures.HEADING + PANEL + pictures.GAP, 2 * (SIDE + pictures.GAP) + pictures.GAP
    assert {picture.shape for picture, _ in shown} == {(height, width, 3)}
    assert not np.array_equal(shown[0][0], shown[1][0])


def test_episodes_follow_in_sequence_and_in_rows(call, tmp_path):
    assert call("out=a.gif", "episodes=3", "at_once=2", "side=192", "fps=10")[0] == 0
    shown = opened(tmp_path / "a.gif")
    assert [duration for _, duration in shown] == [100, 100, 100, 400] * 2
    right = shown[4][0][:, -192 - pictures.GAP :]
    assert np.abs(right.astype(int) - pictures.BACKGROUND).max() < 12, "the second half of the last two is empty"
    episode = Episode("a", "a", np.zeros((1, 96, 96, 3), np.uint8), np.array([[0.0, 0, 24, 24]]), np.ones(1), ("a",), (None,), 24)
    [(picture, last)] = pictures.moments([episode] * 5, "five", at_once=5, side=192)
    assert last and picture.shape == (pictures.HEADING + 2 * (192 + pictures.STRIP + pictures.GAP), 3 * 204 + 12, 3)


def test_an_mp4_file_lasts_as_long_as_the_gif(call, tmp_path):
    assert call("out=a.mp4", "clips=[3]", "fps=4")[0] == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.25, 0.5, 0.75, 1.75], abs=1e-3)


def test_without_a_display_the_file_is_named_and_with_one_there_is_none(call, finished, tmp_path, monkeypatch):
    status, printed = call("clips=[0]", "force=true")
    assert status == 0 and f"(pip install PyQt6): {finished}/watch.gif is written in place of a window" in printed
    (finished / "watch.gif").unlink()
    shown = []
    monkeypatch.setattr(run, "has_display", lambda: True)
    monkeypatch.setattr(run, "show", lambda *given: shown.append(given))
    assert call("clips=[0]")[0] == 0 and not (finished / "watch.gif").exists()
    [(drawn, seconds, title)] = shown
    assert len(drawn) == len(seconds) == 4 and title == f"{finished}: learned policy"


@pytest.mark.parametrize("backend", ["agg", "tkagg"])
def test_a_backend_without_windows_is_no_display(monkeypatch, backend):
    from matplotlib import pyplot

    def fail(*given, **options):
        raise ImportError("Cannot load backend 'TkAgg' which requires the 'tk' interactive framework, as 'headless' is currently running")

    if backend == "tkagg":
        monkeypatch.setattr(pyplot, "figure", fail)
    assert not output.has_display()


def test_a_backend_with_windows_is_a_display(monkeypatch):
    from matplotlib import pyplot

    figure = pyplot.figure()
    window = type("Window", (type(figure.canvas),), {"required_interactive_framework": "qt"})
    window(figure)  # becomes the canvas of the figure, until the figure is closed
    monkeypatch.setattr(pyplot, "figure", lambda: figure)
    assert output.has_display()


def test_a_window_plays_the_pictures_again_and_again(monkeypatch):
    from matplotlib import animation, pyplot

    made = []
    monkeypatch.setattr(animation, "FuncAnimation", lambda figure, draw, order, **options: made.append((figure, draw, order, options)))
    monkeypatch.setattr(pyplot, "show", lambda: made.append("shown"))
    drawn = [np.full((20, 30, 3), level, np.uint8) for level in (0, 100, 200)]
    output.show(drawn, [0.25, 0.25, 1.0], "title")
    (figure, draw, order, options), shown = made
    assert shown == "shown" and order == [0, 1, 2, 2, 2, 2] and options["interval"] == 250
    draw(1)
    assert (figure.axes[0].images[0].get_array() == 100).all() and figure.get_size_inches().tolist() == [0.3, 0.2]
    pyplot.close(figure)


def test_a_file_that_exists_asks_for_force(call, tmp_path):
    (tmp_path / "a.gif").touch()
    status, printed = call("out=a.gif", "clips=[0]")
    assert status == 2 and "out=a.gif exists; force=true replaces it, or choose another file" in printed
    assert call("out=a.gif", "clips=[0]", "force=true")[0] == 0 and (tmp_path / "a.gif").stat().st_size > 1000


def test_an_encoder_that_is_missing_is_named(call, monkeypatch):
    monkeypatch.setattr("agents.prediction.video.CODECS", ("none",))
    status, printed = call("out=a.mp4", "clips=[0]")
    assert status == 2 and "PyAV has no encoder for MP4 files (none); install the wheels of av, or use out=FILE.gif" in printed


def test_an_unfinished_run_offers_its_best_policy(call, tmp_path):
    unfinished = make_run(tmp_path / "unfinished", finished=False)
    status, printed = call(run=f"run={unfinished}")
    assert status == 2 and f"use its best policy so far: python -m agents.predict source=VIDEO classifier={unfinished}" in printed
    assert f"policy={unfinished}/checkpoints/best" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run="], "give run=DIR or id=NAME, such as id=AdaFocus-v1"),
        (["id=AdaFocus-v1"], "give run=DIR or id=NAME"),
        (["run=none"], "run=none is not the folder of a run (python -m agents.list_runs lists them); give another"),
        (["out=a.png"], "out must end in .gif or .mp4, got a.png"),
        (["episodes=9"], "episodes must be at most 4, the clips to choose from, got 9"),
        (["clips=[4]"], "clips must be numbers of test clips from 0 to 3, got [4]"),
        (["clips=[]"], "clips must be numbers of test clips from 0 to 3, got []"),
        (["policy=saliancy"], "policy=saliancy is not known and not the folder of a policy; did you mean 'saliency'? choose one of"),
        (["policy=/"], "policy=/ is not known and not the folder of a policy"),
        (["run=", "id=AdaFocus-v2"], "id='AdaFocus-v2' is not known; did you mean 'AdaFocus-v1'?"),
    ],
)
def test_what_cannot_be_watched_is_named(call, arguments, message):
    status, printed = call(*arguments)
    assert status == 2 and message in printed


def test_classes_that_changed_are_named(call, tmp_path):
    run = make_run(tmp_path / "changed", config="env:\n  grid: 7\n")
    card = run / "checkpoints" / "classifier" / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "classes": list("abcdefghij")}))
    status, printed = call(run=f"run={run}")
    assert status == 2 and "was trained on 10 classes (a, b, c, d, e, …); the data set demo has 10 classes (0, 1, 2, 3, 4, …)" in printed


def test_a_policy_that_does_not_fit_is_refused(call, tmp_path):
    save_policy(PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=1, features=1, hidden=1), 3), tmp_path / "other", {})
    status, printed = call("policy=other")
    assert status == 2 and "the policy chooses cells of a 3×3 grid (env.grid=3), the environment offers cells of a 7×7 grid" in printed


def test_the_number_of_episodes_has_no_effect_beside_clips():
    with pytest.raises(InputError, match=r"episodes=3 has no effect: clips=\[1\] determines the clips; leave one of them out"):
        check_effect(Watch(run="DIR", clips=[1]), {"episodes": "episodes=3"})


@pytest.mark.parametrize("policy", slow_except(["frame_difference"], ["random", "frame_difference", "oracle", "greedy_oracle"]))
def test_baselines_play(call, policy):
    status, printed = call(f"policy={policy}", "out=a.gif")
    assert status == 0 and f"{policy.replace('_', ' ')}: " in printed
    if policy == "oracle":
        hit, seen = re.search(r"(\d+) of (\d+) frames with the target hit", printed).groups()
        assert hit == seen == "16"


def test_frames_that_are_skipped_have_no_patch(call, clips, tmp_path):
    skipping = make_run(tmp_path / "skipping", policy=one_cell(3, skips=True), config="env:\n  action: skip\n")
    assert call("out=a.gif", "clips=[0]", run=f"run={skipping}")[0] == 0
    first, second = (picture for picture, _ in opened(tmp_path / "a.gif")[:2])
    inside = np.s_[pictures.HEADING + SIDE + 20 : pictures.HEADING + SIDE + 40, pictures.GAP + 20 : pictures.GAP + 90]
    assert first[inside].std((0, 1)).max() > 2 and second[inside].std((0, 1)).max() < 1


@pytest.fixture
def small_id(tmp_path, monkeypatch, clips):
    """Reduce `AdaFocus-v1` to a tiny bundled classifier with a policy, and render three test videos at a time."""
    folder = tmp_path / "bundled"
    checkpoint.save(random_classifier(), folder)
    save_policy(one_cell(24), folder, {})
    for module in (checkpoint, run):
        monkeypatch.setitem(module.BUNDLED, "demo", folder)
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "SHARD_SIZE", 3)
    monkeypatch.setattr(run, "SHARD_SIZE", 3)


def test_an_id_is_played_by_the_bundled_policy(call, small_id, tmp_path):
    status, printed = call("episodes=2", "side=192", run="id=AdaFocus-v1")
    assert status == 0 and "bundled policy: " in printed and "(pip install PyQt6): AdaFocus-v1.gif is written" in printed
    assert len(opened(tmp_path / "AdaFocus-v1.gif")) == 8
    assert len(list((tmp_path / "cache").rglob("*.mp4"))) == 3


def test_an_id_without_a_bundled_policy_says_so(call, small_id, monkeypatch):
    monkeypatch.setattr(run, "BUNDLED", {})
    status, printed = call("episodes=2", run="id=AdaFocus-v1")
    assert status == 2 and "policy=bundled: none is bundled for demo; choose one of random, centre" in printed


def test_what_is_drawn_is_what_the_environment_plays(call, finished, monkeypatch):
    """The confidence after every frame equals that of the environment with the drawn patches."""
    played = []

    def moments(episodes, *given, **options):
        played.extend(episodes)
        return pictures.moments(episodes, *given, **options)

    monkeypatch.setattr(run, "moments", moments)
    assert call("policy=saliency", "clips=[1,2]", "out=a.gif")[0] == 0
    test_clips = open_clips(demo(TASK, val=0.5), "test", num_frames=4, size=96)
    env = AdaFocusEnv(checkpoint.load(finished / "checkpoints" / "classifier", "cpu"), test_clips, bank=False)
    for clip, episode in zip((1, 2), played, strict=True):
        env.reset(options={"clip": clip})
        assert episode.name == test_clips.names[clip] and episode.label == CLASSES[test_clips.labels[clip]]
        for box, confidence, prediction in zip(episode.boxes, episode.confidence, episode.predictions, strict=True):
            info = env.step(int(box[0] // 12 * 7 + box[1] // 12))[4]
            assert info["box"].tolist() == box.tolist() and info["confidence"] == pytest.approx(confidence, abs=1e-5)
            assert CLASSES[info["prediction"]] == prediction
