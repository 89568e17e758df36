"""Reading every row once before any work is done: which cannot be read, and how many values silently become 0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.errors import ClockSkewError, DataError, RowError
from recsys.data.files import RowGroup, read_footers
from recsys.data.groups import read_group
from recsys.data.pieces import Piece
from recsys.data.quarantine import Quarantine, allowed, places
from recsys.data.ranks import Ints
from recsys.data.schema import Feature, Schema
from recsys.data.shares import PLACE, Read
from recsys.data.stream import EventStream
from recsys.data.strings import ColumnReader

_SCAN_ROWS = 65_536
"""Rows of ids that are read at once."""


class Visitor(Protocol):
    """Whom readable rows are shown while they are read."""

    @property
    def as_of(self) -> int | None:
        """Time up to which the outcomes of their labels are known, ms; None: all of them are."""

    def add(self, read: Read) -> None:
        """Take in rows."""


class Window(NamedTuple):
    """The day that rows must be of."""

    day: str
    """ISO date."""
    start: int | None
    """Its first ms; None: earlier rows will do too."""
    end: int
    """The first ms of the next day."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files that are read under one schema; what may be bad is a share of their rows alone."""

    files: Sequence[Path]
    schema: Schema
    window: Window | None = None
    """Where given, a row of another time is bad."""
    distinct: str = ""
    """A column of ids: a row whose id was there before, in any of the files, is bad."""


class BadRow(NamedTuple):
    """A row that cannot be read, and why."""

    file: Path
    row: int
    """Counted from 0 within the file."""
    column: str
    problem: str
    """The value, what is wrong with it, and the remedy."""
    stray: bool
    """Whether its time alone is wrong: it is not of the day."""


@dataclass(frozen=True)
class Findings:
    """What is known of rows once they have been read."""

    files: Mapping[Path, int]
    """File -> how many rows it has, the bad ones included."""
    bad: tuple[BadRow, ...]
    """In the order of the files and their rows; of several ranks' shares, rank by rank."""
    missing: Mapping[str, tuple[int, int]]
    """Each `dense` and `vector` feature -> in how many readable rows it is null or NaN (a vector: null, empty, or with
    a null or NaN in it), which is read as 0; and in how many it was looked for."""
    newest: int
    """Time of the newest readable row, ms."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.files.values())

    @property
    def readable(self) -> int:
        """Rows that are left."""
        return self.rows - len(self.bad)

    @property
    def quarantine(self) -> Quarantine:
        """The bad rows, for readers to leave out; a file may have been in two parts."""
        rows: dict[Path, list[int]] = defaultdict(list)
        for bad in self.bad:
            rows[bad.file].append(bad.row)
        return Quarantine({file: np.unique(np.array(found, dtype=np.int64)) for file, found in rows.items()})


def join(findings: Sequence[Findings]) -> Findings:
    """Those of several parts, or of several shares of one, as one."""
    missing: dict[str, tuple[int, int]] = {}
    files: dict[Path, int] = {}
    for found in findings:
        for file, rows in found.files.items():
            files[file] = files.get(file, 0) + rows
        for name, (count, of) in found.missing.items():
            before = missing.get(name, (0, 0))
            missing[name] = before[0] + count, before[1] + of
    return Findings(
        files=files,
        bad=tuple(bad for found in findings for bad in found.bad),
        missing=missing,
        newest=max(found.newest for found in findings),
    )


def scan(part: Part, rank: int = 0, world_size: int = 1, visitor: Visitor | None = None) -> Findings:
    """Read one rank's share of the row groups. It stops where more rows are bad than all ranks together may have.

    The share is that of `read_share`; what a `visitor` is shown of rows is what it reads of those that are not bad.

    Raises:
        DataError: what `check_files` raises, or pages that cannot be read, naming file and row group.
    """
    footers = read_footers(part.files, part.schema)
    share = footers.row_groups[rank::world_size]
    readers = {name: ColumnReader(kind) for name, kind in footers.types.items()}
    limit = allowed(part.schema.max_bad_rows, _by_file(footers.row_groups).values())
    scanner = _Scanner(part, limit, visitor)
    for group in share:
        for piece in read_group(group, 0, group.rows, readers):
            scanner.check(piece)
            if scanner.full:
                return scanner.findings(_by_file(share))
    return scanner.findings(_by_file(share))


def judge(part: Part, found: Findings) -> None:
    """Refuse files with more bad rows than their schema allows.

    Args:
        part: the files.
        found: what all ranks found in them.

    Raises:
        DataError: naming the first bad row; a ClockSkewError if that is a row of another day.
    """
    limit = allowed(part.schema.max_bad_rows, found.files.values())
    if len(found.bad) <= limit:
        return
    first = found.bad[0]
    raise (ClockSkewError if first.stray else DataError)(
        f"{first.file}: column {first.column!r}, row {first.row}: {first.problem}. At least {len(found.bad)} of "
        f"{found.rows:,} rows cannot be used, max_bad_rows = {part.schema.max_bad_rows:g} lets {limit} pass: correct "
        "them, or raise max_bad_rows in the schema to leave them out"
    )


def without_repeats(part: Part, found: Findings) -> Findings:
    """What all ranks found in a part, and as bad besides: every row but the first of an id that is to be distinct.

    Where too many rows are bad already nothing is looked for.
    """
    if not part.distinct or len(found.bad) > allowed(part.schema.max_bad_rows, found.files.values()):
        return found
    facts = Schema(timestamp="", user_id=part.distinct, item_id=part.distinct)
    stream = EventStream(part.files, facts, batch_size=_SCAN_ROWS, drop_last=False, skip=found.quarantine)
    ids = np.concatenate([batch.user_ids.numpy() for batch in stream])
    starts = np.cumsum([0, *stream.file_rows])

    def place(row: int) -> tuple[Path, int]:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        file = part.files[number]
        return file, int(places(np.array([row - starts[number]]), found.quarantine.of(file))[0])

    bad, most = [], allowed(part.schema.max_bad_rows, found.files.values()) + 1
    for row, first in zip(*(rows[:most].tolist() for rows in repeats(ids)), strict=True):
        (file, number), (before, at) = place(row), place(first)
        problem = f"id {ids[row]} is there twice, first in row {at} of {before}: deliver one row an entity"
        bad.append(BadRow(file, number, part.distinct, problem, stray=False))
    order = {file: number for number, file in enumerate(part.files)}
    return replace(found, bad=tuple(sorted((*found.bad, *bad), key=lambda each: (order[each.file], each.row))))


def repeats(ids: Ints) -> tuple[Ints, Ints]:
    """The rows whose id [N] an earlier one has, int64 [R], ascending, and the first row of each one's id.

    Most ids are distinct, and there may be a billion. To sort places takes many times longer than to sort numbers, and
    no rank gives a sign of life meanwhile; so only those of ids that are there twice are sorted.
    """
    ordered = np.sort(ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows = np.flatnonzero(twice[np.searchsorted(twice[:-1], ids)] == ids)
    _, first, entity = np.unique(ids[rows], return_index=True, return_inverse=True)
    firsts = rows[first[entity]]
    return rows[rows != firsts], firsts[rows != firsts]


class _Scanner:
    """Collects what one rank finds."""

    def __init__(self, part: Part, limit: int, visitor: Visitor | None) -> None:
        self._visitor, self._as_of = visitor, None if visitor is None else visitor.as_of
        self._numbers = {file: number for number, file in enumerate(part.files)}
        self._schema, self._window, self._limit = part.schema, part.window, limit
        self._readable, self._newest, self._bad = 0, 0, list[BadRow]()
        features = [feature for feature in part.schema.features if feature.kind in ("dense", "vector")]
        self._missing = dict.fromkeys(features, 0)

    @property
    def full(self) -> bool:
        """Whether there are too many bad rows already."""
        return len(self._bad) > self._limit

    def check(self, piece: Piece) -> None:
        """Read the rows of a piece; where one cannot be read, each half by itself, down to that row."""
        rows = piece.data.num_rows
        try:
            batch = to_batch(piece.data, self._schema, self._as_of)
        except RowError as error:
            if rows == 1:
                self._bad.append(BadRow(piece.file, piece.row, error.column, error.problem, stray=False))
                return
            self.check(piece.slice(0, rows // 2))
            if not self.full:
                self.check(piece.slice(rows // 2, rows - rows // 2))
            return
        data, times, of_day = piece.data, batch.timestamps.numpy(), None
        if self._window is not None:
            of_day = (times >= (self._window.start or 0)) & (times < self._window.end)
            if not of_day.all():
                strays = np.flatnonzero(~of_day)
                self._bad += [self._stray(piece, int(row), int(times[row]), self._window) for row in strays]
                data, times = data.filter(pa.array(of_day)), times[of_day]
        if self._visitor is not None:
            self._visitor.add(self._read(piece, batch, of_day))
        self._readable += len(times)
        self._newest = max(self._newest, int(times.max(initial=0)))
        for feature in self._missing:
            self._missing[feature] += _missing(data.column(feature.name), feature)

    def _read(self, piece: Piece, batch: Batch, of_day: NDArray[np.bool_] | None) -> Read:
        """What a visitor is shown of a piece."""
        number = self._numbers[piece.file]
        read = Read(batch, number, number * PLACE + piece.row + np.arange(len(batch)))
        return read if of_day is None or of_day.all() else read.where(of_day)

    def findings(self, files: Mapping[Path, int]) -> Findings:
        """What has been found in so many rows of these files."""
        missing = {feature.name: (count, self._readable) for feature, count in self._missing.items()}
        return Findings(files, tuple(self._bad), missing, self._newest)

    def _stray(self, piece: Piece, row: int, time: int, window: Window) -> BadRow:
        what, where = "event", f"outside the day {window.day} = [{window.start}, {window.end}) ms"
        if window.start is None:
            what, where = "row", f"after the day {window.day}, which ends at {window.end} ms"
        problem = (
            f"the {what} is of {time} ms ({np.datetime64(time, 'ms')} UTC), {where}; correct the clock, deliver the "
            f"{what} with its own day, or set days.utc_offset_hours"
        )
        return BadRow(piece.file, piece.row + row, self._schema.timestamp, problem, stray=True)


def _by_file(groups: Sequence[RowGroup]) -> dict[Path, int]:
    rows: dict[Path, int] = defaultdict(int)
    for group in groups:
        rows[group.file] += group.rows
    return dict(rows)


def _missing(column: pa.Array, feature: Feature) -> int:
    """Rows in which a `dense` or `vector` feature, in its canonical type, has something that is read as 0."""
    if feature.kind == "dense":
        return int(np.isnan(column.to_numpy(zero_copy_only=False)).sum())  # Arrow's nulls are NaN here
    offsets = column.offsets.to_numpy()
    absent = (np.diff(offsets) == 0) | column.is_null().to_numpy(zero_copy_only=False)
    before = np.concatenate([[0], np.cumsum(np.isnan(column.values.to_numpy(zero_copy_only=False)))])
    return int((absent | (before[offsets[1:]] > before[offsets[:-1]])).sum())
