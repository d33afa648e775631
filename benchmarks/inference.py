"""Compare the speed of inference with all patches in one batch with that of inference patch by patch, and with that of the bare
networks."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import GridAction
from adafocus_env.build import DEMO_FRAMES
from adafocus_env.clips.store import ClipSource
from agents.evaluation.inference import classify_crops, glance_at, infer, infer_clips
from agents.policies.networks import PolicyNetwork
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Act, Aim, Section, interleaved
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.optimize import Execution, with_execution

SEQUENTIAL = "step by step, float32"
SAMPLES = 4  # samples of random patches per clip; one does not suffice: of 500 predictions, only the uncertain ones can differ


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections."""
    yield _schemes(settings)
    yield _agreement(settings)
    if settings.precision != "float32":
        yield _precision_on_the_demo(settings)


def _schemes(settings: Settings) -> Section:
    plain, policy = workload.classifier(settings), workload.policy(settings)
    count, length = (2, 4) if settings.quick else (8, 16)
    frames = workload.frames(settings, count, length, plain)
    networks = {name: with_execution(plain, how) for name, how in workload.executions(settings, plain).items()}
    fastest = list(networks)[-1]
    acts: dict[str, Act] = {SEQUENTIAL: partial(workload.step_by_step, plain, policy, frames)}
    acts |= {f"parallel, {name}": partial(infer, network, policy, frames) for name, network in networks.items()}
    glancer, focuser = (workload.bare_backbone(networks[fastest], which, count * length) for which in ("glancer", "focuser"))
    rest = recurrent(plain, policy, count, length)
    acts["all four"] = lambda: [act() for act in (glancer, focuser, rest)]
    clips, batches = workload.clips(settings, 4 * count, length), 4
    acts["from the store"] = lambda: list(infer_clips(networks[fastest], policy, clips, batch_size=-(-len(clips) // batches)))
    title = f"Inference, {count} clips of {length} frames ({settings.allocator} allocator)"
    section = Section(title, times=interleaved(acts, settings.rounds))
    section.times["from the store"] = [time * (1 / batches) for time in section.times["from the store"]]
    exact = [name for name in networks if name.startswith("float32")][-1]
    aims = {fastest: Aim("≥", 4), exact: Aim("≥", 1.3)}
    if settings.allocator == "default":
        aims[workload.DEFAULT] = Aim("≥", 2.2)
    for name in networks:
        section.ratio(SEQUENTIAL, f"parallel, {name}", aim=None if plain.device.type == "cuda" else aims.get(name))
    section.ratio(f"parallel, {fastest}", "all four", over=f"bare networks, backbones in {fastest}", aim=Aim("≤", 1.15))
    return section.ratio("from the store", f"parallel, {fastest}", name=f"a batch of {batches}, prefetched from the store")


def recurrent(network: Classifier, policy: PolicyNetwork, count: int, length: int) -> Act:
    """Return a function that runs only the policy and the head, on tensors of ``count`` clips in memory."""
    maps = torch.rand(count, length, *policy.architecture.map_shape, device=network.device)
    glances = torch.rand(count, length, network.glancer.vector_size, device=network.device)
    focus_vectors = torch.rand(count, length, network.focuser.vector_size, device=network.device)

    @torch.inference_mode()
    def act() -> None:
        policy.act(maps)
        network.classify(glances, focus_vectors)

    return act


def _agreement(settings: Settings) -> Section:
    """Measure how often two schemes of inference, or two precisions, select the same actions.

    The networks have random weights, so the scores of two cells are often nearly equal.
    """
    plain, policy = workload.classifier(settings), workload.policy(settings)
    frames = workload.frames(settings, *((2, 4) if settings.quick else (8, 16)), plain)
    actions, scores = workload.step_by_step(plain, policy, frames)
    section = Section("Agreement with step by step, float32, networks with random weights")
    for name, how in workload.executions(settings, plain).items():
        found, exact = infer(with_execution(plain, how), policy, frames), name.startswith("float32")
        equal = 100 * (found.actions == actions).float().mean().item()
        section.figure(f"{name}: equal actions", equal, "%", aim=Aim("≥", 100) if exact else None)
        difference = ((found.logits - scores).abs().max() / scores.abs().max()).item()
        section.figure(f"{name}: largest difference of scores, over the largest", difference, "", aim=Aim("≤", 1e-4) if exact else None)
    return section


def _precision_on_the_demo(settings: Settings) -> Section:
    """Measure top-1 accuracy and predictions of the demo classifier in the low precision, with patches on the targets and with random
    patches."""
    plain = checkpoint.load("demo", torch.device("cpu"))
    low = with_execution(plain, Execution(settings.precision, channels_last=True))
    clips = workload.demo_clips(settings, "test", DEMO_FRAMES)
    action, rng = GridAction(workload.GRID, plain.architecture.size, plain.architecture.patch_size), np.random.default_rng(0)
    cells = {
        "at the targets": [np.stack([action.nearest(np.asarray(clips.truth(clip))) for clip in range(len(clips))])],
        "at random": [action.sample(rng, (len(clips), clips.num_frames)) for _ in range(SAMPLES)],
    }
    section = Section(f"What {settings.precision} costs: the demo classifier on {len(clips)} demo clips")
    for name, samples in cells.items():
        labels = torch.from_numpy(clips.labels).repeat(len(samples))
        exact, rounded = (torch.cat([_predictions(network, clips, action, some) for some in samples]) for network in (plain, low))
        lost = 100 * ((exact == labels).float().mean() - (rounded == labels).float().mean()).item()
        section.figure(f"patches {name}: top-1 lost", lost, "points", over="float32", aim=Aim("≤", 0.5))
        equal = 100 * (exact == rounded).float().mean().item()
        section.figure(f"patches {name}: equal predictions", equal, "%", over="float32", aim=Aim("≥", 99))
    return section


@torch.inference_mode()
def _predictions(network: Classifier, clips: ClipSource, action: GridAction, cells: NDArray[np.int64]) -> Tensor:
    """Return the predicted class (n,) of every clip with patches at ``cells`` (n, T)."""
    found = []
    for rows in np.array_split(np.arange(len(clips)), -(-len(clips) // 64)):
        frames = network.normalise(torch.stack([clips.frames(int(clip)) for clip in rows]))
        _, vectors = glance_at(network, frames, frames.shape[1])
        corners = torch.from_numpy(action.corners_of(cells[rows]))
        found.append(classify_crops(network, frames, vectors, corners)[:, -1].argmax(-1))
    return torch.cat(found)


if __name__ == "__main__":
    main("inference")
