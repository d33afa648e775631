from agents.runs.system import command_line


def test_commands_are_shown_as_they_are_typed():
    assert command_line(["/x/agents/train_ppo.py", "run=a b", "seed=1"]) == "python -m agents.train_ppo 'run=a b' seed=1"
    assert command_line(["/usr/bin/my tool"]) == "'my tool'"
