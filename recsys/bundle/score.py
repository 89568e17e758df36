"""Score Parquet files with a bundle: in batches, on any number of ranks, resumable.

The files are cut into units of whole row groups, which no number of ranks changes. Each unit becomes one file, whole or
not there; a rank does every so many-th of them, if it is missing. So what is interrupted goes on where it was, and
scores are the same on any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from recsys.atomic import whole_file, write_json
from recsys.bundle.bundle import Bundle, Prepared
from recsys.bundle.manifest import MANIFEST, BundleError
from recsys.config import ConfigError
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.files import Footers, RowGroup, read_footers
from recsys.data.footers import open_file
from recsys.data.prefetch import Prefetcher
from recsys.identity import identify_files

UNIT_ROWS = 1 << 20
"""A unit ends with the row group that reaches so many rows."""
BATCH_ROWS = 8192
"""Rows that are scored at once."""
GROUP_ROWS = 1 << 17
"""A row group of the scores."""
_AHEAD = 3
"""Batches that are ready before they are scored, or written."""


@dataclass(frozen=True)
class Unit:
    """Row groups of one file, and the file that their scores go to."""

    groups: tuple[RowGroup, ...]
    target: Path

    @property
    def rows(self) -> int:
        """How many are scored."""
        return sum(group.rows for group in self.groups)


class Scored(NamedTuple):
    """What a rank has done."""

    rows: int
    """Scored by it, in this process."""
    seconds: float
    """From the first batch to the last."""
    early: int
    """Of these rows, those of before the pinned vectors' time."""


def score_files(bundle: Bundle, source: Path, files: Sequence[Path], folder: Path, out: Path) -> Scored:
    """Score this rank's share of some files. Under torch elastic (`torchx run`) every rank calls it.

    Writes `out/<file>-<unit>.parquet` with the ids, the time and a float32 column for each task, rows in the files'
    order, and `out/score.json`, what the scores are of.

    Args:
        bundle: the ranker.
        source: folder of the bundle.
        files: Parquet files with the columns of `bundle.schema`.
        folder: that the files lie below; `out` has their names in it.
        out: where the scores go; those that are there already stay.

    Raises:
        DataError: a file that lacks a column, or a row that cannot be read; names file, column and row.
        ConfigError: `out` holds scores of another bundle, or of other files.
    """
    twice = sorted(set(bundle.tasks).intersection(_kept(bundle)))
    if twice:
        raise BundleError(f"tasks {twice} are named as an id or the time is: rename them in the ranker's config")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found = units(read_footers(files, bundle.schema), files, folder, out)
    _claim(source, files, folder, out)
    todo = [unit for unit in found[rank::ranks] if not unit.target.is_file()]
    first = min((pin.as_of for pin in bundle.manifest.pins), default=0) if bundle.schema.timed else 0
    rows, early, start = 0, 0, time.monotonic()
    with _bar(sum(unit.rows for unit in todo), shown=rank == 0) as bar:
        for unit in todo:
            with (
                whole_file(unit.target) as file,
                closing(_Writer(file, bundle)) as writer,
                closing(_scored(bundle, unit, writer)) as scored,
            ):
                for batch in scored:
                    rows += batch.rows
                    early += batch.before(first)
                    bar.advance(TaskID(0), batch.rows)
    return Scored(rows, time.monotonic() - start, early)


def units(footers: Footers, files: Sequence[Path], folder: Path, out: Path) -> list[Unit]:
    """The files in pieces of some `UNIT_ROWS` rows."""
    cut = []
    for path, stored in zip(files, footers.files, strict=True):
        name, groups, number = path.relative_to(folder).with_suffix(""), list[RowGroup](), 0
        for group in stored.row_groups:
            groups.append(group)
            if sum(x.rows for x in groups) >= UNIT_ROWS or group is stored.row_groups[-1]:
                cut.append(Unit(tuple(groups), out / f"{name}-{number:05d}.parquet"))
                groups, number = [], number + 1
    return cut


class _Ready(NamedTuple):
    """A batch that is ready to be scored."""

    kept: pa.RecordBatch
    """The columns that stand beside the scores."""
    prepared: Prepared
    timestamps: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return self.prepared.rows

    def before(self, time: int) -> int:
        """Rows that are earlier."""
        return int((self.timestamps < time).sum())


class _Writer:
    """Writes the scores of a unit, in row groups of some `GROUP_ROWS` rows."""

    def __init__(self, file: BinaryIO, bundle: Bundle) -> None:
        self._file, self._schema = file, bundle.schema
        self._parquet: pq.ParquetWriter | None = None
        self._waiting = list[pa.RecordBatch]()

    def write(self, batch: _Ready, scores: Mapping[str, Tensor]) -> None:
        """Add rows."""
        columns = dict(zip(batch.kept.schema.names, batch.kept.columns, strict=True))
        columns |= {task: pa.array(x.cpu().numpy()) for task, x in scores.items()}
        self._waiting.append(pa.record_batch(columns))
        if sum(x.num_rows for x in self._waiting) >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._waiting:
            self._flush()
        if self._parquet is not None:
            self._parquet.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting)
        if self._parquet is None:
            # only these repeat: to look in vain for scores that do takes longer than all the rest
            ids = [self._schema.user_id, self._schema.item_id]
            self._parquet = pq.ParquetWriter(self._file, table.schema, use_dictionary=ids)
        self._parquet.write_table(table)
        self._waiting.clear()


def _scored(bundle: Bundle, unit: Unit, writer: _Writer) -> Generator[_Ready, None, None]:
    """The unit's rows, prepared in one thread while those before are scored, and written in another. Scored in this
    one: in others malloc gives large tensors back to the system each time."""
    pending = deque[tuple[_Ready, Future[None]]]()
    with closing(Prefetcher(_read(bundle, unit), _AHEAD)) as batches, ThreadPoolExecutor(1) as thread:
        for batch in batches:
            pending.append((batch, thread.submit(writer.write, batch, bundle.run(batch.prepared))))
            if len(pending) > _AHEAD:
                yield _done(*pending.popleft())
        for each in pending:
            yield _done(*each)


def _done(batch: _Ready, writing: Future[None]) -> _Ready:
    writing.result()
    return batch


def _read(bundle: Bundle, unit: Unit) -> Generator[_Ready, None, None]:
    path, row = unit.groups[0].file, unit.groups[0].first_row
    kept, columns = _kept(bundle), list(bundle.schema.columns())
    try:
        with open_file(path) as file:
            groups = [group.index for group in unit.groups]
            for rows in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                batch = to_batch(rows, bundle.schema)
                yield _Ready(rows.select(kept), bundle.prepare(batch), batch.timestamps.numpy())
                row += rows.num_rows
    except RowError as error:
        raise DataError(
            f"{path}: column {error.column!r}, row {row + error.row}: {error.problem}. Mend the row or leave it out; "
            "what was scored before stays"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: rows from {row} on cannot be read: {error}. Write the file anew") from error


def _kept(bundle: Bundle) -> list[str]:
    """The columns that stand beside the scores."""
    schema = bundle.schema
    return list(dict.fromkeys([schema.user_id, schema.item_id, *([schema.timestamp] if schema.timed else [])]))


def _claim(source: Path, files: Sequence[Path], folder: Path, out: Path) -> None:
    """Say in `out` what its scores are of; refuse one that holds others."""
    path, bundle = out / "score.json", hashlib.sha256((source / MANIFEST).read_bytes()).hexdigest()
    of = {"bundle": bundle, "files": identify_files(files, folder)}
    if not path.is_file():
        write_json(path, of)
    elif json.loads(path.read_text()) != of:
        raise ConfigError(f"{out} holds scores of another bundle or of other files: choose another --out, or delete it")


def _bar(rows: int, *, shown: bool) -> Progress:
    """A progress bar in rows, with rows a second; a line where there is no terminal."""
    columns = (TextColumn("scored"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(quiet=not shown), refresh_per_second=2)
    bar.add_task("scored", total=rows)
    return bar
