"""Comparison of ONNX files, which ONNX Runtime runs, with the PyTorch modules from which they were exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.exporting.modules import PolicyModule, Signature
from agents.policies.networks import patch_mask_below
from classifiers.classifier import Classifier
from classifiers.errors import refuse_if

TOLERANCE = 1e-4  # largest allowed difference in probabilities, and in locations as fractions of their range
CLIPS = 3  # number of clips; it differs from the number in the example inputs of the signatures

Call = Callable[..., tuple[Tensor, ...]]


@torch.no_grad()
def compare(classifier: Classifier, modules: Mapping[str, Signature], files: Mapping[str, bytes]) -> dict[str, float]:
    """Return the largest difference that each ONNX file causes in the probabilities of the policy and of the head.

    One ONNX file at a time replaces its PyTorch module, while the other networks remain PyTorch modules. The clips are random noise of
    several sizes.

    Args:
        classifier: The frozen classifier.
        modules: The modules that `agents.exporting.modules.signatures` returns.
        files: Maps the names of the modules to the contents of the ONNX files.

    Raises:
        InputError: If a file causes a difference of more than `TOLERANCE`. The message names all files with such a difference, and their
            differences.
    """
    original = {name: torch_call(signature) for name, signature in modules.items()}
    exported = {name: onnx_call(file) for name, file in files.items()}
    policy = modules["policy"].module
    assert isinstance(policy, PolicyModule)
    glance_frames, frames = (random_clips(classifier, modules[name].inputs["frames"].shape[1]) for name in ("glancer", "focuser"))
    maps, glances = original["glancer"](frames=glance_frames)
    *chosen, corners, mask = original["policy"](maps=maps)
    [vectors] = original["focuser"](frames=frames, corners=corners, patch_mask=mask)

    def classify(head: Call, glances: Tensor, vectors: Tensor) -> Tensor:
        return head(glance_vectors=glances, focus_vectors=vectors, patch_mask=mask)[0]

    probabilities = classify(original["head"], glances, vectors)
    their_maps, their_glances = exported["glancer"](frames=glance_frames)
    *their_choice, their_corners, their_mask = exported["policy"](maps=maps)
    [their_vectors] = exported["focuser"](frames=frames, corners=corners, patch_mask=mask)
    differences = {
        "glancer": max(
            _largest(original["policy"](maps=their_maps)[:-2], chosen),
            _largest([classify(original["head"], their_glances, vectors)], [probabilities]),
        ),
        "policy": max(_largest(their_choice, chosen), _misplaced(policy, their_choice, their_corners, their_mask)),
        "focuser": _largest([classify(original["head"], glances, their_vectors)], [probabilities]),
        "head": _largest([classify(exported["head"], glances, vectors)], [probabilities]),
    }
    refuse_if(
        not all(each <= TOLERANCE for each in differences.values()),
        f"format=onnx: the files differ from PyTorch by more than {TOLERANCE:g} in probabilities: "
        f"{', '.join(f'{name} {each:.1e}' for name, each in differences.items())}; nothing was written. Choose format=folder, or other "
        "versions of torch, onnxscript and onnxruntime",
    )
    return differences


def torch_call(signature: Signature) -> Call:
    """Return a function that calls the module and always returns a tuple."""

    def call(**inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = signature.module(**inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call


def onnx_call(file: bytes) -> Call:
    """Return a function that runs an ONNX file on the CPU. It takes and returns tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def call(**inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
        return tuple(map(torch.from_numpy, outputs))

    return call


def random_clips(classifier: Classifier, num_frames: int) -> Tensor:
    """Return the pixels (`CLIPS`, num_frames, H, W, 3) of frames that show noise of several sizes. The noise is the same in every call."""
    size, generator = classifier.architecture.size, torch.Generator().manual_seed(0)
    noise = [torch.rand(CLIPS * num_frames, 3, side, side, generator=generator) for side in (2, 8, size)]
    frames = torch.stack([F.interpolate(each, (size, size), mode="bilinear") for each in noise]).mean(0)
    return (255 * frames).to(torch.uint8).movedim(1, -1).contiguous().unflatten(0, (CLIPS, num_frames))


def _largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference between corresponding entries; NaN if any of them is NaN."""
    return float(torch.cat([(one - other).abs().flatten() for one, other in zip(found, expected, strict=True)]).max())


def _misplaced(policy: PolicyModule, choice: Sequence[Tensor], corners: Tensor, mask: Tensor) -> float:
    """Return the distance between the corners that a policy outputs and the corners that follow from its probabilities or locations.

    On a grid, the distance is the difference between the highest probability and the probability of the selected cell. With continuous
    locations, the distance is a fraction of the range of locations. The distance is 1 if the patch mask does not follow from P(skip).
    """
    found = choice[0]
    if policy.policy.skips and not torch.equal(mask, patch_mask_below(choice[1], policy.policy.keep_threshold)):
        return 1.0
    if policy.policy.interpolated:
        return _largest([found * policy.room], [corners]) / max(1, policy.room)
    if policy.policy.grid is None:
        inside = found * policy.room - corners  # between 0 and 1 if the corners are correct
        return float(torch.maximum(-inside, inside - 1).clamp_min(0).max()) / max(1, policy.room)
    cells = (corners[:, :, None] == policy.cells).all(-1).to(torch.int64).argmax(-1, keepdim=True)
    return float((found.amax(-1, keepdim=True) - found.gather(-1, cells)).max())
