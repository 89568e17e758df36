"""Which rows an upstream learns from, and which the rankers after it: by time, in whole days where there are enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from recsys.config import LogConfig
from recsys.config.log import SESSION
from recsys.data.errors import DataError
from recsys.data.log.engine import Connection, number, quoted
from recsys.data.log.rows import labels
from recsys.dates import DAY_MS, HOUR_MS, span_ms

NAMES = ("upstream", "train", "validation", "test")
SHARES = (0.5, 0.25, 0.1, 0.15)
"""Of the rows, in that order: half for the upstream, the rest 50 : 20 : 30 for the rankers."""
_FEWEST = 6
"""Days below which the rows are split within the days."""
RARE = 30
"""Rows of either outcome that a label needs in every split to be a task; if none has as many, one will do."""


@dataclass(frozen=True)
class Part:
    """Rows that lie in a folder of their own."""

    name: str
    """The folder: an ISO date, or where there are few days the split."""
    begin: int
    """First row."""
    end: int
    """One past its last."""


@dataclass(frozen=True)
class Splits:
    """The parts, and which of them are in which split."""

    parts: tuple[Part, ...]
    """All, by time."""
    of: dict[str, tuple[Part, ...]]
    """Split -> its parts. Some may be in none: those whose labels are known only when the next split has begun."""
    by_day: bool
    """Whether a part is a day."""
    tasks: tuple[str, ...]
    """Labels with enough of both outcomes in every split, see RARE."""
    gap: int = 0
    """Days at the end of each split that are in none."""

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        return sum(part.end - part.begin for part in self.of[split])


def split(connection: Connection, config: LogConfig) -> Splits:
    """Split `rows` by time.

    Raises:
        DataError: too few moments, or no label that has both outcomes in every split.
    """
    offset = round(config.log.utc_offset_hours * HOUR_MS)
    days = [
        Part(str(np.datetime64(day, "D")), begin, end)
        for day, begin, end in connection.execute(
            f"SELECT (t + {offset}) // {DAY_MS}, min(rowid), max(rowid) + 1 FROM rows GROUP BY 1 ORDER BY 1"
        ).fetchall()
    ]
    by_day = len(days) >= _FEWEST
    parts = days if by_day else _moments(connection)
    late = late_days(config) if by_day else 0
    gap = late if len(parts) >= len(NAMES) * (late + 1) else 0
    cuts = _cuts(parts, least=gap + 1)
    of = {name: _matured(parts[begin:end], gap) for name, (begin, end) in zip(NAMES, pairwise(cuts), strict=True)}
    rarest = {name: min(_rarer(connection, config, name, group) for group in of.values()) for name in labels(config)}
    tasks = tuple(name for name, rows in rarest.items() if rows >= min(RARE, max(1, *rarest.values())))
    if not tasks:
        raise DataError(
            f"none of the labels {', '.join(labels(config))} has rows of 0 and of 1 in each of {', '.join(NAMES)} "
            f"({', '.join(f'{sum(p.end - p.begin for p in group)} rows' for group in of.values())}): give more of the "
            "log, or other actions"
        )
    return Splits(tuple(parts), of, by_day, tasks, gap)


def late_days(config: LogConfig) -> int:
    """Days after a row until all its labels are known, where that is a day or more."""
    spans = (action.within for action in config.actions.values() if action.within not in ("", SESSION))
    longest = max((span_ms(span) or 0 for span in spans), default=0)
    return -(-longest // DAY_MS) if longest >= DAY_MS else 0


def patterns(splits: Splits, name: str) -> tuple[str, ...]:
    """Glob patterns of a split's files, few of them: months, and tens of days."""
    chosen = [part.name for part in splits.of[name]]
    if not splits.by_day:
        return tuple(f"events/{part}/*.parquet" for part in chosen)
    every = [part.name for part in splits.parts]
    found = []
    for month in dict.fromkeys(day[:8] for day in chosen):
        days = [day for day in chosen if day.startswith(month)]
        if days == [day for day in every if day.startswith(month)]:
            found.append(f"{month}*")
            continue
        for ten in dict.fromkeys(day[:9] for day in days):
            found.append(ten + _digits([day[9] for day in days if day.startswith(ten)]))
    return tuple(f"events/{pattern}/*.parquet" for pattern in found)


def _digits(digits: Sequence[str]) -> str:
    if len(digits) == 1:
        return digits[0]
    whole = int(digits[-1]) - int(digits[0]) == len(digits) - 1 and len(digits) > 2
    return f"[{digits[0]}-{digits[-1]}]" if whole else f"[{''.join(digits)}]"


def _cuts(parts: Sequence[Part], least: int) -> list[int]:
    """Where each split begins among the parts, and the last ends: by rows, but so many parts each at least."""
    if len(parts) < len(NAMES):
        raise DataError(
            f"the log's rows are of {len(parts)} different times, and {len(NAMES)} splits follow one another in time: "
            "give more of the log"
        )
    rows = np.cumsum([part.end - part.begin for part in parts])
    cuts = [0]
    for place, share in enumerate(np.cumsum(SHARES)[:-1], start=1):
        nearest = int(np.argmin(np.abs(rows - share * rows[-1]))) + 1
        cuts.append(min(max(nearest, cuts[-1] + least), len(parts) - (len(NAMES) - place) * least))
    return [*cuts, len(parts)]


def _moments(connection: Connection) -> list[Part]:
    """Four parts of a log of few days, that no moment is in two of."""
    total = number(connection, "SELECT count(*) FROM rows")
    ends = [0]
    for place, share in enumerate(np.cumsum(SHARES)[:-1], start=1):
        at = min(max(round(share * total), ends[-1] + 1), total - len(NAMES) + place)
        found = number(
            connection, f"SELECT min(rowid) FROM rows WHERE t = (SELECT t FROM rows WHERE rowid = {max(at, 0)})"
        )
        ends.append(found)
    ends.append(total)
    return [Part(name, begin, end) for name, (begin, end) in zip(NAMES, pairwise(ends), strict=True) if begin < end]


def _matured(parts: Sequence[Part], gap: int) -> tuple[Part, ...]:
    """Days whose labels are all known when the last of them ends; of a log with days that are missing the first one."""
    if not gap:
        return tuple(parts)
    last = np.datetime64(parts[-1].name, "D") - gap
    return tuple(part for part in parts if np.datetime64(part.name, "D") <= last) or tuple(parts[:1])


def _rarer(connection: Connection, config: LogConfig, label: str, parts: Sequence[Part]) -> int:
    """Rows of these parts with the label's rarer outcome."""
    valid = valid_column(config, label)
    begin, end = parts[0].begin, parts[-1].end
    where = f"rowid >= {begin} AND rowid < {end}" + (f" AND {quoted(valid)} = 1" if valid else "")
    ones = f"count(*) FILTER ({quoted(label)} = 1)"
    return number(connection, f"SELECT least({ones}, count(*) - {ones}) FROM rows WHERE {where}")


def valid_column(config: LogConfig, label: str) -> str:
    """The column that is 1 where a label exists; empty: on all rows."""
    given = config.actions[label].given
    return given if given in labels(config) else ""
