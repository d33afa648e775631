import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_process import TINY, finished

from agents.config import command
from agents.config.compose import typed_keys
from agents.config.settings import TrainPPO
from classifiers.errors import InputError

sys.path.insert(0, str(TINY))

import tiny

PATHS = ("run", "root", "data.root", "out")
letters = st.one_of(st.sampled_from("\\${}'\"[]()=,:;#&?*! "), st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"))
any_text = st.text(letters).filter(lambda text: text != "???")  # which is refused, see below


def compose(*overrides: str) -> tiny.Tiny:
    return command.compose_config(tiny.Tiny, "tiny", overrides, config_package="tiny_configs")


def call(*arguments: str) -> None:
    command.run_command(tiny.main, tiny.Tiny, "tiny", config_package="tiny_configs", arguments=arguments)


def shown(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_values_come_from_the_declaration_the_file_the_group_and_the_arguments_in_this_order():
    config = compose("data=folder", "data.workers=3", "ppo.n_steps=16", "act=bug", "stages=short")
    assert config == tiny.Tiny(
        act="bug", echo="0-", data=tiny.Data(name="folder", workers=3), ppo=tiny.PPO(learning_rate=0.1, n_steps=16),
        stages=tiny.Stages(first=tiny.PPO(n_steps=3), second=tiny.PPO(n_steps=7)),
    )  # fmt: skip


def test_a_dictionary_takes_new_keys():
    assert compose("ppo.kwargs.x=1").ppo.kwargs == compose("+ppo.kwargs.x=1").ppo.kwargs == {"x": 1}


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(any_text, st.sampled_from(PATHS))
@example("${x}", "run")
@example("\\${x}", "run")
@example("\\\\${", "data.root")
@example("a b,c=d'\"[{(\\", "out")
@example("null", "root")
@example("", "run")
@example("'quoted'", "out")
def test_path_values_arrive_as_typed(text, key):
    config = compose(f"{key}={text}")
    owner, _, name = key.rpartition(".")
    assert getattr(config.data if owner else config, name) == text


def test_other_keys_can_refer_to_a_path_that_looks_like_a_reference():
    assert compose("run=${seed}", "echo='${run}/out'").echo == "${seed}/out"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", r"^sed is not a setting; did you mean 'seed'\? choose one of act, data, "),
        ("+sed=1", r"^sed is not a setting; did you mean 'seed'"),
        ("ppo.learning_rat=1", r"^ppo\.learning_rat is not a setting; did you mean 'learning_rate'\?"),
        ("data.rot=x", r"^data\.rot is not a setting; did you mean 'root'\?"),
        ("zzz=1", r"^zzz is not a setting; choose one of act, data, echo, "),
        ("stages.first.zzz=1", r"^stages\.first\.zzz is not a setting; choose one of kwargs, learning_rate, n_steps, views$"),
        ("seed.x=1", r"^seed must be an integer of at least 0, got \{'x': 1\}"),
        ("seed=abc", r"^seed must be an integer of at least 0, got 'abc'$"),
        ("seed=1.5", r"^seed must be an integer of at least 0, got 1.5"),
        ("seed=true", r"^seed must be an integer of at least 0, got True"),
        ("seed=-1", r"^seed must be an integer of at least 0, got -1$"),
        ("ppo.n_steps=x", r"^ppo\.n_steps must be an integer of at least 1 or null, got 'x'$"),
        ("ppo.views=0", r"^ppo\.views must be an integer of at least 1 or 'resample', got 0$"),
        ("ppo.views=resampel", r"^ppo\.views must be an integer of at least 1 or 'resample', got 'resampel'; did you mean 'resample'\?$"),
        ("ppo.learning_rate=", r"^ppo\.learning_rate must be a number above 0, got ''$"),
        ("force=maybe", r"^force must be true or false, got 'maybe'$"),
        ("act=sleep", r"^act must be 'show' or 'mistake' or 'bug' or 'interrupt' or 'fault' or 'work', got 'sleep'"),
        ("tags=x", r"^tags must be a list, each text, got 'x'$"),
        ("tags=[1]", r"^tags must be a list, each text, got 1$"),
        ("echo=1", r"^echo must be text, got 1$"),
        ("ppo=3", r"^ppo must be a dictionary, got 3$"),
        ("ppo={learning_rat: 1}", r"^ppo\.learning_rat is not a setting"),
        ("data=fodler", r"^data='fodler' is not known; did you mean 'folder'\? choose one of \['demo', 'folder'\]$"),
        ("data=3", r"^data='3' is not known"),
        ("foo", r"^'foo' has no '='; arguments are written key=value"),
        ("", r"^'' has no '='"),
        ("seed=1,2", r"^seed=1,2 has several values: add --multirun, or quote it: seed='\"a,b\"'"),
        ("~seed=0", r"cannot be removed"),
        ("hydra.run.dir=x", r"^hydra\.run\.dir is not a setting"),
        ("hydra/launcher=joblib", r"^hydra/launcher is not a setting"),
        ("run=???", r"write \./\?\?\?"),
        ("run=\udcff", r"is not valid UTF-8"),
        ("echo=${nix}", r"Interpolation key 'nix' not found"),
        ("seed=(1", r"^seed=\(1 cannot be parsed \(.+\); put text that contains any of .+ in two pairs of quotes: seed='\"a=b\"'"),
        ("policy_kwargs=[a=b]", r"^policy_kwargs=\[a=b\] cannot be parsed .+, or in a list policy_kwargs='\[\"a=b\"\]'$"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override, message):
    with pytest.raises(InputError, match=message):
        compose(override)


def test_a_list_needs_no_brackets():
    assert compose("tags=a,b").tags == compose("tags=[a,b]").tags == ["a", "b"]


def test_a_path_key_that_the_command_does_not_have_is_unknown():
    with pytest.raises(InputError, match="run is not a setting; choose one of seed"):
        command.compose_config(tiny.Needy, "needy", ["run=x"], config_package="tiny_configs")


def test_a_value_without_a_default_is_asked_for():
    with pytest.raises(InputError, match=r"^seed is missing: add seed=VALUE$"):
        command.compose_config(tiny.Needy, "needy", config_package="tiny_configs")


def test_multirun_gives_every_job_its_folder(capsys):
    call("-m", "run=runs/a b", "seed=1,2", "force=true")
    output = capsys.readouterr()
    assert [(job["seed"], job["run"]) for job in shown(output.out)] == [
        (1, "runs/a b/seed=1"),
        (2, "runs/a b/seed=2"),
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
    assert capsys.readouterr() == ("", "seed must be an integer of at least 0, got 'abc'\n")


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
    assert [job["act"] for job in shown(output.out)] == ["bug", "mistake", "show"]
    assert "Traceback" in output.err and "RuntimeError: a bug" in output.err
    assert output.err.endswith("2 of 3 jobs failed or were stopped: act=bug, act=mistake\n")


def test_what_main_returns_is_the_exit_status(capsys):
    for arguments in (["act=fault"], ["-m", "act=fault,show"]):
        with pytest.raises(SystemExit) as stop:
            call(*arguments)
        assert stop.value.code == 1
    assert capsys.readouterr().err.endswith("1 of 2 jobs failed or were stopped: act=fault\n")


def test_ctrl_c_ends_all_jobs(capsys):
    with pytest.raises(SystemExit) as stop:
        call("-m", "act=show,interrupt,mistake")
    assert stop.value.code == 130
    output = capsys.readouterr()
    assert [job["act"] for job in shown(output.out)] == ["show", "interrupt"]
    assert output.err.endswith("2 of 3 jobs failed or were stopped: act=interrupt, act=mistake\n")


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
    assert typed_keys(arguments, TrainPPO if "algo" in typed else tiny.Tiny) == typed


def test_a_key_without_an_effect_ends_the_command_and_every_sweep_before_it_begins(capsys):
    for arguments in (["env.cost_weight_rate=1"], ["-m", "env.cost_weight_rate=1,2", "seed=1"]):
        with pytest.raises(SystemExit) as stop:
            command.run_command(lambda config: pytest.fail("it runs"), TrainPPO, "train_ppo", arguments=arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("env.cost_weight_rate=1 has no effect: λ is constant")


def test_help_explains_every_setting(capsys):
    call("--help")
    page = capsys.readouterr().out
    assert page.startswith("A tiny command.") and "costs 5 $, not ${act}." in page
    assert "ppo.learning_rate  0.1      a number above 0            of Adam\n" in page
    assert "ppo.n_steps        null     an integer of at least 1    of an update [steps]\n" in page
    assert "tags    [a]" in page and "force   false" in page and "echo    ${seed}-" in page and "data.name     demo" in page
    assert "data=NAME sets several of them: demo, folder\n" in page
    assert "stages: stages that are alike; STAGE: first, second\n" in page and "stages.STAGE.n_steps        null, 7" in page
    assert max(map(len, page.splitlines())) <= 100


def test_help_of_one_group(capsys):
    call("--help", "data")
    page = capsys.readouterr().out
    assert page.startswith("\ndata: which videos\n") and "data.workers" in page and "ppo" not in page
    with pytest.raises(SystemExit) as stop:
        call("--help", "dta")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "--help='dta' is not known; did you mean 'data'? choose one of ['data', 'ppo', 'stages']\n"


def test_a_setting_without_a_default_is_marked_in_the_help(capsys):
    command.run_command(tiny.main, tiny.Needy, "needy", config_package="tiny_configs", arguments=["--help"])
    assert "seed  (needed)  an integer  of everything random" in capsys.readouterr().out


def test_cfg_shows_the_values_with_the_arguments_applied(capsys):
    call("--cfg", "job", "seed=3", "run=x y")
    text = capsys.readouterr().out
    assert text.startswith("run: x y\nseed: 3\n")
    assert "echo: 3-" in text and "hydra" not in text


def test_a_flag_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        call("--seed=1")
    assert stop.value.code == 2
    assert "unrecognized arguments: --seed=1" in capsys.readouterr().err


def test_help_and_mistakes_need_no_torch():
    code = "from agents.config.command import run_command; from agents.config.settings import *; import sys\n"
    code += "def main(config): pass\n"
    code += "try: run_command(main, Train, 'train', arguments=sys.argv[1:])\n"
    code += "except SystemExit: pass\n"
    code += "sys.stderr.write(str(sorted({'torch', 'stable_baselines3', 'hydra'} & set(sys.modules))))"
    for arguments, imported in ((["--help"], "[]"), (["env.grid=0"], "env.grid must be an integer of at least 1, got 0\n['hydra']")):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert result.stderr == imported


def test_the_commands_are_listed():
    result = subprocess.run([sys.executable, "-m", "agents"], capture_output=True, text=True, check=True)
    names = [line.split()[2] for line in result.stdout.splitlines()]
    assert {"agents.train_ppo", "agents.evaluate", "agents.fill_feature_bank", "agents.COMMAND"} <= set(names)
    assert "agents.inference" not in names
    assert "python -m agents.list_runs          List run folders with their results.\n" in result.stdout


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
