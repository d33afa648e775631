"""Start the tiny command of the tests as a separate process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TINY = Path(__file__).parent / "data" / "tiny"


@contextmanager
def running(*arguments: str, cwd: Path | None = None, **options: bool) -> Iterator[subprocess.Popen]:
    path = os.pathsep.join([str(TINY), str(TINY.parents[2])])
    command = [sys.executable, "-m", "tiny", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, env=environment, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Return the exit status and the content of stderr."""
    with running(*arguments, cwd=cwd) as process:
        errors = process.communicate(timeout=60)[1]
        return process.returncode, errors
