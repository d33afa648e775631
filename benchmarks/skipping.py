"""Compare the time and the multiply-adds of inference with patches in a share of the frames with those of inference with patches in all
frames."""

from collections.abc import Iterator
from functools import partial

import torch

from agents.evaluation.budgets import solve_threshold
from agents.evaluation.inference import glance_at, infer
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Aim, Section, interleaved
from classifiers.optimize import choose_execution, with_execution

SHARES = (0.25, 0.47, 0.67)
PATCH_SIZE = 128  # at this size, the focuser takes most of the time


def measure(settings: Settings) -> Iterator[Section]:
    """Measure inference with a policy that skips frames. Each threshold on P(skip) gives another share of frames with a patch."""
    changes = {} if settings.quick else {"patch_size": PATCH_SIZE}
    network, policy = workload.classifier(settings, **changes), workload.policy(settings, skips=True)
    count, length = (2, 8) if settings.quick else (4, 16)
    frames = workload.frames(settings, count, length, network)
    with torch.inference_mode():
        _, skip = policy.choose(glance_at(network, frames, length)[0])
    thresholds = {f"{share:.0%} kept": solve_threshold(skip.numpy(force=True), share) for share in SHARES}
    for compiled in (False, True) if settings.compile else (False,):
        run = partial(infer, with_execution(network, choose_execution(network, compile=compiled)), policy, frames)
        acts = {"every frame": partial(run, keep_threshold=2.0)}
        acts |= {name: partial(run, keep_threshold=threshold) for name, threshold in thresholds.items()}
        title = f"Skipped frames, {count} clips of {length} frames, float32, {'compiled' if compiled else 'eager'}"
        section = Section(title, times=interleaved(acts, settings.rounds))
        macs = {name: act().macs.sum() for name, act in acts.items()}
        for name in thresholds:
            section.ratio(name, "every frame", aim=Aim("≤", 0.65) if name.startswith("47%") else None)
            section.figure(f"{name}: multiply-adds", float(macs[name] / macs["every frame"]), "×", over="every frame")
        yield section


if __name__ == "__main__":
    main("skipping")
