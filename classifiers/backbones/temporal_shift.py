"""Temporal shift (TSM, arXiv:1811.08383). Some channels of a frame's features are replaced by the same channels of neighbouring frames.

The shift lets an image network use motion, without additional multiply-adds or weights. The shift adds no module to a trunk, so that the
names of the trunk's tensors stay the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classifiers.backbones.efficientnet_lite import LiteBlock
from classifiers.errors import refuse_if


def shift_channels(features: Tensor, num_frames: int, fraction: float) -> Tensor:
    """Move channels between the frames of a clip. Channels never move between clips.

    The first ⌊C · fraction⌋ of C channels take the values of the next frame. The following ⌊C · fraction⌋ channels take the values of the
    previous frame. If a frame has no next or previous frame in the clip, the channels that would take its values are zeros. The other
    channels stay the same.

    Args:
        features: (clips · num_frames, C, h, w), clip by clip.
        num_frames: Frames per clip.
        fraction: Share of the channels that moves in each direction, from 0 to 1/2.

    Returns:
        Features of the same shape.
    """
    moved = int(features.shape[1] * fraction)
    clips = features.unflatten(0, (-1, num_frames))
    of_next = F.pad(clips[:, 1:, :moved], (0, 0, 0, 0, 0, 0, 0, 1))
    of_previous = F.pad(clips[:, :-1, moved : 2 * moved], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([of_next, of_previous, clips[:, :, 2 * moved :]], dim=2).flatten(0, 1)


class TemporalShift:
    """A forward hook that shifts the input of modules. All shifted modules of a backbone share one hook, and the backbone sets its
    ``num_frames``.

    Args:
        fraction: Share of the channels that moves in each direction.

    Attributes:
        num_frames: Frames per clip in the current call.
        modules: Names of the modules whose input is shifted, relative to the trunk.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self.num_frames = 1
        self.modules: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Return the shifted features (clips · num_frames, C, h, w)."""
        return (shift_channels(inputs[0], self.num_frames, self.fraction),)


def put_into(trunk: nn.Module, fraction: float, place: str) -> TemporalShift:
    """Insert a shift before the modules of ``trunk`` that ``place`` selects.

    Args:
        trunk: A torchvision trunk, or any sequence of layers.
        fraction: Share of the channels that moves in each direction.
        place: Name in `PLACES`.

    Raises:
        InputError: If the trunk has no modules at this place. The message names the field.
    """
    targets = PLACES[place](trunk)
    refuse_if(
        not targets and _before_blocks(trunk),
        f"shift_place={place!r}: the network has no residual blocks to shift in; choose shift_place='block'",
    )
    refuse_if(not targets, f"shift={fraction} needs a network with known blocks; choose a ResNet or MobileNetV2, or shift=0")
    shift = TemporalShift(fraction)
    for target in targets:
        target.register_forward_pre_hook(shift)
    shift.modules = tuple(name for name, module in trunk.named_modules() if any(module is target for target in targets))
    return shift


def _inside_residual_blocks(trunk: nn.Module) -> list[nn.Module]:
    """Return the first convolution of every residual block.

    With a shift of the input of this convolution, the block's shortcut passes on the unshifted features.

    As in the released code, all blocks of ResNet-50 are used. In MobileNetV2, only the blocks that have a shortcut and an expansion are
    used. EfficientNet-Lite is treated like MobileNetV2.
    """
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.resnet import BasicBlock, Bottleneck

    expanded = [m.conv[0] for m in trunk.modules() if isinstance(m, InvertedResidual) and m.use_res_connect and len(m.conv) > 3]
    expanded += [m.layers[0] for m in trunk.modules() if isinstance(m, LiteBlock) and m.shortcut and len(m.layers) > 2]
    return [layer[0] for layer in expanded] + [m.conv1 for m in trunk.modules() if isinstance(m, BasicBlock | Bottleneck)]


def _before_blocks(trunk: nn.Module) -> list[nn.Module]:
    """Return every block.

    The input of the whole block is shifted, including the input of the shortcut. In a sequence without blocks, return every layer except
    the first.
    """
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.resnet import BasicBlock, Bottleneck

    blocks = [module for module in trunk.modules() if isinstance(module, InvertedResidual | LiteBlock | BasicBlock | Bottleneck)]
    return blocks or (list(trunk.children())[1:] if isinstance(trunk, nn.Sequential) else [])


PLACES: dict[str, Callable[[nn.Module], list[nn.Module]]] = {"blockres": _inside_residual_blocks, "block": _before_blocks}
