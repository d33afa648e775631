"""Export of PyTorch modules to ONNX files with PyTorch's exporter, which is based on `torch.export`."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from agents.exporting.modules import Signature
from classifiers.errors import InputError, refuse_if

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
"""Version of ONNX's operators: the oldest version that has all operators of the exported modules."""
METADATA = "adafocus"
"""Key under which a file stores its metadata, a JSON object."""


def check_packages() -> None:
    """Check that the packages of the extra ``onnx`` are installed.

    Raises:
        InputError: If a package is missing. The message names it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    refuse_if(missing, f"format=onnx needs {', '.join(missing)}: pip install 'adafocus-env[onnx]', or choose format=folder")


@torch.no_grad()
def to_onnx(name: str, signature: Signature, metadata: Mapping[str, Any]) -> bytes:
    """Return the content of the ONNX file of a module.

    Args:
        name: Name of the module, for the error message.
        signature: The module, its inputs and its outputs.
        metadata: Plain values that the file contains.

    Raises:
        InputError: If the module cannot be exported. The message names the module and the reason.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # onnx_ir is installed with onnxscript

    inputs, axes = signature.inputs, {0: Dim("clips")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions and defaults of the exporter
            program = torch.export.export(signature.module, (), dict(inputs), dynamic_shapes=dict.fromkeys(inputs, axes), strict=False)
            if any(node.target in DECOMPOSITIONS for node in program.graph.nodes):
                program = program.run_decompositions(DECOMPOSITIONS)
            exported = torch.onnx.export(
                program, input_names=list(inputs), output_names=list(signature.outputs), opset_version=OPSET, dynamo=True, verbose=False
            )
            assert exported is not None
            ClearMetadataAndDocStringPass()(exported.model)  # remove stack traces, which contain paths of this machine
            exported.model.metadata_props[METADATA] = json.dumps(metadata)
            return exported.model_proto.SerializeToString()
    except Exception as problem:  # a traced network may raise any exception
        reason = next(line for line in f"{problem}\n{problem!r}".splitlines() if line.strip())
        raise InputError(f"format=onnx: {name} cannot be exported ({reason}); choose format=folder") from problem


def _running_maximum(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """For each step along ``dim``, return the maximum of the values up to this step, and the latest index at which it occurs.

    ONNX has no operator for this. The axis ``dim`` must have a constant length.
    """
    highest: list[Tensor] = []
    index: list[Tensor] = []
    for step, value in enumerate(values.unbind(dim)):
        higher = torch.ones_like(value, dtype=torch.bool) if step == 0 else value >= highest[-1]
        highest.append(value if step == 0 else torch.maximum(highest[-1], value))
        index.append(torch.where(higher, step, index[-1] if index else 0))
    return torch.stack(highest, dim), torch.stack(index, dim)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.cummax.default: _running_maximum,
    torch.ops.aten.special_ndtr.default: lambda values: (1 + torch.erf(values * 0.5**0.5)) / 2,
}
"""Maps operators that ONNX does not have to functions that compute the same."""
