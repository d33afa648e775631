"""Run the examples as scripts, on a dozen videos and for a few steps. (docs/libraries.md has results of complete trainings.)"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TASK
from videos import square_frames, write_video

from adafocus_env import build
from adafocus_env.demo.videos import demo
from adafocus_env.videos.class_folders import folder
from adafocus_env.videos.readers import open_reader

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, clips):
    """Return a function that imports an example, with a dozen demo videos of the tests."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(build, "demo", lambda task: demo(TASK, val=0.0))
    yield importlib.import_module
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_all_of_them_are_explained():
    docs = EXAMPLES.parent / "docs"
    page = "".join((docs / name).read_text(encoding="utf-8") for name in ("libraries.md", "backbones.md", "film_digits.md", "export.md"))
    for path in EXAMPLES.glob("*_*.py"):
        assert f"../examples/{path.name}" in page and f"python examples/{path.name}" in path.read_text(encoding="utf-8")


# The single file


@pytest.fixture
def single(example):
    return example("ppo_single_file")


def test_the_single_file_learns_and_measures(single, capsys):
    single.main(["--steps", "256", "--envs", "8", "--test-clips", "4", "--clips-per-batch", "4"])
    printed = capsys.readouterr().out
    assert "    256 steps  return" in printed and "top-1 on 4 test clips: learned" in printed


def test_a_step_depends_on_the_glances_up_to_it(single):
    torch.manual_seed(0)
    policy, maps = single.Policy((3, 4, 4), 9), torch.rand(5, 2, 3, 4, 4)
    whole, values = policy(maps)
    for step in range(5):
        logits, value = policy(maps[: step + 1])
        assert torch.allclose(logits[-1], whole[step], atol=1e-6) and torch.allclose(value[-1], values[step], atol=1e-6)


def test_the_advantages_are_generalised_ones(single):
    rewards, values = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [0.25]])
    rollout = single.Rollout(None, None, None, values, rewards)
    last = 2.0 - 0.25
    first = 1.0 + 0.5 * 0.25 - 0.5 + 0.5 * 0.8 * last
    found = single.advantages(rollout, single.Settings(gamma=0.5, gae_lambda=0.8))
    assert found.ravel().tolist() == pytest.approx([first, last])


def test_the_loss_grows_the_probability_of_what_paid(single):
    torch.manual_seed(0)
    policy, maps = single.Policy((3, 4, 4), 9), torch.rand(2, 4, 3, 4, 4)
    with torch.no_grad():
        logits, values = policy(maps)
    actions = torch.zeros(2, 4, dtype=torch.int64)
    actions[:, 2:] = 5
    before = torch.distributions.Categorical(logits=logits).log_prob(actions)
    rollout, paid = single.Rollout(maps, actions, before, values, values), torch.tensor([1.0, 1, -1, -1]).expand(2, 4)
    optimizer = torch.optim.SGD(policy.parameters(), 0.01)
    single.loss(policy, rollout, paid, torch.arange(4), single.Settings(value=0.0, entropy=0.0)).backward()
    optimizer.step()
    after = torch.distributions.Categorical(logits=policy(maps)[0]).log_prob(actions)
    assert ((after - before) * paid).mean() > 0


# Other libraries


@pytest.mark.parametrize(
    ("name", "module", "extra", "more"),
    [
        ("torchrl_ppo", "torchrl", "torchrl", []),
        ("skrl_ppo", "skrl", "skrl", []),
        ("rllib_ppo", "ray.rllib", "rllib", ["--env-runners", "0"]),
    ],
)
def test_an_example_learns_and_measures(example, capsys, name, module, extra, more):
    pytest.importorskip(module, reason=f"{module} is not installed (pip install 'adafocus-env[{extra}]')")
    example(name).main(["--steps", "1", "--test-clips", "4", *more])  # one update
    assert "top-1 on 4 test clips: learned" in capsys.readouterr().out


@pytest.mark.timeout(900)  # two workers that decode on two slow cores
def test_rllib_with_two_workers(example):
    pytest.importorskip("ray.rllib", reason="RLlib is not installed (pip install 'adafocus-env[rllib]')")
    import ray

    ray.init(num_cpus=3, include_dashboard=False)
    algorithm = example("rllib_ppo").config(env_runners=2).build_algo()
    measured = algorithm.train()
    algorithm.stop()
    ray.shutdown()
    assert measured["env_runners"]["num_env_steps_sampled"] >= 1024
    assert np.isfinite(measured["env_runners"]["episode_return_mean"])


# Real clips


def test_clips_are_cut_and_their_splits_share_no_frame(example, tmp_path, capsys):
    """The background of the test videos gets brighter from frame to frame, so that the frames of a clip can be identified."""
    module = example("real_clips")
    for name in ("one", "two"):
        write_video(tmp_path / f"{name}.mp4", square_frames(24))
    given = [str(tmp_path / "clips"), str(tmp_path / "one.mp4"), str(tmp_path / "two.mp4")]
    module.main([*given, "--seconds", "0.16", "--train", "3", "--test", "2", "--side", "48"])
    assert "one.mp4: 5 clips of 0.16 s from 1 s" in capsys.readouterr().out
    data = folder(tmp_path / "clips", val=0.0)
    assert data.classes == ("one", "two") and len(data.train) == 6 and len(data.test) == 4
    shades = {}
    for split in ("train", "test"):
        readers = [open_reader(video.path) for video in getattr(data, split)]
        assert all(len(reader) == 4 for reader in readers)
        shades[split] = [reader.get_frames([0, 3])[:, 2, 2].mean(-1) for reader in readers]
    assert max(last for _, last in shades["train"]) + 8 < min(first for first, _ in shades["test"])


def test_a_video_that_is_too_short_for_clips_is_refused(example, tmp_path):
    write_video(tmp_path / "short.mp4", square_frames(8))
    with pytest.raises(SystemExit, match=r"short has 8 frames: too few for clips of 20 frames in its train split; lower --seconds"):
        example("real_clips").main([str(tmp_path / "clips"), str(tmp_path / "short.mp4")])
