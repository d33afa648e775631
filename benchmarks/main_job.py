"""The main job on the demo videos, warm cache, against the network calls that it cannot do without."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from adafocus_env.build import choose_device
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank
from agents.config.command import compose_config
from agents.config.settings import TrainPPO
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.train_ppo import main as train_ppo
from benchmarks.bare import bare_focus, bare_glance
from benchmarks.clock import Time, Times, timed
from benchmarks.command import Settings, main
from benchmarks.ppo import update_bare
from benchmarks.sections import Section, at_most
from classifiers import checkpoint

FRAMES, PATCHES = 64, 392  # in a call of the bare networks, where they are at their best
ROUNDS = 3  # of the job, at most: it takes most of a minute


def measure(settings: Settings) -> Iterator[Section]:
    """Training and evaluation; imports, rendering and decoding are left out."""
    steps = 2048 if settings.quick else None
    with tempfile.TemporaryDirectory() as place:
        config = _config(settings, Path(place), steps)
        needs = _needs(config)
        acts = _bare(config, needs, settings)
        times: Times = {"main job": [], **{name: [] for name in acts}}
        for _ in range(1 if settings.quick else min(settings.rounds, ROUNDS)):
            times["main job"].append(_job(config))
            for name, (act, count) in acts.items():
                time = timed(act)
                times[name].append(Time(time.wall * count, time.wall * count))
    shared = ("bare: glances", "bare: updates")
    times["bare: distinct patches"] = _sum(times, *shared, "bare: distinct patches alone")
    times["bare: all cells"] = _sum(times, *shared, "bare: all cells alone")
    share = needs["distinct"] / needs["cells"]
    note = f"A bank fills all cells of a step at once; the job looks at {share:.0%} of them. Bare times are of some calls, scaled up."
    section = Section("Main job, demo, warm cache", note)
    section.times = times
    aim = None if settings.quick else at_most(1.5)
    section.ratio("main job", "bare: distinct patches", over="bare calls, each distinct patch focused once", aim=aim)
    section.ratio("main job", "bare: all cells", over="bare calls, every cell focused once")
    yield section.ratio("bare: updates", "main job", name="bare updates of the policy: share of the job")


def _config(settings: Settings, place: Path, steps: int | None) -> TrainPPO:
    shorter = [f"ppo.total_steps={steps}"] if steps else []
    return compose_config(TrainPPO, "train_ppo", [f"run={place / 'run'}", "force=true", f"device={settings.device}", *shorter])


def _job(config: TrainPPO) -> Time:
    """Runs it, and tells what it says of its own time: that of the clock on the wall."""
    with redirect_stdout(StringIO()):
        train_ppo(config)
    seconds = json.loads((Path(config.run) / "result.json").read_text(encoding="utf-8"))["seconds"]
    whole = seconds["train"] + seconds["evaluate"]
    return Time(whole, whole)


def _needs(config: TrainPPO) -> dict[str, int]:
    """Runs the job once and counts: frames glanced at, cells focused, distinct ones that were asked for, minibatches."""
    asked: dict[int, list[np.ndarray]] = {}
    needs = {"frames": 0, "cells": 0, "distinct": 0, "minibatches": 0}
    focus_vectors, glance, cells, backward = (
        MemoryBank.focus_vectors,
        LiveFeatures.glance,
        LiveFeatures.cell_focus_vectors,
        torch.Tensor.backward,
    )

    def counted_focus_vectors(bank: MemoryBank, clips: Any, steps: Any, actions: Any) -> torch.Tensor:
        numbers = np.broadcast_arrays(clips, steps, actions)
        asked.setdefault(id(bank), []).append(np.unique(np.ravel_multi_index(numbers, (len(bank.clips), *bank.layout.focus_vectors[:2]))))
        kept.append(bank)
        return focus_vectors(bank, clips, steps, actions)

    def counted(name: str, act: Callable[..., Any], size: Callable[[Any], int]) -> Callable[..., Any]:
        def called(*arguments: Any, **lookup: Any) -> Any:
            result = act(*arguments, **lookup)
            needs[name] += size(result)
            return result

        return called

    kept: list[MemoryBank] = []  # so that no two have the same id
    with (
        mock.patch("adafocus_env.features.live.idle_workers", lambda device: 1),  # so that no count is lost
        mock.patch.object(MemoryBank, "focus_vectors", counted_focus_vectors),
        mock.patch.object(LiveFeatures, "glance", counted("frames", glance, lambda seen: len(seen[0]))),
        mock.patch.object(LiveFeatures, "cell_focus_vectors", counted("cells", cells, lambda seen: seen.shape[0] * seen.shape[1])),
        mock.patch.object(torch.Tensor, "backward", counted("minibatches", backward, lambda _: 1)),
    ):
        _job(config)
    needs["distinct"] = sum(len(np.unique(np.concatenate(some))) for some in asked.values())
    return needs


def _bare(config: TrainPPO, needs: dict[str, int], settings: Settings) -> dict[str, tuple[Callable[[], object], float]]:
    """Acts, and how many of each the job needs."""
    device = choose_device(settings.device)
    network = checkpoint.load("demo", device).freeze()
    frames, length = config.data.num_frames, config.ppo.batch_size or 256
    with torch.no_grad():
        maps, _ = network.glance(torch.zeros(length, 3, *[network.architecture.glance_size] * 2, device=device))
    architecture = PolicyArchitecture.from_config((maps.shape[1], maps.shape[2], maps.shape[3]), config.network)
    policy = PolicyNetwork(architecture, config.env.grid).to(device)
    update = update_bare(policy, maps.unflatten(0, (-1, frames)), epochs=10, minibatches=1)
    focus = bare_focus(network, PATCHES)
    return {
        "bare: glances": (bare_glance(network, FRAMES), needs["frames"] / FRAMES),
        "bare: distinct patches alone": (focus, needs["distinct"] / PATCHES),
        "bare: all cells alone": (focus, needs["cells"] / PATCHES),
        "bare: updates": (update, needs["minibatches"] / 10),
    }


def _sum(times: Times, *names: str) -> list[Time]:
    rounds = zip(*(times[name] for name in names), strict=True)
    return [Time(sum(each.wall for each in some), sum(each.cpu for each in some)) for some in rounds]


if __name__ == "__main__":
    main(["main_job"])
