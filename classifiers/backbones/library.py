"""Backbones from libraries: any image classifier of torchvision or timm that has a feature map. Their names are ``LIBRARY/NAME``.

The properties of a library's model are measured on PyTorch's meta device, where tensors have shapes but no values.
"""

import copy
import importlib
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from classifiers.errors import InputError, refuse_if, suggestion

SIZES = (224, 320)  # pixels; the map of the larger image must have more rows and columns
_REFUSED = (
    "{name} cannot be a backbone: it makes no map of images of any size; choose a model whose features are (N, C, h, w) with h and w that "
    "follow the image, as convolutional networks have them, such as torchvision/resnet18 or torchvision/mobilenet_v3_small"
)
# Images are already normalised, and PyTorch's default initialization of weights is sufficient.
_ARGUMENTS = {name: {"transform_input": True, "init_weights": False} for name in ("googlenet", "inception_v3")}
_LAST_MAPS: dict[str, str] = {}  # by model name: the name of the last map in torchvision models that were already built
# Lowest and highest value that each activation can return.
_RANGES = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0), nn.Hardswish: (-0.375, math.inf), nn.SiLU: (-0.2785, math.inf)}


@dataclass(frozen=True)
class Measured:
    """Measured properties of the trunk of a model.

    Attributes:
        trunk: The trunk, on the meta device.
        channels: Number of channels of the maps.
        bounds: Lowest and highest possible value of a map. The bounds are infinite if the last layer does not determine them.
    """

    trunk: nn.Module
    channels: int
    bounds: tuple[float, float]


def check_model(field: str, name: str) -> None:
    """Check that a model ``LIBRARY/NAME`` exists. (Whether it can be a backbone is checked when it is built.)

    Raises:
        InputError: If the library or the model is unknown, or if the library is not installed. For an unknown name, the message suggests
            the nearest name.
    """
    library, _, model = name.partition("/")
    if library not in LIBRARIES:
        hint = suggestion(library, LIBRARIES, suffix=f"/{model}")
        raise InputError(f"{field}={name!r} is of no known library; {hint}choose torchvision/NAME or timm/NAME")
    names = list(LIBRARIES[library].names())
    if model not in names:
        hint = suggestion(model, names, prefix=f"{library}/")
        raise InputError(f"{field}={name!r} is not known; {hint}{library} here has {len(names)} models, see {LIBRARIES[library].listed_by}")


def check_size(field: str, size: int, name: str) -> None:
    """Check that a model accepts images of ``size`` pixels.

    Raises:
        InputError: If it does not. The message names the field.
    """
    trunk = measure(name).trunk
    try:
        with torch.no_grad():
            trunk(torch.zeros(1, 3, size, size, device="meta"))
    except Exception as problem:  # third-party networks may raise any exception
        raise InputError(f"{field}={size}: {name} cannot take images of {size} pixels ({problem}); choose a larger {field}") from problem


@lru_cache(maxsize=8)
def measure(name: str) -> Measured:
    """Measure the properties of a library's model.

    Raises:
        InputError: If the model is unknown, or has no feature map.
    """
    with torch.random.fork_rng(devices=[]):  # the random state must not depend on the cache
        on_meta = trunk(name).to("meta").eval()
    try:
        shapes = [_run(on_meta, size).shape for size in SIZES]
    except Exception as problem:  # third-party networks raise any exception
        raise InputError(_REFUSED.format(name=name)) from problem
    refuse_if(not _is_map(*shapes), _REFUSED.format(name=name))
    return Measured(on_meta, shapes[0][1], _bounds(on_meta))


def trunk(name: str, pretrained: bool = False) -> nn.Module:
    """Return the trunk of a model, in training mode. The trunk maps images to the model's last feature map.

    Args:
        name: ``LIBRARY/NAME``.
        pretrained: Whether to load the library's weights. The weights are downloaded unless they are cached.
    """
    check_model("backbone", name)
    library, _, model = name.partition("/")
    with torch.random.fork_rng(devices=[], enabled=pretrained), warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore", FutureWarning)  # the warnings are about defaults of torchvision that are not used here
        return LIBRARIES[library].trunk(model, pretrained)


def _torchvision_trunk(name: str, pretrained: bool) -> nn.Module:
    """Return a module that runs the model's direct children up to the last map. The names of the children stay the same."""
    from torchvision import models

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
    """Return the name of the node that computes the last map."""
    module = fx.GraphModule(model, graph)
    try:
        for size in SIZES:
            _Shapes(module).run(torch.zeros(2, 3, size, size, device="meta"))
    except Exception as problem:  # third-party networks raise any exception
        raise InputError(_REFUSED.format(name=f"torchvision/{name}")) from problem
    maps = [node.name for node in module.graph.nodes if "shapes" in node.meta and _is_map(*node.meta["shapes"])]
    refuse_if(not maps, _REFUSED.format(name=f"torchvision/{name}"))
    return maps[-1]


class _Children(fx.Tracer):
    """A tracer that traces the forward pass of a model, but not inside the model's modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Shapes(fx.Interpreter):
    """An interpreter that runs a graph without gradients. The interpreter appends the shape of every value to ``node.meta["shapes"]``."""

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op not in ("placeholder", "output"):
            n.meta.setdefault("shapes", []).append(value.shape)
        return value


def _timm_trunk(name: str, pretrained: bool) -> nn.Module:
    """Return a timm model without pooling and classifier."""
    return _timm().create_model(name, pretrained=pretrained, num_classes=0, global_pool="")


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as problem:
        raise InputError("timm/NAME needs the package timm: pip install adafocus-env[timm]") from problem


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


@dataclass(frozen=True)
class Library:
    """A source of models.

    Attributes:
        names: Function that returns the names of the models.
        trunk: Function that returns a trunk. The arguments of the function are the name of the model and whether to load weights.
        listed_by: Python expression that lists all names. Error messages contain this expression.
    """

    names: Callable[[], Iterable[str]]
    trunk: Callable[[str, bool], nn.Module]
    listed_by: str


LIBRARIES = {
    "torchvision": Library(_torchvision_names, _torchvision_trunk, "torchvision.models.list_models()"),
    "timm": Library(lambda: [*_timm().list_models(), *_timm().list_pretrained()], _timm_trunk, "timm.list_models()"),
}


def _is_map(shape: torch.Size, larger: torch.Size) -> bool:
    """Return whether a value is a map (N, C, h, w), given its shapes for images of both `SIZES`. In a map, h and w grow with the image."""
    return len(shape) == 4 and shape[:2] == larger[:2] and all(1 < one < other for one, other in zip(shape[2:], larger[2:], strict=True))


def _run(trunk: nn.Module, size: int) -> Tensor:
    with torch.no_grad():
        return trunk(torch.zeros(2, 3, size, size, device="meta"))


def _bounds(trunk: nn.Module) -> tuple[float, float]:
    """Return the bounds of the map if it is the direct output of an activation, otherwise infinite bounds."""
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
