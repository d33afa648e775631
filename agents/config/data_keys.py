"""Which data set reads which of the keys below ``data``, for every command that has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adafocus_env.videos.published import PUBLISHED
from agents.config.unread import Unread

SOME = "demo", "folder"
_PUBLISHED = ", ".join(f"data={name}" for name in PUBLISHED)
# Data sets that a plugin adds may read any key: each rule names the data sets that do not.


def data_rules(name: Callable[[Any], str], root: Callable[[Any], str]) -> tuple[Unread, ...]:
    """The keys that the data set of a config does not read.

    Args:
        name: config → name of the data set.
        root: config → value of ``data.root``.
    """
    return (
        Unread(
            "data.root",
            lambda c: name(c) == "demo",
            "the data set is demo, whose videos are rendered; add data=folder for your own videos, or a published data set: "
            f"{_PUBLISHED}",
        ),
        Unread("data.source", lambda c: name(c) in SOME, f"only published data sets ({_PUBLISHED}) have two sources; leave it out"),
        Unread("data.task", lambda c: name(c) in ("folder", *PUBLISHED), "it is for the demo videos; leave it out, or add data=demo"),
        Unread("data.test", lambda c: name(c) in ("demo", *PUBLISHED), "the data set has a test split; leave it out"),
        Unread(
            "data.test",
            lambda c: name(c) == "folder" and has_splits(root(c)),
            "the folder has a train/ or test/ subfolder, which decides; leave it out, or put the class folders directly in data.root",
        ),
    )


def has_splits(root: str) -> bool:
    """Whether a folder of videos says itself which are to be tested on."""
    return bool(root) and any((Path(root).expanduser() / split).is_dir() for split in ("train", "test"))
