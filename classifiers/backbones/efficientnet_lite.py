"""EfficientNet-Lite (TensorFlow's model garden, 2020). Lite0 and Lite2 are EfficientNet-B0 and -B2 without squeeze-and-excitation and with
ReLU6.

The ImageNet weights of Lite0 and Lite2 are available as Python packages (see `classifiers.backbones.imagenet`), so that no server except
the package index is needed.
"""

import math

from torch import Tensor, nn

# The stages of B0 (arXiv:1905.11946, table 1). The five columns are kernel, stride of the first block, expansion, channels, and blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _OUT = 32, 1280


def lite_trunk(width: float, depth: float) -> nn.Sequential:
    """Return a trunk that maps images (N, 3, H, W) to maps (N, 1280, ⌈H/32⌉, ⌈W/32⌉) within [0, 6].

    Args:
        width: Factor for the numbers of channels. The resulting numbers of channels are rounded to multiples of 8. The first and the last
            layer are not changed.
        depth: Factor for the numbers of blocks per stage. The results are rounded up. The first and the last stage are not changed.
    """
    layers: list[nn.Module] = [_layer(3, _STEM, kernel=3, stride=2)]
    inputs = _STEM
    for kernel, stride, expansion, channels, blocks in _STAGES:
        outputs = int(channels * width + 4) // 8 * 8
        repeats = math.ceil(blocks * depth) if blocks > 1 else 1
        for number in range(repeats):
            layers.append(LiteBlock(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
            inputs = outputs
    return nn.Sequential(*layers, _layer(inputs, _OUT, kernel=1))


class LiteBlock(nn.Module):
    """A block with expansion, depthwise convolution and projection. The block has a shortcut if input and output have the same shape.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Size of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expansion: Inner channels as a multiple of ``inputs``.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [_layer(inputs, inner, kernel=1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand, _layer(inner, inner, kernel=kernel, stride=stride, groups=inner), _layer(inner, outputs, kernel=1, activation=None)
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Return the output features (N, outputs, h/stride, w/stride) for input features (N, inputs, h, w)."""
        return features + self.layers(features) if self.shortcut else self.layers(features)


def _layer(
    inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = nn.ReLU6
) -> nn.Sequential:
    """Return a layer with convolution, batch norm and activation.

    The padding is that of TensorFlow: with even sides, a convolution with a stride pads one more pixel at the end than at the start.
    """
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    pad = [nn.ZeroPad2d((before, after, before, after))] if before != after else []
    from torchvision.ops import Conv2dNormActivation

    layer = Conv2dNormActivation(
        inputs, outputs, kernel, stride, padding=0 if pad else before, groups=groups, activation_layer=activation,
        norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=1e-3), inplace=True if activation else None,
    )  # fmt: skip
    return nn.Sequential(*pad, *layer)
