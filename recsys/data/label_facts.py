"""What the losses of some labels have to know of all rows that are trained on, counted once before a training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.convert import read_columns
from recsys.data.errors import DataError
from recsys.data.files import read_footers
from recsys.data.groups import read_group
from recsys.data.labels import read_labels
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ints, Ranks
from recsys.data.schema import Label, Schema
from recsys.data.strings import ColumnReader
from recsys.dates import iso

LEAST_DELAYS = 30
"""Outcomes of rows whose window has ended that delays are measured by at least."""
QUANTILES = 1024
"""That a distribution of delays is kept as."""


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Of the rows of one training."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Label that is a value -> its mean; 1 where all are 0."""
    as_of: int | None = None
    """Time up to which outcomes are known, ms; None: no label's outcomes have times."""
    delays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Label that is `corrected` -> [QUANTILES], ascending: quantiles of its outcomes' delays, shares of its window."""


def survey_labels(
    files: Sequence[Path],
    schema: Schema,
    skip: Quarantine = NOTHING,
    *,
    as_of: int | None = None,
    with_delays: bool = True,
    ranks: Ranks = ALONE,
) -> LabelFacts:
    """Read labels and times of all rows, if any label asks for it: each row on one rank. A collective.

    Args:
        files: that are trained on.
        schema: whose labels are trained.
        skip: rows that are left out.
        as_of: time up to which outcomes are known, ms; None: the newest row's, where a label's outcomes have times.
        with_delays: whether the delays of `corrected` labels are to be measured; a training that goes on from another
            has them from there.
        ranks: who share the reading; the facts are the same on every one, and for any number of them.

    Raises:
        DataError: what `read_group` raises, or too few outcomes to measure delays by.
    """
    facts = schema.select(features=())
    timed = any(label.time for label in schema.labels)
    if not timed and not any(label.is_value for label in schema.labels):
        return LabelFacts()
    if timed and as_of is None:
        as_of = newest_outcome(files, schema.select(labels=()), skip, ranks)
    as_of = as_of if timed else None
    count = len(schema.labels)
    sums, rows = defaultdict[int, NDArray[np.float64]](lambda: np.zeros(count)), np.zeros(count, np.int64)
    delays = {label.name: list[NDArray[np.float32]]() for label in schema.labels}
    for group, columns, times in _read(files, facts, skip, ranks):
        read = read_labels(schema.labels, columns, times, as_of)
        sums[group] += read.values.sum(0, dtype=np.float64)
        rows += read.mask.sum(0)
        for index, label in enumerate(schema.labels):
            if with_delays and label.delayed == "corrected" and as_of is not None:
                came = read.delays[:, index]
                counted = (came >= 0) & (came <= label.window_ms) & (times + label.window_ms <= as_of)
                delays[label.name].append((came[counted] / label.window_ms).astype(np.float32))
    total, rows = _added(sums, count, ranks), ranks.sum(rows)
    means = np.where(total > 0, total / np.maximum(rows, 1), 1.0).tolist()
    corrected = [label.name for label in schema.labels if with_delays and label.delayed == "corrected"]
    measured = {name: _gathered(delays[name], ranks) for name in corrected if as_of is not None}
    for label in schema.labels:
        found = measured.get(label.name)
        if found is not None and as_of is not None and len(found) < LEAST_DELAYS:
            raise DataError(_too_few(label, len(found), as_of))
    return LabelFacts(
        means={label.name: mean for label, mean in zip(schema.labels, means, strict=True) if label.is_value},
        as_of=as_of,
        delays={name: _quantiles(found) for name, found in measured.items()},
    )


def newest_outcome(files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING, ranks: Ranks = ALONE) -> int:
    """The newest time that rows tell of, ms: of an event, or of an outcome of the schema's labels within its window. A
    collective."""
    newest = 0
    for _, columns, times in _read(files, schema.select(features=()), skip, ranks):
        newest = max(newest, int(times.max(initial=0)))
        came = read_labels(schema.labels, columns, times, None).delays
        for index, label in enumerate(schema.labels):
            known = came[:, index] <= label.window_ms
            newest = max(newest, int((times + came[:, index])[known].max(initial=0)))
    return int(ranks.max(np.array([newest]))[0])


def known_until(files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING) -> int | None:
    """`newest_outcome` of files that a model is judged by; None: no outcome has a time."""
    return newest_outcome(files, schema, skip) if any(label.time for label in schema.labels) else None


def _read(
    files: Sequence[Path], facts: Schema, skip: Quarantine, ranks: Ranks
) -> Iterator[tuple[int, Mapping[str, pa.Array], Ints]]:
    """Number of the row group, columns and times of this rank's rows, piece by piece."""
    footers = read_footers(files, facts)
    readers = {name: ColumnReader(kind) for name, kind in footers.types.items()}
    for number in range(ranks.rank, len(footers.row_groups), ranks.world_size):
        group = footers.row_groups[number]
        gone = skip.within(group)
        if group.rows == len(gone):
            continue
        for piece in read_group(group, 0, group.rows - len(gone), readers, gone):
            columns = read_columns(piece.data, facts)
            times = columns[facts.timestamp].to_numpy() if facts.timed else np.zeros(piece.data.num_rows, np.int64)
            yield number, columns, times


def _added(sums: Mapping[int, NDArray[np.float64]], count: int, ranks: Ranks) -> NDArray[np.float64]:
    """The sums of all row groups, [count], added up in their order whoever has read them. A collective."""
    parts = np.array([sums[group] for group in sums], np.float64).reshape(len(sums), count)
    columns = [np.fromiter(sums, np.int64, len(sums)), *(np.ascontiguousarray(x).view(np.int64) for x in parts.T)]
    groups, *bits = ranks.gather(columns)
    total = np.zeros(count)
    for row in np.argsort(groups):
        total += np.array([column[row] for column in bits], np.int64).view(np.float64)
    return total


def _gathered(parts: Sequence[NDArray[np.float32]], ranks: Ranks) -> NDArray[np.float32]:
    """The numbers of all ranks. A collective."""
    mine = np.concatenate([np.empty(0, np.float32), *parts])
    (bits,) = ranks.gather([mine.view(np.int32).astype(np.int64)])
    return bits.astype(np.int32).view(np.float32)


def _quantiles(delays: NDArray[np.float32]) -> NDArray[np.float32]:
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.quantile(delays, shares, method="inverted_cdf").astype(np.float32)


def _too_few(label: Label, count: int, as_of: int) -> str:
    return (
        f"label {label.name!r}: {count} of its outcomes are of rows whose window of {label.window} had ended by "
        f"{iso(as_of)}, the end of what is trained on; {LEAST_DELAYS} are needed to measure delays by. Give older "
        "events too, shorten the window, or say delayed = 'wait' or 'ignored'"
    )
