import json
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_process import TINY, finished, running

from agents.config import command
from agents.config.settings import TrainPPO
from classifiers.errors import InputError

sys.path.insert(0, str(TINY))

import tiny

letters = st.one_of(st.sampled_from("\\${}'\"[]()=,:;#&?*! "), st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"))
any_text = st.text(letters).filter(lambda text: text != "???")  # which is refused, see below


def compose(*overrides: str) -> tiny.Tiny:
    return command.compose_config(tiny.Tiny, "tiny", overrides, config_package="tiny_configs")


def call(*arguments: str) -> None:
    command.run_command(tiny.main, tiny.Tiny, "tiny", config_package="tiny_configs", arguments=arguments)


def wait_for(happens: Callable[[], bool]) -> None:
    while not happens():
        time.sleep(0.05)


def shown(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_values_come_from_the_dataclass_the_file_the_group_and_the_arguments_in_this_order():
    config = compose("data=folder", "data.workers=3", "ppo.n_steps=16", "act=bug")
    assert config == tiny.Tiny(
        act=tiny.Act.bug, out="/out", data=tiny.Data(name="folder", workers=3), ppo=tiny.PPO(learning_rate=0.1, n_steps=16)
    )


def test_a_dictionary_takes_new_keys():
    assert compose("ppo.kwargs.x=1").ppo.kwargs == compose("+ppo.kwargs.x=1").ppo.kwargs == {"x": 1}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(any_text, st.sampled_from(sorted(command.PATH_KEYS)))
@example("${x}", "run")
@example("\\${x}", "run")
@example("\\\\${", "data.root")
@example("a b,c=d'\"[{(\\", "policy")
@example("null", "classifier")
@example("", "run")
@example("'quoted'", "video")
def test_path_values_arrive_as_typed(text, key):
    config = compose(f"{key}={text}")
    owner, _, name = key.rpartition(".")
    assert getattr(config.data if owner else config, name) == text


def test_other_keys_can_refer_to_a_path_that_looks_like_a_reference():
    assert compose("run=${seed}").out == "${seed}/out"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", r"^there is no key 'sed'; did you mean 'seed'\?$"),
        ("+sed=1", r"no key 'sed'; did you mean 'seed'"),
        ("ppo.learning_rat=1", r"no key 'ppo.learning_rat'; did you mean 'ppo.learning_rate'\?"),
        ("data.rot=x", r"no key 'data.rot'; did you mean 'data.root'\?"),
        ("zzz=1", r"no key 'zzz'; the keys are run, seed, force, .*policy$"),
        ("ppo.zzzzzzzz=1", r"the keys are ppo.learning_rate, ppo.n_steps, ppo.kwargs$"),
        ("seed.x=1", r"no key 'seed.x'; did you mean 'seed'"),
        ("seed=abc", r"^seed=abc: seed must be a whole number \(int\)$"),
        ("seed=1.5", r"^seed=1.5: seed must be a whole number"),
        ("ppo.n_steps=x", r"^ppo.n_steps=x: ppo.n_steps must be a whole number \(int\) or null$"),
        ("ppo.learning_rate=", r"ppo.learning_rate must be a number \(float\)"),
        ("force=maybe", r"force must be true or false \(bool\)"),
        ("act=sleep", r"act=sleep: act must be one of show, mistake, bug"),
        ("ppo=3", r"ppo must be set by the keys below it, as ppo.learning_rate=VALUE"),
        ("ppo={learning_rat: 1}", r"Key 'learning_rat' not in 'PPO'"),
        ("data=fodler", r"^data=fodler: did you mean 'folder'\? data is one of demo, folder$"),
        ("data=xyz", r"^data=xyz: data is one of demo, folder$"),
        ("data=3", r"^data=3: data is one of demo, folder$"),
        ("foo", r"^'foo' has no '='; arguments are written key=value"),
        ("", r"^'' has no '='"),
        ("seed=1,2", r"add --multirun"),
        ("~seed=0", r"cannot be taken away"),
        ("hydra.run.dir=x", r"hydra.run.dir: Hydra only composes the config here.*run=DIR"),
        ("run=???", r"write \./\?\?\?"),
        ("run=\udcff", r"is not valid UTF-8"),
        ("act=${nix}", r"Interpolation key 'nix' not found"),
        ("seed=(1", r"Error parsing override 'seed=\(1'"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override, message):
    with pytest.raises(InputError, match=message):
        compose(override)


def test_a_path_key_that_the_command_does_not_have_is_unknown():
    with pytest.raises(InputError, match="there is no key 'run'; the keys are seed"):
        command.compose_config(tiny.Needy, "needy", ["run=x"], config_package="tiny_configs")


def test_a_value_without_a_default_is_asked_for():
    with pytest.raises(InputError, match=r"^seed is missing: add seed=VALUE$"):
        command.compose_config(tiny.Needy, "needy", config_package="tiny_configs")


def test_multirun_gives_every_job_its_folder(capsys):
    call("-m", "run=runs/a b", "seed=1,2", "force=true")
    output = capsys.readouterr()
    assert [(job["seed"], job["run"], job["out"]) for job in shown(output.out)] == [
        (1, "runs/a b/seed=1", "runs/a b/seed=1/out"),
        (2, "runs/a b/seed=2", "runs/a b/seed=2/out"),
    ]
    assert output.err == "job 1 of 2: seed=1\njob 2 of 2: seed=2\n"


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        (["seed=range(1,3)", "data=demo,folder"], [f"runs/tiny/seed={seed},data={data}" for seed in (1, 2) for data in ("demo", "folder")]),
        (["data=glob(*)", "run=x"], ["x/data=demo", "x/data=folder"]),
        (["seed=5", "run=x"], ["x/seed=5"]),
        (["run=a,b"], ["a,b"]),
    ],
)
def test_multirun_folders_are_named_after_what_differs(arguments, folders, capsys):
    call(*arguments, "-m")
    assert [job["run"] for job in shown(capsys.readouterr().out)] == folders


def test_multirun_folder_names_are_safe_and_stay_apart():
    names = [command._folder_name(name) for name in ("x={a:1}", "x=[a:1]", "x=../../b", "x=" + "y" * 300)]
    assert len(set(names)) == 4
    assert all("/" not in name and ":" not in name and len(name) <= 107 for name in names)


def test_multirun_checks_all_jobs_before_the_first_one_runs(capsys):
    with pytest.raises(SystemExit) as stop:
        call("-m", "seed=1,abc")
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "seed=1,abc: seed must be a whole number (int)\n")


def test_a_mistake_in_a_job_is_an_error_of_the_whole(capsys):
    with pytest.raises(SystemExit) as stop:
        call("-m", "seed=1,2", "act=mistake")
    assert stop.value.code == 2
    mistake = "file: [bold]no[/bold] such thing; choose another\n"
    assert capsys.readouterr().err == (
        f"job 1 of 2: seed=1\n{mistake}job 2 of 2: seed=2\n{mistake}2 of 2 jobs failed or were stopped: seed=1, seed=2\n"
    )


def test_a_job_that_fails_does_not_stop_those_after_it_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        call("-m", "act=bug,mistake,show")
    assert stop.value.code == 1
    output = capsys.readouterr()
    assert [job["act"] for job in shown(output.out)] == ["Act.bug", "Act.mistake", "Act.show"]
    assert "Traceback" in output.err and "RuntimeError: a bug" in output.err
    assert output.err.endswith("2 of 3 jobs failed or were stopped: act=bug, act=mistake\n")


def test_ctrl_c_ends_all_jobs(capsys):
    with pytest.raises(SystemExit) as stop:
        call("-m", "act=show,interrupt,mistake")
    assert stop.value.code == 130
    output = capsys.readouterr()
    assert [job["act"] for job in shown(output.out)] == ["Act.show", "Act.interrupt"]
    assert output.err.endswith("2 of 3 jobs failed or were stopped: act=interrupt, act=mistake\n")


LAUNCHERS = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit_local": "hydra_plugins.hydra_submitit_launcher"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_runs_every_job_and_says_which_failed(name, tmp_path):
    pytest.importorskip(LAUNCHERS[name])
    size = ["hydra.launcher.n_jobs=2"] if name == "joblib" else ["hydra.launcher.timeout_min=5"]
    status, errors = finished("-m", "act=show,mistake,bug", "run=runs/x", f"hydra/launcher={name}", *size, cwd=tmp_path)
    assert status == 1
    assert "act=show: done\n" in errors
    assert "act=mistake: file: [bold]no[/bold] such thing; choose another\n" in errors
    assert "act=bug: Traceback" in errors and "RuntimeError: a bug" in errors
    assert errors.endswith("2 of 3 jobs failed or were stopped: act=mistake, act=bug\n")
    logs = [tmp_path / "runs" / "x" / "act=show.log"] if name == "joblib" else tmp_path.glob("runs/x/.submitit/*/*_0_log.out")
    written = [json.loads(line) for log in logs for line in log.read_text().splitlines() if line.startswith('{"run"')]
    assert "runs/x/act=show" in [job["run"] for job in written]


def test_ctrl_c_reaches_all_jobs_of_joblib_and_none_begins_after_it(tmp_path):
    pytest.importorskip(LAUNCHERS["joblib"])
    arguments = ["-m", "act=work", "seed=1,2,3", "run=x", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with running(*arguments, cwd=tmp_path, start_new_session=True) as process:
        logs = [tmp_path / "x" / f"seed={seed}.log" for seed in (1, 2, 3)]
        wait_for(lambda: all(log.exists() and "working" in log.read_text() for log in logs[:2]))
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert all("saved" in log.read_text() for log in logs[:2]) and not logs[2].exists()
    assert errors.endswith("1 of 3 jobs failed or were stopped: seed=3\n")


def test_a_launcher_that_is_not_installed_says_what_to_install(monkeypatch, capsys):
    assert command.PACKAGES["joblib"] == "hydra-joblib-launcher"
    monkeypatch.setitem(command.PACKAGES, "rocket", "hydra-rocket-launcher")
    with pytest.raises(SystemExit) as stop:
        call("-m", "seed=1,2", "hydra/launcher=rocket")
    assert stop.value.code == 2
    needs = "hydra/launcher=rocket needs a package more: pip install hydra-rocket-launcher, or leave it out\n"
    assert capsys.readouterr() == ("", needs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "hydra/launcher=jobib"], "hydra/launcher=jobib: did you mean 'joblib'? hydra/launcher is one of basic, joblib, sub"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib is for several jobs: add --multirun, or leave it out"),
        (["-m", "hydra.launcher.n_jobs=2"], "Key 'n_jobs' not in"),
    ],
)
def test_a_mistake_about_the_launcher_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        call("seed=1", *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["seed=1", "+run=a=b"], {"seed": "seed=1", "run": "run=a=b"}),
        (["ppo={n_steps: 3, kwargs: {x: 1}}"], dict.fromkeys(["ppo.n_steps", "ppo.kwargs.x"], "ppo={n_steps: 3, kwargs: {x: 1}}")),
        (["algo=my.Class"], {"algo": "algo=custom", "algo.name": "algo.name=my.Class"}),
        (["++ppo.kwargs.x=1"], {"ppo.kwargs.x": "ppo.kwargs.x=1"}),
    ],
)
def test_what_was_typed_is_known_by_key(arguments, typed):
    assert command.typed_keys(arguments) == typed


def test_a_key_without_an_effect_ends_the_command_and_every_sweep_before_it_begins(capsys):
    for arguments in (["env.cost_weight_rate=1"], ["-m", "env.cost_weight_rate=1,2", "seed=1"]):
        with pytest.raises(SystemExit) as stop:
            command.run_command(lambda config: pytest.fail("it runs"), TrainPPO, "train_ppo", arguments=arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("env.cost_weight_rate=1 has no effect: the price stays as it is")


def test_help_shows_the_docstring_the_groups_and_the_config(capsys):
    call("--help")
    page = capsys.readouterr().out
    assert page.startswith("A tiny command.")
    assert "costs 5 $, not ${act}." in page
    assert "data: demo, folder" in page
    assert "learning_rate: 0.1" in page


def test_cfg_shows_the_config_with_the_arguments_applied(capsys):
    call("--cfg", "job", "seed=3", "run=x y", "--resolve")
    text = capsys.readouterr().out
    assert text.startswith("run: x y\nseed: 3\n")
    assert "out: x y/out" in text
    assert "hydra" not in text


@pytest.mark.parametrize(
    ("flag", "message"), [("--seed=1", "unrecognized arguments: --seed=1"), ("--resolve", "--resolve is for --cfg; add --cfg job")]
)
def test_a_flag_that_is_not_known_or_has_no_effect_is_refused(capsys, flag, message):
    with pytest.raises(SystemExit) as stop:
        call(flag)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_process_prints_a_mistake_alone_and_leaves_no_folder(tmp_path):
    status, errors = finished("act=mistake", "run=no folder", "-m", cwd=tmp_path)
    assert (status, errors) == (2, "job 1 of 1: act=mistake\nfile: [bold]no[/bold] such thing; choose another\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_not_caught():
    with pytest.raises(RuntimeError, match="a bug"):
        call("act=bug")


def test_ctrl_c_has_its_status_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        call("act=interrupt")
    assert stop.value.code == 130
    assert capsys.readouterr().err == ""
