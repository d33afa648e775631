"""Backbones by name: those of `BACKBONES`, ``torchvision/NAME`` and ``timm/NAME``: any image classifier that makes a map on its way.

What is known of another library's model is measured, not listed: it is run on PyTorch's meta device, where tensors have shapes and no
numbers.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision import models

from classifiers.backbones.backbone import BACKBONES, Backbone
from classifiers.errors import InputError, lookup

SIZES = (224, 320)  # pixels; a map is what has more rows and columns for the larger image
_REFUSED = (
    "{name} cannot be a backbone: it makes no map of images of any size; choose a model whose features are (N, C, h, w) with h and w that "
    "follow the image, as convolutional networks have them, such as torchvision/resnet18 or torchvision/mobilenet_v3_small"
)
# Images are normalised as for all other models, and PyTorch's own first weights will do.
_ARGUMENTS = {name: {"transform_input": True, "init_weights": False} for name in ("googlenet", "inception_v3")}
_LAST_MAPS: dict[str, str] = {}  # of torchvision's models that were built before
# Lowest and highest value after an activation.
_RANGES = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0), nn.Hardswish: (-0.375, math.inf), nn.SiLU: (-0.2785, math.inf)}


@dataclass(frozen=True)
class Measured:
    """What is known of the trunk of a model.

    Attributes:
        trunk: on the meta device.
        channels: of its maps.
        bounds: lowest and highest value of a map, as far as the last layer tells.
    """

    trunk: nn.Module
    channels: int
    bounds: tuple[float, float]


def build_backbone(name: str, num_classes: int) -> Backbone:
    """The backbone of that name with random weights; nothing is fetched.

    Args:
        name: in `BACKBONES`, or ``LIBRARY/NAME``.
        num_classes: K.

    Raises:
        InputError: there is no such model, or it makes no map.
    """
    if "/" not in name:
        return lookup("backbone", name, BACKBONES)(num_classes)
    measured = measure(name)
    return Backbone(trunk(name), measured.channels, num_classes, map_bounds=measured.bounds)


def check_name(field: str, name: str) -> None:
    """Checks that there is a backbone of that name; whether a library's model can be one shows when it is built.

    Raises:
        InputError: no such library or model (names the field, suggests the nearest), or the library is not installed.
    """
    library, slash, model = name.partition("/")
    if not slash and name not in BACKBONES and name in LIBRARIES["torchvision"].names():
        raise InputError(f"{field}={name!r} is not known; did you mean 'torchvision/{name}'?")
    if not slash:
        lookup(field, name, BACKBONES)
        return
    if library not in LIBRARIES:
        near = difflib.get_close_matches(library, LIBRARIES, n=1)
        hint = f"did you mean {f'{near[0]}/{model}'!r}? " if near else ""
        raise InputError(f"{field}={name!r} is of no known library; {hint}choose torchvision/NAME or timm/NAME")
    names = list(LIBRARIES[library].names())
    if model not in names:
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"did you mean {f'{library}/{near[0]}'!r}? " if near else ""
        raise InputError(f"{field}={name!r} is not known; {hint}{library} here has {len(names)} models, see {LIBRARIES[library].listed_by}")


def check_size(field: str, size: int, name: str) -> None:
    """Checks that a model takes images of that size.

    Raises:
        InputError: it does not (names the field).
    """
    trunk = measure(name).trunk
    try:
        with torch.no_grad():
            trunk(torch.zeros(1, 3, size, size, device="meta"))
    except Exception as problem:  # whatever a foreign network raises
        raise InputError(f"{field}={size}: {name} cannot take images of {size} pixels ({problem}); choose a larger {field}") from problem


@lru_cache(maxsize=8)
def measure(name: str) -> Measured:
    """What is known of a library's model; see `build_backbone` for what is raised."""
    with torch.random.fork_rng(devices=[]):  # a first measurement leaves the random numbers as a later one does
        on_meta = trunk(name).to("meta").eval()
    try:
        shapes = [_run(on_meta, size).shape for size in SIZES]
    except Exception as problem:  # whatever a foreign network raises
        raise InputError(_REFUSED.format(name=name)) from problem
    if not _is_map(*shapes):
        raise InputError(_REFUSED.format(name=name))
    return Measured(on_meta, shapes[0][1], _bounds(on_meta))


def trunk(name: str, pretrained: bool = False) -> nn.Module:
    """Images → maps: the model without all that comes after its last map; in training mode.

    Args:
        name: ``LIBRARY/NAME``.
        pretrained: with the library's weights, which are fetched unless they were before.
    """
    check_name("backbone", name)
    library, _, model = name.partition("/")
    with torch.random.fork_rng(devices=[], enabled=pretrained), warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore", FutureWarning)  # on defaults of torchvision that are not used here
        return LIBRARIES[library].trunk(model, pretrained)


def _torchvision_trunk(name: str, pretrained: bool) -> nn.Module:
    """The graph of the model's own children, cut after the last map that there is; their names stay."""
    arguments = {} if pretrained else _ARGUMENTS.get(name, {})
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **arguments).eval()
    graph = _Children().trace(model)
    if name not in _LAST_MAPS:
        _LAST_MAPS[name] = _last_map(copy.deepcopy(model).to("meta"), graph, name)
    nodes = {node.name: node for node in graph.nodes}
    nodes["output"].args = (nodes[_LAST_MAPS[name]],)
    cut = fx.GraphModule(model, graph)
    cut.graph.eliminate_dead_code()
    cut.recompile()
    cut.delete_all_unused_submodules()
    return cut.train()


def _last_map(model: nn.Module, graph: fx.Graph, name: str) -> str:
    """The node of the graph that the last map comes from."""
    runs = [_Shapes(fx.GraphModule(model, graph)) for _ in SIZES]
    try:
        for run, size in zip(runs, SIZES, strict=True):
            run.run(torch.zeros(2, 3, size, size, device="meta"))
    except Exception as problem:  # whatever a foreign network raises
        raise InputError(_REFUSED.format(name=f"torchvision/{name}")) from problem
    maps = [node for node, shape in runs[0].shapes.items() if _is_map(shape, runs[1].shapes[node])]
    if not maps:
        raise InputError(_REFUSED.format(name=f"torchvision/{name}"))
    return maps[-1]


class _Children(fx.Tracer):
    """Follows a model's own forward and none of its parts'."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Shapes(fx.Interpreter):
    """Runs a graph without gradients and keeps the shapes of all values, by the name of their node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, torch.Size] = {}

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op not in ("placeholder", "output"):
            self.shapes[n.name] = value.shape
        return value


def _timm_trunk(name: str, pretrained: bool) -> nn.Module:
    """The model without its pooling and its classifier."""
    return _timm().create_model(name, pretrained=pretrained, num_classes=0, global_pool="")


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as problem:
        raise InputError("timm/NAME needs the package timm: pip install adafocus-env[timm]") from problem


@dataclass(frozen=True)
class Library:
    """What is asked of a library.

    Attributes:
        names: of its models.
        trunk: name, whether with weights → images to maps.
        listed_by: how a person sees all names.
    """

    names: Callable[[], Iterable[str]]
    trunk: Callable[[str, bool], nn.Module]
    listed_by: str


LIBRARIES = {
    "torchvision": Library(lambda: models.list_models(module=models), _torchvision_trunk, "torchvision.models.list_models()"),
    "timm": Library(lambda: [*_timm().list_models(), *_timm().list_pretrained()], _timm_trunk, "timm.list_models()"),
}


def _is_map(shape: torch.Size, larger: torch.Size) -> bool:
    """Whether values of these shapes, for images of `SIZES`, are (N, C, h, w) with h and w that follow the image."""
    return len(shape) == 4 and shape[:2] == larger[:2] and all(1 < one < other for one, other in zip(shape[2:], larger[2:], strict=True))


def _run(trunk: nn.Module, size: int) -> Tensor:
    with torch.no_grad():
        return trunk(torch.zeros(2, 3, size, size, device="meta"))


def _bounds(trunk: nn.Module) -> tuple[float, float]:
    """Those of the activation that made the map, if one did and nothing was added to it afterwards."""
    seen: list[tuple[nn.Module, Tensor, int]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append((module, output, output._version)))
        for module in trunk.modules()
        if type(module) in _RANGES
    ]
    maps = _run(trunk, SIZES[0])
    for hook in hooks:
        hook.remove()
    made = [module for module, output, version in seen if output is maps and version == maps._version]
    return _RANGES[type(made[-1])] if made else (-math.inf, math.inf)
