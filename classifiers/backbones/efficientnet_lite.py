"""EfficientNet-Lite (TensorFlow's model garden, 2020): EfficientNet-B0 and -B2 without squeeze-and-excitation, with ReLU6.

Their ImageNet weights are available as Python packages (see `classifiers.backbones.imagenet`), without access to other servers.
"""

import math

from torch import Tensor, nn

# Stages of B0 (arXiv:1905.11946, table 1): kernel, stride of the first block, expansion, channels, blocks.
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
        width: Factor on the numbers of channels, which are rounded to multiples of 8; not applied to the first and last layer.
        depth: Factor on the numbers of blocks per stage, which are rounded up; not applied to the first and last stage.
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
    """Expansion, depthwise convolution and projection, with a shortcut if the shape stays the same.

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
        """Return features (N, outputs, h/stride, w/stride) for features (N, inputs, h, w)."""
        return features + self.layers(features) if self.shortcut else self.layers(features)


def _layer(
    inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = nn.ReLU6
) -> nn.Sequential:
    """Return convolution, batch norm and activation, padded as in TensorFlow (for even sides, strides pad one more pixel at the end)."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    pad = [nn.ZeroPad2d((before, after, before, after))] if before != after else []
    from torchvision.ops import Conv2dNormActivation

    layer = Conv2dNormActivation(
        inputs, outputs, kernel, stride, padding=0 if pad else before, groups=groups, activation_layer=activation,
        norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=1e-3), inplace=True if activation else None,
    )  # fmt: skip
    return nn.Sequential(*pad, *layer)
