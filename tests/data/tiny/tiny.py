"""A tiny command. It writes what it was given, and does what ``act`` says: costs 5 $, not ${act}."""

import dataclasses
import json
import sys
import time
from typing import Any, Literal

from adafocus_env.settings import Count, setting, settings
from agents.config.command import run_command
from agents.runs.interrupts import StopRequest
from classifiers.errors import InputError


@settings
class Data:
    name: str = setting("none", "the data set")
    root: str = setting("", "the folder", path=True)
    workers: int = setting(2, "processes", ge=1)


@settings
class PPO:
    learning_rate: float = setting(0.01, "of Adam", gt=0)
    n_steps: int | None = setting(None, "of an update", ge=1, unit="steps")
    views: Count | Literal["resample"] = setting(1, "clips of a video")
    kwargs: dict[str, Any] = setting(dict, "further arguments")


@settings
class Stages:
    first: PPO = setting(PPO, "one")
    second: PPO = setting(PPO, "another")


@settings
class Tiny:
    run: str = setting("", "the run folder", path=True)
    seed: int = setting(0, "of everything random", ge=0)
    force: bool = setting(False, "start over")
    act: Literal["show", "mistake", "bug", "interrupt", "fault", "work"] = setting("show", "what is done")
    data: Data = setting(Data, "which videos")
    ppo: PPO = setting(PPO, "the algorithm")
    stages: Stages = setting(Stages, "stages that are alike")
    tags: list[str] = setting(lambda: ["a"], "words")
    root: str = setting("", "a folder", path=True)
    out: str = setting("", "another", path=True)
    echo: str = setting("", "text")
    plugin: str = setting("", "imported first")

    def without_effect(self, command, prefix):
        if self.act == "interrupt":
            yield "ppo.kwargs force", "nothing is done; leave it out"


@settings
class Needy:
    seed: int = setting(..., "of everything random")


def main(config: Tiny) -> int | None:
    sys.stdout.write(json.dumps(dataclasses.asdict(config), default=str) + "\n")
    sys.stdout.flush()
    if config.act == "mistake":
        raise InputError("file: [bold]no[/bold] such thing; choose another")
    if config.act == "bug":
        raise RuntimeError("a bug")
    if config.act == "interrupt":
        raise KeyboardInterrupt
    if config.act == "work":
        work()
    return 1 if config.act == "fault" else None


def work() -> None:
    with StopRequest() as stop:
        sys.stdout.write("working\n")
        sys.stdout.flush()
        while not stop.requested:
            time.sleep(0.01)
    sys.stdout.write("saved\n")


if __name__ == "__main__":
    run_command(main, Tiny, "tiny", config_package="tiny_configs")
