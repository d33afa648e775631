"""The modules that are exported. The modules are run on whole clips, in the order glancer, policy, focuser, head.

Each of N clips has T frames of the focuser, G frames of the glancer, and D decisions with f = T / D frames per decision. T, G, D and f are
constants in a file; N may vary. The modules compute the same results as `agents.evaluation.inference.infer`. Glancer and focuser take
decoded pixels, which they normalise, and the focuser crops the patches. `signatures` returns the names and shapes of inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adafocus_env.classify import classify_glances, classify_step, find_skipped, repeat_last
from agents.evaluation.inference import count_decisions, glance_at, patches_of
from agents.policies.networks import PolicyNetwork, patch_mask_below
from classifiers.classifier import Classifier
from classifiers.crop import crop_at_corners


@dataclass(frozen=True)
class Counts:
    """Numbers of frames and decisions per clip.

    Attributes:
        frames: T, frames of the focuser.
        glances: G, frames of the glancer.
        decisions: D, decisions of the policy.
    """

    frames: int
    glances: int
    decisions: int

    @classmethod
    def of(cls, classifier: Classifier, policy: PolicyNetwork) -> Counts:
        """Return the numbers of frames and decisions in the clips with which a classifier and its policy were trained.

        Raises:
            InputError: If the frames cannot be divided equally among the decisions.
        """
        frames = classifier.clip_format.num_frames
        glances = classifier.clip_format.glance_frames or frames
        return cls(frames, glances, count_decisions(classifier, policy, frames, glances))

    @property
    def frames_per_decision(self) -> int:
        """Return f, the number of frames per decision. The patch has the same location in all frames of a decision."""
        return self.frames // self.decisions


class GlanceModule(nn.Module):
    """Normalise frames, resize them to the glancer's input size, and compute glance maps and glance vectors.

    Args:
        classifier: The frozen classifier.
        counts: Numbers of frames and decisions per clip.
    """

    def __init__(self, classifier: Classifier, counts: Counts) -> None:
        super().__init__()
        self.classifier, self.counts = classifier, counts

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return glance maps (N, D, G/D·C, h, w) and glance vectors (N, D, C) for uint8 frames (N, G, H, W, 3)."""
        return glance_at(self.classifier, self.classifier.normalise(frames.movedim(-1, -3)), self.counts.decisions)


class PolicyModule(nn.Module):
    """Compute the corners of the patches and the patch mask from glance maps.

    The first output contains the probabilities of the cells of a grid or, with continuous actions, the locations in [0, 1]. The comparison
    of a file with PyTorch needs this output. For a policy that skips, the second output is P(skip) for every possible number of patches so
    far, from 0 to D − 1. The threshold on P(skip) is a constant in the file.

    Args:
        policy: The policy.
        classifier: The classifier, whose sizes determine the corners.
    """

    cells: Tensor

    def __init__(self, policy: PolicyNetwork, classifier: Classifier) -> None:
        super().__init__()
        self.policy, self.room = policy, classifier.architecture.size - classifier.architecture.patch_size
        cells = torch.arange((policy.grid or 0) ** 2)
        self.register_buffer("cells", patches_of(policy, classifier, cells)[0] if policy.grid else cells)

    def forward(self, maps: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for glance maps (N, D, …).

        The outputs are, in this order: probabilities (N, D, G²) or locations (N, D, 2); P(skip) (N, D, D), if the policy skips; corners
        (N, D, 2); and the patch mask (N, D).
        """
        output = self.policy(maps)
        if not self.policy.skips:
            found, corners = self._look(output)
            return found, corners, torch.ones_like(corners[..., 0], dtype=torch.bool)
        found, corners = self._look(output[:, :, 0, :-1])
        skip = self._skip(output)
        return found, skip, corners, patch_mask_below(skip, self.policy.keep_threshold)

    def _look(self, output: Tensor) -> tuple[Tensor, Tensor]:
        if self.policy.grid is None:
            corners = output * self.room
            return output, corners if self.policy.interpolated else corners.floor().long()
        return output.softmax(-1), self.cells[output.argmax(-1)]

    def _skip(self, output: Tensor) -> Tensor:
        if self.policy.grid is None:
            return torch.special.ndtr((output[..., 2] - 0.5) / self.policy.std)
        return (output[..., -1] - output[..., :-1].amax(-1)).sigmoid()


class FocusModule(nn.Module):
    """Normalise frames, crop the patches out of them, and compute the focus vectors of the patches. Skipped frames are not processed.

    Args:
        classifier: The frozen classifier.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, frames: Tensor, corners: Tensor, patch_mask: Tensor) -> Tensor:
        """Return the focus vectors (N, D, f, F), which are 0 for skipped frames.

        Args:
            frames: Pixels of the focuser's frames, uint8 (N, T, H, W, 3).
            corners: Corners of the patches (N, D, 2), in whole pixels, or real numbers if patches are interpolated.
            patch_mask: (N, D), the decisions with a patch.
        """
        repeats, mask = frames.shape[1] // corners.shape[1], patch_mask.flatten()
        decisions = mask.nonzero()[:, 0]
        if torch.compiler.is_exporting():
            torch._check(decisions.shape[0] > 0)  # otherwise, the export fails in layers with a special case for no images
        source = (decisions[:, None] * repeats + torch.arange(repeats, device=decisions.device)).flatten()
        images = self.classifier.normalise(frames.movedim(-1, -3)).flatten(0, 1)
        corners_of_patches = corners.flatten(0, 1)[decisions].repeat_interleave(repeats, dim=0).to(images.dtype)
        patches = crop_at_corners(images, source, corners_of_patches, self.classifier.architecture.patch_size)
        vectors = self.classifier.focus(patches, repeats).unflatten(0, (-1, repeats))
        zeros_and_vectors = torch.cat([vectors.new_zeros(1, *vectors.shape[1:]), vectors])
        return zeros_and_vectors[mask.cumsum(0) * mask].unflatten(0, corners.shape[:2])


class HeadModule(nn.Module):
    """Compute class probabilities after every frame from glance vectors and focus vectors.

    Args:
        classifier: The frozen classifier.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.

    Raises:
        InputError: If the name is unknown.
    """

    def __init__(self, classifier: Classifier, skipped: str) -> None:
        super().__init__()
        self.classifier, self.skipped = classifier, find_skipped(skipped)

    def forward(self, glance_vectors: Tensor, focus_vectors: Tensor, patch_mask: Tensor) -> Tensor:
        """Return the class probabilities (N, T, K) after every frame.

        Args:
            glance_vectors: (N, D, C).
            focus_vectors: (N, D, f, F). Entries of skipped frames are not read.
            patch_mask: (N, D), the decisions with a patch.
        """
        repeats = focus_vectors.shape[2]
        glances, mask = (each.repeat_interleave(repeats, dim=1) for each in (glance_vectors, patch_mask))
        vectors = torch.where(mask[..., None], focus_vectors.flatten(1, 2), 0.0)
        if self.skipped == "none":
            return self._patches_only(glances, vectors, mask)
        if self.skipped == "last":
            vectors = repeat_last(vectors, mask, repeats)
        return self.classifier.classify(glances, vectors)[0].softmax(-1)

    def _patches_only(self, glances: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return the class probabilities for a head that takes no step in skipped frames.

        In a skipped frame, the head's state and the probabilities stay the same. Before the first patch, all probabilities are equal.
        """
        state = glances.new_zeros(glances.shape[0], self.classifier.head.state_size)
        classes = len(self.classifier.classes)
        steps = [glances.new_full((1, glances.shape[0], classes), 1 / classes)]
        for glance, vector, seen in zip(glances.unbind(1), vectors.unbind(1), mask.unbind(1), strict=True):
            scores, state = classify_step(self.classifier, glance, vector[None], state, ~seen[None], steps[-1][0])
            steps.append(scores)
        without = classify_glances(self.classifier, glances).softmax(-1)
        last = torch.where(mask.any(1)[:, None], steps.pop()[0], without)
        return torch.stack([*(each[0] for each in steps[1:]), last], dim=1)


@dataclass(frozen=True)
class Signature:
    """A module, the names of its inputs and outputs, and example inputs, which are zeros.

    Attributes:
        module: The module.
        inputs: Maps the name of each input to an example with 2 clips. The number of clips may vary.
        outputs: Names of the outputs.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def signatures(classifier: Classifier, policy: PolicyNetwork, skipped: str) -> dict[str, Signature]:
    """Return the four modules by name, in the order of the data flow.

    Args:
        classifier: The frozen classifier, on the CPU.
        policy: A policy trained on the glance maps of this classifier.
        skipped: Input of the head for skipped frames.

    Raises:
        InputError: If the frames cannot be divided equally among the decisions.
    """
    counts, size = Counts.of(classifier, policy), classifier.architecture.size
    decisions = counts.decisions
    chosen = ("probabilities" if policy.grid else "locations", *(["skip"] if policy.skips else []), "corners", "patch_mask")
    glance_frames, frames = (torch.zeros(2, count, size, size, 3, dtype=torch.uint8) for count in (counts.glances, counts.frames))
    corners = torch.zeros(2, decisions, 2, dtype=torch.float32 if policy.interpolated else torch.int64)
    patch_mask = torch.ones(2, decisions, dtype=torch.bool)
    maps = torch.zeros(2, decisions, *policy.architecture.map_shape)
    vectors = {
        "glance_vectors": torch.zeros(2, decisions, classifier.glancer.vector_size),
        "focus_vectors": torch.zeros(2, decisions, counts.frames_per_decision, classifier.focuser.vector_size),
    }
    patches = {"frames": frames, "corners": corners, "patch_mask": patch_mask}
    return {
        "glancer": Signature(GlanceModule(classifier, counts), {"frames": glance_frames}, ("maps", "glance_vectors")),
        "policy": Signature(PolicyModule(policy, classifier), {"maps": maps}, chosen),
        "focuser": Signature(FocusModule(classifier), patches, ("focus_vectors",)),
        "head": Signature(HeadModule(classifier, skipped), {**vectors, "patch_mask": patch_mask}, ("probabilities",)),
    }
