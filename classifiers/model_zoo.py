"""Named architectures, and the folders of the bundled classifiers."""

from dataclasses import replace
from pathlib import Path

from classifiers.classifier import Architecture

_PAPER_V2 = Architecture(
    glancer="mobilenet_v2",
    focuser="resnet50",
    head="max_per_step",
    hidden_size=4096,
    dropout=0.2,
    size=224,
    glance_size=224,
    patch_size=96,
    head_steps=16,
)

ARCHITECTURES: dict[str, Architecture] = {
    "small": Architecture(
        glancer="small_glancer",
        focuser="small_focuser",
        head="gru",
        hidden_size=96,
        dropout=0.1,
        size=96,
        glance_size=32,
        patch_size=24,
    ),
    "paper": Architecture(
        glancer="mobilenet_v2",
        focuser="resnet50",
        head="gru",
        hidden_size=1024,
        dropout=0.8,
        size=224,
        glance_size=224,
        patch_size=96,
    ),
    "efficientnet_lite": Architecture(
        glancer="efficientnet_lite0",
        focuser="efficientnet_lite2",
        head="gru",
        hidden_size=512,
        dropout=0.5,
        size=224,
        glance_size=224,
        patch_size=96,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        weights="default",
    ),
    "paper_tsm": Architecture(
        glancer="mobilenet_v2",
        focuser="resnet50",
        head="mean",
        hidden_size=1024,  # not used by this head
        dropout=0.5,
        size=224,
        glance_size=224,
        patch_size=144,
        shift=1 / 8,
        shift_place="blockres",
    ),
    "paper_v2": _PAPER_V2,
    "paper_v2_res50": replace(_PAPER_V2, glancer="resnet50", glance_size=96, resize="align_corners"),
    "paper_v2_tsm": replace(
        _PAPER_V2, head="separate_mean", head_steps=0, dropout=0.5, patch_size=128, shift=1 / 8, shift_place="blockres"
    ),
}
"""Architectures by name, for the demo task, from the paper (ActivityNet and Something-Something), with EfficientNet-Lite backbones, and
from AdaFocusV2 (with either glancer, and on Something-Something)."""

BUNDLED: dict[str, Path] = {
    name: Path(__file__).parent / "bundled" / name
    for name in ("demo", "demo-mover", "demo-sparse", "demo-normal@v0", "demo-hard@v0", "demo-sparse@v0")
}
"""Folders of the classifiers for the demo tasks, by name; `demo` is the classifier of the default task."""
