"""List the commands and run one of them: ``python -m agents``, or ``adafocus`` once the package is installed."""

import ast
import importlib.metadata
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from classifiers.errors import InputError, lookup


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, such as ``train-ppo``. All arguments after the first are arguments of the command.

    Without arguments, list all commands.

    Args:
        arguments: the command line; by default, the command line of the process.
    """
    name, *others = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    commands = {file.stem.replace("_", "-"): file for file in sorted(Path(__file__).parent.glob("[a-z]*.py")) if _is_command(file)}
    if name in ("--help", "-h"):
        sys.stdout.write(_listing(commands))
    elif name == "--version":
        sys.stdout.write(f"{importlib.metadata.version('adafocus-env')}\n")
    else:
        _run(name, others, commands)


def _is_command(file: Path) -> bool:
    return "run_command(" in file.read_text(encoding="utf-8")


def _run(name: str, arguments: Sequence[str], commands: dict[str, Path]) -> None:
    """Run a command as ``python -m`` would run it. If the name is unknown, the process ends with status 2."""
    try:
        file = lookup("command", name.replace("_", "-"), commands)
    except InputError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(2)
    sys.argv[1:] = arguments  # `alter_sys` replaces sys.argv[0] by the path of the module
    runpy.run_module(f"agents.{file.stem}", run_name="__main__", alter_sys=True)


def _listing(commands: dict[str, Path]) -> str:
    """Return one line per command: its name, in the form in which this program was called, and the first line of its docstring."""
    if Path(sys.argv[0]).name == "__main__.py":
        program, commands = "python -m agents.", {file.stem: file for file in commands.values()}
    else:
        program = "adafocus "
    lines = [f"{program}{name:18} {_summary(file)}\n" for name, file in commands.items()]
    return "".join([*lines, f"{program}COMMAND --help explains its keys\n"])


def _summary(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0]


if __name__ == "__main__":
    main()
