"""The metadata of ONNX files: everything that a program needs to prepare the inputs and to interpret the outputs."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from adafocus_env.videos.frame_sampling import ORDERS
from agents.exporting.modules import Counts
from agents.exporting.onnx_files import OPSET, PACKAGES
from agents.exporting.trained import Trained
from classifiers.classifier import hash_of

METADATA_FILE = "metadata.json"


def metadata_of(trained: Trained) -> dict[str, Any]:
    """Return the metadata as plain values. `docs/export.md` explains the keys."""
    classifier, policy, sizes = trained.classifier, trained.policy, trained.classifier.architecture
    counts, order = Counts.of(classifier, policy), ORDERS[classifier.clip_format.order]
    return {
        "classes": list(classifier.classes),
        "num_frames": counts.frames, "glance_frames": counts.glances, "decisions": counts.decisions,
        "frame_sampling": "middle of equal segments",
        "frame_order": order(counts.frames).tolist(), "glance_order": order(counts.glances).tolist(),
        "frames": "RGB, uint8, channels last",
        "short_side": round(sizes.size * classifier.clip_format.margin), "size": sizes.size, "crop": "centre",
        "mean": list(sizes.mean), "std": list(sizes.std),
        "patch_size": sizes.patch_size, "grid": policy.grid,
        "skips": policy.skips, "keep_threshold": policy.keep_threshold if policy.skips else None, "skipped": trained.skipped,
        "classifier": trained.card.fingerprint, "policy": hash_of(policy.state_dict()),
        "opset": OPSET, "versions": {name: importlib.metadata.version(name) for name in ("torch", *PACKAGES)},
    }  # fmt: skip
