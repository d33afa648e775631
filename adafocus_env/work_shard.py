"""Divide the work of a command among several jobs with ``shard=I/N``, such as the jobs of a Slurm array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from classifiers.errors import refuse_if

Item = TypeVar("Item")


@dataclass(frozen=True)
class WorkShard:
    """Shard number ``index`` of the ``count`` shards of a list, counted from 1.

    The shard has the items ``index`` - 1, ``index`` - 1 + ``count``, ``index`` - 1 + 2 · ``count``, and so on. Every item is in one shard,
    and the sizes of two shards differ by one at most. Without arguments, the shard is the whole list.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> WorkShard:
        """Return the shard that the setting ``shard`` names, such as ``2/4``.

        Raises:
            InputError: If the text is not I/N with 1 ≤ I ≤ N.
        """
        found = re.fullmatch("([0-9]+)/([0-9]+)", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        refuse_if(
            not 1 <= index <= count, f"shard must be I/N with 1 ≤ I ≤ N, got {text!r}; shards are counted from 1: shard=1/4, …, shard=4/4"
        )
        return cls(index, count)

    @property
    def whole(self) -> bool:
        """Whether the shard is the whole list."""
        return self.count == 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items of the shard, in order."""
        return items[self.index - 1 :: self.count]

    @property
    def suffix(self) -> str:
        """Return what distinguishes the names of the shard's files, such as ``-2-of-4``; empty for the whole list."""
        return "" if self.whole else f"-{self.index}-of-{self.count}"


WHOLE = WorkShard()
"""The only shard of a list that is not divided."""
