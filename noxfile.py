"""The environment beside other libraries, which do not all take the same Gymnasium: each session has a separate environment.

    nox                  the first two
    nox -s newest        the newest Gymnasium, with TorchRL and skrl
    nox -s rllib         RLlib, with the Gymnasium that it pins
    nox -s oldest        the oldest Gymnasium that is supported, alone

Where the Python that runs nox has a package already, in a version that fits, a session takes it from there: PyTorch is several GB.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_external_run = True
nox.options.sessions = ["newest", "rllib"]

TESTS = ["tests/test_examples.py", *sorted(str(path) for path in Path("tests/adafocus_env").glob("test_*.py"))]


@nox.session
def newest(session: nox.Session) -> None:
    """The newest Gymnasium."""
    _test(session, "video,torchrl,skrl", "gymnasium")


@nox.session
def rllib(session: nox.Session) -> None:
    """The Gymnasium that RLlib pins. Predictions on Ray are tested here, too."""
    _test(session, "rllib,ray", tests=[*TESTS, "tests/agents/prediction/test_ray_engine.py"])


@nox.session
def oldest(session: nox.Session) -> None:
    """The oldest Gymnasium that is supported."""
    _test(session, "video", "gymnasium==1.1.*")


def _test(session: nox.Session, extras: str, *packages: str, tests: Sequence[str] = TESTS) -> None:
    _lie_over_this_python(session)
    session.install("--quiet", "--upgrade", f".[dev,{extras}]", *packages)
    session.env["RAY_USAGE_STATS_ENABLED"] = "0"  # otherwise Ray sends statistics to its developers
    session.run("python", "-c", "import gymnasium; print('gymnasium', gymnasium.__version__)")
    session.run("python", "-m", "pytest", "-r", "s", "-m", "", *tests, *session.posargs)  # the slow ones, too


def _lie_over_this_python(session: nox.Session) -> None:
    """Lets the session see the packages of the Python that runs nox, behind its own; pip counts them as installed."""
    inside = session.run_install(
        "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True, log=False
    )
    if isinstance(inside, str):
        Path(inside.strip(), "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
