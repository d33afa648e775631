"""List the modules that run in the evaluation of one demo video with the bundled classifier and a policy with random weights.

    python -m benchmarks.executed_modules

A module counts if at least one of its functions runs in this process, between the opening of the video and the metrics of all policies.
Modules that are only imported do not count. Modules that run only in worker processes, which render and decode videos, do not count either.
"""

import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from adafocus_env.build import build_features, open_clips
from adafocus_env.demo.videos import DemoTask, demo
from agents.evaluation.evaluate import evaluate
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from classifiers import checkpoint

PACKAGES = ("classifiers", "adafocus_env", "agents")


def executed_modules(call: Callable[[], object]) -> list[str]:
    """Return the sorted names of those modules in `PACKAGES` that run a function during ``call``, in any thread of this process."""
    names: set[str] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # functions only, not bodies of modules or classes
            names.add(frame.f_globals.get("__name__", ""))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return sorted(name for name in names if name.partition(".")[0] in PACKAGES)


def evaluate_one_video() -> None:
    """Render, decode and evaluate one demo video, with a feature bank in memory."""
    classifier = checkpoint.load("demo")
    clips = open_clips(demo(DemoTask(train_videos=10, test_videos=1)), "test", num_frames=8, size=classifier.architecture.size)
    features = build_features(classifier, clips, bank=True)
    torch.manual_seed(0)
    evaluate(features, PolicyNetwork(PolicyArchitecture(features.map_shape), 7).eval().requires_grad_(False), seed=0)


def main() -> None:
    """Print the modules and their number."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAFOCUS_CACHE"] = folder
        names = executed_modules(evaluate_one_video)
    Console(highlight=False).print("\n".join([*names, f"{len(names)} modules"]))


if __name__ == "__main__":
    main()
