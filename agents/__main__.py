"""Lists the commands: ``python -m agents``."""

import ast
import sys
from pathlib import Path


def main() -> None:
    """Print the first line of every command's docstring."""
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = file.read_text(encoding="utf-8")
        if "run_command(" in text:
            summary = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
            sys.stdout.write(f"python -m agents.{file.stem:18} {summary}\n")
    sys.stdout.write("python -m agents.COMMAND --help explains its keys\n")


if __name__ == "__main__":
    main()
