import io
import json
import os
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from agents.config.command import compose_config
from agents.config.settings import ListRuns, Train, TrainPPO, TrainStages
from agents.runs import listing as runs
from agents.runs.listing import list_runs
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

PPO = compose_config(TrainPPO, "train_ppo", ["data.task=mover"])


def make(folder, learned=None, *, seed=0, config=PPO, metric="top1", lines=(), **others):
    """Make a run folder like that of a training; it is finished if ``learned`` is given."""
    with RunDir.open(folder, asdict(replace(config, seed=seed, run=str(folder))), force=False) as run:
        for line in lines:
            run.log(line)
        if learned is not None:
            measured = {name: others.pop(name) for name in ("top1_anytime", "hit_rate") if name in others}
            policies = {"learned": {metric: learned, "gflops": 0.0123, **measured}, "random": {metric: 0.5}, **others}
            run.write_result({"policies": policies, "metric": metric, "data": config.data.name})
    return folder


def listed(root, order="run"):
    return {run.run: run for run in sorted(list_runs(root), key=runs.ORDERS[order])}


def printed(root, *, width=100, terminal=True, order="run"):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, color_system=None, legacy_windows=False, _environ={})
    runs.show(list(listed(root, order).values()), console)
    return text.getvalue()


def test_a_finished_run_shows_its_results(tmp_path):
    make(tmp_path / "a", 0.8, seed=3, oracle={"top1": 0.9}, greedy_oracle={"top1": 1.0}, lines=[{"stage": 2, "steps": 64}])
    make(tmp_path / "b", 0.8, oracle={"top1": 0.55}, top1_anytime=0.7, hit_rate=0.6)
    other = listed(tmp_path)["b"]
    assert (other.hits, other.anytime, other.gap) == (0.6, 0.7, None), "the gap is less than 10 points"
    run = listed(tmp_path)["a"]
    assert (run.hits, run.anytime) == (None, None)
    assert (run.command, run.data, run.seed, run.state, run.broken) == ("train_ppo", "demo-mover", 3, "finished", "")
    assert (run.learned, run.random, run.oracle, run.gflops) == (0.8, 0.5, 0.9, 0.0123)
    assert run.gap == pytest.approx(0.75) and run.seconds is not None
    assert run.setting["ppo.n_steps"] == 16 and "seed" not in run.setting


def test_without_ground_truth_the_greedy_oracle_stands_and_a_metric_has_its_name(tmp_path):
    make(tmp_path / "a", 0.6, metric="mAP", greedy_oracle={"mAP": 0.7})
    make(tmp_path / "b", 0.6)
    found = listed(tmp_path)
    assert (found["a"].oracle, found["a"].data) == (0.7, "demo-mover (mAP)")
    assert (found["b"].oracle, found["b"].gap) == (None, None)


def test_every_table_says_on_what_it_was_measured(tmp_path):
    make(tmp_path / "a", 0.6, config=compose_config(TrainPPO, "train_ppo", ["data=folder", "data.root=my [videos]"]))
    make(tmp_path / "b", 0.7)
    titles = [line for line in printed(tmp_path).splitlines() if "split" in line]
    assert [title.strip() for title in titles] == ["demo-mover, test split", "folder (my [videos]), test split"]


def test_every_training_command_is_known_by_its_config(tmp_path):
    make(tmp_path / "a", config=compose_config(Train, "train", ["algo=dqn"]))
    make(tmp_path / "b", config=compose_config(TrainStages, "train_stages"))
    assert [run.command for run in listed(tmp_path).values()] == ["train dqn", "train_stages"]


def test_a_run_that_goes_on_is_told_from_one_that_was_stopped(tmp_path):
    line = {"stage": 3, "round": 2, "part": "head", "epoch": 4, "loss": 1.0}
    make(tmp_path / "new")
    make(tmp_path / "stopped", lines=[{"stage": 2, "steps": 10_240}])
    make(tmp_path / "rounds", lines=[line])
    states = {name: run.state for name, run in listed(tmp_path).items()}
    assert states == {
        "new": "stopped before anything was measured",
        "rounds": "stopped at stage 3, round 2, head, epoch 4",
        "stopped": "stopped at stage 2, 10,240 steps",
    }
    with RunDir.open(tmp_path / "new", RunDir(tmp_path / "new").config(), force=False) as run:
        assert listed(tmp_path)["new"].state == "running, nothing measured yet"
        run.log(line)
        assert listed(tmp_path)["new"].state == "running: stage 3, round 2, head, epoch 4"
    assert listed(tmp_path)["new"].state == "stopped at stage 3, round 2, head, epoch 4"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", "{", "JSONDecodeError"),
        ("result.json", "{}", "KeyError('policies')"),
        ("result.json", '{"policies": []}', "AttributeError"),
        ("metrics.jsonl", "[1\n", "JSONDecodeError"),
        ("config.yaml", "a: [1", "config.yaml cannot be read"),
        ("config.yaml", "a: 1", "KeyError('data')"),
        ("timing.jsonl", '{"second": 1}\n', "KeyError('seconds')"),
    ],
)
def test_a_broken_folder_is_listed_with_the_reason_beside_the_others(name, content, reason, tmp_path):
    make(tmp_path / "a", None if name == "metrics.jsonl" else 0.8, lines=[{"stage": 2, "steps": 64}])
    make(tmp_path / "b", 0.8)
    (tmp_path / "a" / name).write_text(content)
    found = listed(tmp_path)
    assert reason in found["a"].broken and not found["b"].broken
    text = printed(tmp_path)
    assert f"a: {found['a'].broken}" in text and "80.0" in text


def test_folders_that_are_no_runs_are_passed_over(tmp_path):
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "config.yaml").write_text("a: 1")
    assert list_runs(tmp_path) == []
    assert printed(tmp_path) == "no run folders\n"
    with pytest.raises(InputError, match=r"root must be a folder that holds run folders, such as root=runs, got .*nowhere"):
        list_runs(tmp_path / "nowhere")


def test_the_order_is_by_number_by_result_or_by_date(tmp_path):
    for seed, learned in ((9, 0.7), (10, 0.9), (2, None)):
        make(tmp_path / "sweep" / f"seed={seed}", learned, seed=seed)
        for file in (tmp_path / "sweep" / f"seed={seed}").iterdir():
            os.utime(file, (1e9 + 60 * seed, 1e9 + 60 * seed))
    assert [run.seed for run in listed(tmp_path).values()] == [2, 9, 10]
    assert [run.seed for run in listed(tmp_path, "learned").values()] == [10, 9, 2]
    assert [run.seed for run in listed(tmp_path, "date").values()] == [10, 9, 2]


def test_seeds_of_one_setting_are_summed_up(tmp_path):
    for seed, learned in ((1, 0.7), (2, 0.8), (3, 0.9)):
        make(tmp_path / "sweep" / f"seed={seed}", learned, seed=seed, oracle={"top1": 1.0})
    make(tmp_path / "other", 0.1, seed=4, config=compose_config(TrainPPO, "train_ppo", ["data.task=mover", "env.grid=5"]))
    text = printed(tmp_path)
    mean = "sweep/seed=* train_ppo demo-mover 1, 2, 3 80.0 ± 24.8 50.0 ± 0.0 60.0 ± 49.7"  # 4.303·10/√3 = 24.8
    assert [" ".join(line.split()) for line in text.splitlines() if "sweep/seed=*" in line] == [mean]
    assert "means over seeds" not in printed(make(tmp_path / "alone" / "x", 0.5).parent)


@pytest.mark.parametrize(("width", "terminal"), [(100, True), (10, False)])
def test_nothing_is_cut_neither_in_100_columns_nor_in_a_pipe(width, terminal, tmp_path):
    names = ["a_very_long_name_that_does_not_fit/seed=0", "b"]
    make(tmp_path / names[0], lines=[{"stage": 3, "round": 12, "part": "focuser, head", "epoch": 1234}])
    make(tmp_path / names[1], 1.0, oracle={"top1": 1.0}, config=compose_config(TrainStages, "train_stages"))
    text = printed(tmp_path, width=width, terminal=terminal)
    lines = text.splitlines()
    assert "…" not in text
    assert max(map(len, lines)) <= 100 or not terminal
    folded = "".join(line[1:].split(" ")[0] for line in lines)  # the first column
    assert names[0] in (folded if terminal else text)
    assert all(part in text for part in ("train_stages", "100.0", "0.0123", "finished"))


def test_the_command_prints_json(tmp_path, capsys):
    make(tmp_path / "a", 0.8, oracle={"top1": 0.9})
    runs.print_runs(ListRuns(root=str(tmp_path), json=True))
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["run"], found["learned"], found["setting"]["data.task"]) == ("a", 0.8, "mover")
    with pytest.raises(InputError, match=r"sort must be 'run' or 'learned' or 'date', got 'learnt'; did you mean 'learned'\?"):
        compose_config(ListRuns, "list_runs", ["sort=learnt"])
