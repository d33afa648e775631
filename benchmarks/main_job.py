"""Compare the time of the main job on the demo videos, with a warm cache, with the time of the network calls that the job needs."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import wraps
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
from agents.policies.networks import PolicyNetwork, architecture_of
from agents.train_ppo import main as train_ppo
from benchmarks.command import Settings, main
from benchmarks.results import Act, Aim, Section, Time, Times, timed
from benchmarks.workload import bare_backbone, bare_update
from classifiers import checkpoint

FRAMES, PATCHES, UPDATES = 64, 392, 10  # numbers per call of the bare networks; these batch sizes are the fastest
ROUNDS = 3  # maximum number of rounds, because the job takes nearly a minute


def measure(settings: Settings) -> Iterator[Section]:
    """Measure training and evaluation, without imports, rendering and decoding."""
    with tempfile.TemporaryDirectory() as folder:
        shorter = ["ppo.total_steps=2048"] if settings.quick else []
        config = compose_config(TrainPPO, "train_ppo", [f"run={folder}/run", "force=true", f"device={settings.device}", *shorter])
        needs = _needs(config)
        acts = _bare(config, needs)
        times: Times = {"main job": [], **{name: [] for name in acts}}
        for _ in range(min(settings.rounds, ROUNDS)):
            times["main job"].append(_job(config))
            for name, (act, count) in acts.items():
                wall = timed(act).wall * count
                times[name].append(Time(wall, wall))
    shared = [one + other for one, other in zip(times["glances"], times["updates"], strict=True)]
    for name in ("distinct patches", "all cells"):
        times[f"bare: {name}"] = [one + other for one, other in zip(shared, times[name], strict=True)]
    note = (
        f"A bank fills all cells of a step at once; the job needs {needs['distinct'] / needs['cells']:.0%} of them. Bare times are those "
        "of some calls, scaled up."
    )
    section = Section("Main job, demo, warm cache", note, times)
    aim = None if settings.quick else Aim("≤", 1.5)
    section.ratio("main job", "bare: distinct patches", over="bare calls, every distinct patch focused once", aim=aim)
    section.ratio("main job", "bare: all cells", over="bare calls, every cell focused once")
    yield section.ratio("updates", "main job", name="bare updates of the policy: share of the job")


def _job(config: TrainPPO) -> Time:
    """Run the job and return the wall-clock time that it reports."""
    with redirect_stdout(StringIO()):
        train_ppo(config)
    seconds = json.loads((Path(config.run) / "result.json").read_text(encoding="utf-8"))["seconds"]
    return Time(*[seconds["train"] + seconds["evaluate"]] * 2)


def _needs(config: TrainPPO) -> dict[str, int]:
    """Run the job once. Count how many glances are computed, how many cells are focused, how many distinct cells are read, and how many
    minibatches are processed."""
    needs = dict.fromkeys(("frames", "cells", "minibatches"), 0)
    reads: list[tuple[MemoryBank, np.ndarray]] = []

    def counted(name: str, act: Callable[..., Any], size: Callable[[Any], int]) -> Callable[..., Any]:
        @wraps(act)
        def call(*arguments: Any, **keywords: Any) -> Any:
            result = act(*arguments, **keywords)
            needs[name] += size(result)
            return result

        return call

    def recorded(bank: MemoryBank, clips: Any, steps: Any, actions: Any, act: Callable[..., Any] = MemoryBank.focus_vectors) -> Any:
        cells = np.broadcast_arrays(clips, steps, actions)
        reads.append((bank, np.unique(np.ravel_multi_index(cells, (len(bank.clips), *bank.layout.focus_vectors[:2])))))
        return act(bank, clips, steps, actions)

    glance = counted("frames", LiveFeatures.glance, lambda glances: len(glances[0]))
    focus = counted("cells", LiveFeatures.cell_focus_vectors, lambda vectors: vectors.shape[0] * vectors.shape[1])
    backward = counted("minibatches", torch.Tensor.backward, lambda _: 1)
    with (
        mock.patch("adafocus_env.features.live.idle_workers", lambda device: 1),  # calls in other processes would not be counted
        mock.patch.multiple(LiveFeatures, glance=glance, cell_focus_vectors=focus),
        mock.patch.object(MemoryBank, "focus_vectors", recorded),
        mock.patch.object(torch.Tensor, "backward", backward),
    ):
        _job(config)
    banks = {id(bank): [cells for other, cells in reads if other is bank] for bank, _ in reads}
    return {**needs, "distinct": sum(len(np.unique(np.concatenate(cells))) for cells in banks.values())}


def _bare(config: TrainPPO, needs: dict[str, int]) -> dict[str, tuple[Act, float]]:
    """Return functions that run the bare networks, and the number of times that the job needs each of these functions."""
    device = choose_device(config.device)
    network = checkpoint.load("demo", device).freeze()
    with torch.no_grad():
        images = torch.zeros(config.ppo.batch_size or 256, 3, *[network.architecture.glance_size] * 2, device=device)
        maps = network.glance(images)[0].unflatten(0, (-1, config.data.num_frames))
    share = network.architecture.patch_size / network.architecture.size
    architecture = architecture_of((maps.shape[2], maps.shape[3], maps.shape[4]), share, config.network)
    policy = PolicyNetwork(architecture, config.env.grid).to(device)
    focus = bare_backbone(network, "focuser", PATCHES)
    return {
        "glances": (bare_backbone(network, "glancer", FRAMES), needs["frames"] / FRAMES),
        "distinct patches": (focus, needs["distinct"] / PATCHES),
        "all cells": (focus, needs["cells"] / PATCHES),
        "updates": (bare_update(policy, maps, epochs=UPDATES, minibatches=1), needs["minibatches"] / UPDATES),
    }


if __name__ == "__main__":
    main("main_job")
