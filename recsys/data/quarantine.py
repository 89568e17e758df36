"""Rows that nobody reads: what was found to be unreadable before the work began."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.files import RowGroup

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Quarantine:
    """Rows of files that every reader leaves out."""

    rows: Mapping[Path, Rows]  # [n] each, ascending, counted from 0 within the file

    def __or__(self, other: Quarantine) -> Quarantine:
        """Both."""
        shared = self.rows.keys() & other.rows.keys()
        both = {file: np.union1d(self.rows[file], other.rows[file]) for file in shared}
        return Quarantine({**self.rows, **other.rows, **both})

    def of(self, file: Path) -> Rows:
        """Those of a file."""
        return self.rows.get(file, NONE)

    def count(self, files: Sequence[Path]) -> int:
        """How many in these files."""
        return sum(len(self.of(file)) for file in files)

    def within(self, group: RowGroup) -> Rows:
        """Those of a row group, counted from its beginning."""
        gone = self.of(group.file)
        if not len(gone):
            return NONE
        gone = gone - group.first_row
        return gone[(gone >= 0) & (gone < group.rows)]

    def kept(self, file: Path, rows: int) -> NDArray[np.bool_]:
        """Which of a file's rows are read: bool [rows]."""
        kept = np.ones(rows, dtype=np.bool_)
        kept[self.of(file)] = False
        return kept


NONE: Rows = np.empty(0, dtype=np.int64)
NOTHING = Quarantine({})
"""Every row is read."""


def allowed(share: float, files: Collection[int]) -> int:
    """How many rows of a part may be bad: this share of each file's, rounded up, but never all.

    Rounded file by file, so that days of which each passes pass together too.

    Args:
        share: of the schema.
        files: rows of each file.
    """
    return min(sum(ceil(share * rows) for rows in files), sum(files) - 1)


def places(kept: Rows, gone: Rows) -> Rows:
    """Where rows lie among all, that are counted among those which are not gone.

    Args:
        kept: int64 [n]
        gone: int64 [m], ascending
    """
    return kept + np.searchsorted(gone - np.arange(len(gone)), kept, side="right")
