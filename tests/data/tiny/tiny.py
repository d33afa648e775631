"""A tiny command. It writes what it was given, and does what ``act`` says: costs 5 $, not ${act}."""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from agents.config.command import run_command
from agents.runs.interrupts import StopRequest
from classifiers.errors import InputError


class Act(Enum):
    show = "show"
    mistake = "mistake"
    bug = "bug"
    interrupt = "interrupt"
    work = "work"


@dataclass
class Data:
    name: str = "none"
    root: str = ""
    workers: int = 2


@dataclass
class PPO:
    learning_rate: float = 0.01
    n_steps: int | None = None
    kwargs: dict[str, int] = field(default_factory=dict)


@dataclass
class Tiny:
    run: str = ""
    seed: int = 0
    force: bool = False
    act: Act = Act.show
    data: Data = field(default_factory=Data)
    ppo: PPO = field(default_factory=PPO)
    root: str = ""
    file: str = ""
    out: str = "${run}/out"
    video: str = ""
    classifier: str = ""
    policy: str = ""


@dataclass
class Needy:
    seed: int = MISSING


def main(config: Tiny) -> None:
    sys.stdout.write(json.dumps(dataclasses.asdict(config), default=str) + "\n")
    sys.stdout.flush()
    if config.act is Act.mistake:
        raise InputError("file: [bold]no[/bold] such thing; choose another")
    if config.act is Act.bug:
        raise RuntimeError("a bug")
    if config.act is Act.interrupt:
        raise KeyboardInterrupt
    if config.act is Act.work:
        work()


def work() -> None:
    with StopRequest() as stop:
        sys.stdout.write("working\n")
        sys.stdout.flush()
        while not stop.requested:
            time.sleep(0.01)
    sys.stdout.write("saved\n")


if __name__ == "__main__":
    run_command(main, Tiny, "tiny", config_package="tiny_configs")
