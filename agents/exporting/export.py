"""The implementation of `python -m agents.export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.config.settings import Export
from agents.evaluation.conditional_exit import EXIT_FILE
from agents.exporting.card import README, card_text
from agents.exporting.comparison import compare
from agents.exporting.metadata import METADATA_FILE, metadata_of
from agents.exporting.modules import signatures
from agents.exporting.onnx_files import OPSET, check_packages, to_onnx
from agents.exporting.trained import Trained
from agents.policies import networks
from agents.runs.progress import Display
from classifiers import checkpoint
from classifiers.atomic_files import replacing, write_text
from classifiers.errors import InputError, refuse_if

ONNX = {name: f"{name}.onnx" for name in ("glancer", "policy", "focuser", "head")}
WRITTEN = (checkpoint.CARD, METADATA_FILE, checkpoint.WEIGHTS, networks.CARD, networks.WEIGHTS, README, EXIT_FILE, *ONNX.values())
"""The files of all formats.

The first two files are written last and removed first. An export that contains one of them is therefore complete."""


def export(config: Export) -> Path:
    """Write the export. Return its folder.

    Raises:
        InputError: If the run, the classifier or the policy cannot be used, if the folder exists, or if the format needs packages that are
            not installed.
    """
    refuse_if(bool(config.run) == bool(config.classifier), "give run=DIR, or classifier=DIR with its policy=DIR")
    if config.format == "onnx":
        check_packages()
    trained = Trained.load(config)
    out = Path(config.out or Path("exports", f"{trained.name}-{config.format}"))
    refuse_if(out.is_file(), f"out={out} is a file; choose a folder")
    refuse_if(
        not config.force and out.exists() and any(out.iterdir()),
        f"out={out} exists; choose another folder, or set force=true to replace the export in it (other files stay)",
    )
    (write_folder if config.format == "folder" else write_onnx)(trained, out)
    return out


def write_folder(trained: Trained, out: Path) -> None:
    """Write a folder that the commands accept as ``classifier=`` and as ``policy=``.

    The folder contains the weights, JSON cards and a Markdown card. If a conditional exit was fitted, the folder also contains the
    confidences from which its thresholds are computed.

    Raises:
        InputError: If the folder cannot be written.
    """
    text = card_text(trained, "folder")
    _remove(out)
    networks.save_policy(trained.policy, out, trained.about)
    if trained.exit is not None:
        trained.exit.save(out / EXIT_FILE)
    write_text(out / README, text)
    card = trained.card
    checkpoint.save(trained.classifier, out, parent=card.parent, data=card.data, metrics=card.metrics, command=card.command)


def write_onnx(trained: Trained, out: Path) -> None:
    """Write the ONNX files of the networks, their metadata and a Markdown card. The ONNX files are compared with PyTorch first.

    Raises:
        InputError: If a network cannot be exported, if the results of a file differ from those of PyTorch, or if the folder cannot be
            written.
    """
    modules = signatures(trained.classifier, trained.policy, trained.skipped)
    metadata = metadata_of(trained)
    with Display() as display:
        bar = display.bar("export", len(modules) + 1)
        files: dict[str, bytes] = {}
        for name, signature in modules.items():
            bar.at(len(files), name)
            files[name] = to_onnx(name, signature, metadata)
        bar.at(len(files), "comparison")
        differences = compare(trained.classifier, modules, files)
        bar.at(len(files) + 1, "")
    described: dict[str, Any] = {
        name: {"inputs": ", ".join(modules[name].inputs), "outputs": ", ".join(modules[name].outputs), "difference": differences[name]}
        for name in files
    }
    text = card_text(trained, "onnx", opset=OPSET, files=described)
    _remove(out)
    for name, content in files.items():
        with replacing(out / ONNX[name]) as temporary:
            temporary.write_bytes(content)
    write_text(out / README, text)
    write_text(out / METADATA_FILE, json.dumps({**metadata, "differences": differences}, indent=2) + "\n")


def _remove(out: Path) -> None:
    """Remove an earlier export.

    Raises:
        InputError: If the folder cannot be written.
    """
    try:
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
    except OSError as problem:
        raise InputError(f"out={out} cannot be written ({problem.strerror or problem}); choose another folder") from problem
