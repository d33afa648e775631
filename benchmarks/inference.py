"""Inference: all patches in one batch against one patch after the other, and against the bare networks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import GridAction
from adafocus_env.build import DEMO_FRAMES
from adafocus_env.clips.store import ClipSource
from agents.evaluation.inference import focus_at, glance_at, infer, infer_clips
from agents.policies.networks import PolicyNetwork
from benchmarks import workload
from benchmarks.bare import bare_focus, bare_glance
from benchmarks.clock import Act, Time, interleaved
from benchmarks.command import Settings, main
from benchmarks.released import step_by_step
from benchmarks.sections import Section, at_least, at_most
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.optimize import Execution, with_execution

SEQUENTIAL = "step by step, float32"
DRAWS = 4  # of random patches: predictions differ where a classifier is in doubt, and 500 clips are few for that


def measure(settings: Settings) -> Iterator[Section]:
    """All sections; with the default allocator only the first one, which the tuned one reports beside its own."""
    yield _schemes(settings)
    if settings.allocator == "default":
        return
    if sys.platform == "linux" and not settings.quick:
        yield _with_default_allocator(settings)
    yield _agreement(settings)
    if settings.precision != "float32":
        yield _precision_on_the_demo(settings)


def _schemes(settings: Settings) -> Section:
    plain, policy = workload.classifier(settings), workload.policy(settings)
    count, length = (2, 4) if settings.quick else (8, 16)
    frames = workload.frames(settings, count, length, plain)
    networks = {name: with_execution(plain, how) for name, how in workload.executions(settings, plain).items()}
    best = list(networks)[-1]
    acts: dict[str, Act] = {SEQUENTIAL: partial(step_by_step, plain, policy, frames)}
    acts |= {f"parallel, {name}": partial(infer, network, policy, frames) for name, network in networks.items()}
    backbones = bare_glance(networks[best], count * length), bare_focus(networks[best], count * length)
    recurrent = _recurrent(plain, policy, count, length)
    acts["backbones"], acts["all four"] = lambda: [act() for act in backbones], lambda: [act() for act in (*backbones, recurrent)]
    clips, batches = workload.clips(settings, 4 * count, length), 4
    acts["from the store"] = lambda: list(infer_clips(networks[best], policy, clips, batch_size=-(-len(clips) // batches)))
    section = Section(f"Inference, {count} clips of {length} frames ({settings.allocator} allocator)")
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    section.times["from the store"] = [Time(time.wall / batches, time.cpu / batches) for time in section.times["from the store"]]
    exact = [name for name in networks if name.startswith("float32")][-1]
    aims = {best: at_least(4), exact: at_least(1.3)}
    if settings.allocator == "default":
        aims[workload.DEFAULT] = at_least(2.2)
    for name in networks:
        aim = None if plain.device.type == "cuda" else aims.get(name)
        section.ratio(SEQUENTIAL, f"parallel, {name}", name="step by step, float32", aim=aim)
    section.ratio(f"parallel, {best}", "all four", over=f"bare networks, backbones in {best}", aim=at_most(1.15))
    section.ratio(f"parallel, {best}", "backbones", over=f"bare backbones, {best}")
    return section.ratio("from the store", f"parallel, {best}", name=f"a batch of {batches}, read ahead from the store")


def _recurrent(network: Classifier, policy: PolicyNetwork, count: int, length: int) -> Act:
    """An act: the policy and the head alone, on tensors that are there."""
    maps = torch.rand(count, length, *policy.architecture.map_shape, device=network.device)
    glances = torch.rand(count, length, network.glancer.vector_size, device=network.device)
    focus_vectors = torch.rand(count, length, network.focuser.vector_size, device=network.device)

    @torch.inference_mode()
    def act() -> None:
        policy.act(maps)
        network.classify(glances, focus_vectors)

    return act


def _with_default_allocator(settings: Settings) -> Section:
    """What a process of its own measures: glibc reads its settings when a process begins."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "benchmarks.inference", "--allocator=default", f"--out={out}", f"--rounds={settings.rounds}"]
        command += [f"--threads={settings.threads}", f"--device={settings.device}", f"--precision={settings.precision}"]
        subprocess.run(command + ([] if settings.compile else ["--no-compile"]), check=True, stdout=subprocess.DEVNULL)
        found = json.loads((Path(out) / "results" / "inference.json").read_text(encoding="utf-8"))["sections"][0]
    return Section.of(found)


def _agreement(settings: Settings) -> Section:
    """How far the schemes and precisions agree, on random networks: near ties between places are many there."""
    plain, policy = workload.classifier(settings), workload.policy(settings)
    frames = workload.frames(settings, *((2, 4) if settings.quick else (8, 16)), plain)
    actions, scores = step_by_step(plain, policy, frames)
    section = Section("The same results: against step by step, float32, networks with random weights")
    for name, how in workload.executions(settings, plain).items():
        found = infer(with_execution(plain, how), policy, frames)
        same = (found.actions == actions).float().mean().item()
        differing = ((found.logits - scores).abs().max() / scores.abs().max()).item()
        low = not name.startswith("float32")
        section.figure(f"{name}: the same places", 100 * same, "%", aim=None if low else at_least(100))
        section.figure(f"{name}: largest difference of scores, over the largest", differing, "", aim=None if low else at_most(1e-4))
    return section


def _precision_on_the_demo(settings: Settings) -> Section:
    """Top-1 and predictions of the demo classifier in the low precision, patches at the targets and at random (several draws)."""
    plain = checkpoint.load("demo", torch.device("cpu"))
    low = with_execution(plain, Execution(settings.precision, channels_last=True))
    clips = workload.demo_clips(settings, "test", DEMO_FRAMES)
    chosen = range(len(clips))
    action, rng = GridAction(workload.GRID, plain.architecture.size, plain.architecture.patch_size), np.random.default_rng(0)
    places = {
        "at the targets": [np.stack([action.nearest(np.asarray(clips.truth(clip))) for clip in chosen])],
        "at random": [action.draw(rng, (len(chosen), clips.num_frames)) for _ in range(DRAWS)],
    }
    section = Section(f"What {settings.precision} costs: the demo classifier on {len(chosen)} demo clips")
    for name, draws in places.items():
        labels = torch.from_numpy(clips.labels[list(chosen)]).repeat(len(draws))
        one, other = (torch.cat([_predictions(network, clips, chosen, action, cells) for cells in draws]) for network in (plain, low))
        lost = 100 * ((one == labels).float().mean() - (other == labels).float().mean()).item()
        section.figure(f"patches {name}: top-1 lost", lost, "points", over="float32", aim=at_most(0.5))
        equal = 100 * (one == other).float().mean().item()
        section.figure(f"patches {name}: equal predictions", equal, "%", over="float32", aim=at_least(99))
    return section


@torch.inference_mode()
def _predictions(network: Classifier, clips: ClipSource, chosen: range, action: GridAction, cells: NDArray[np.int64]) -> Tensor:
    """The class (n,) of every chosen clip with patches at ``cells`` (n, T)."""
    corners = torch.from_numpy(action.corners_of(cells))
    found = []
    for start in range(0, len(chosen), 64):
        frames = network.normalise(torch.stack([clips.frames(clip) for clip in chosen[start : start + 64]]))
        _, vectors = glance_at(network, frames, frames.shape[1])
        found.append(focus_at(network, frames, vectors, corners[start : start + 64])[:, -1].argmax(-1))
    return torch.cat(found)


if __name__ == "__main__":
    main(["inference"])
