"""Which days of events are there, and what to do about them: nothing here trains, embeds or writes.

A day's cycle leaves a record (`recsys.refresh.records`). From what lies on disk and what the records say follows the
next cycle:

- a day that is newer than every record's is due, the oldest of them first;
- a day that turns up after a newer one was processed is *late*: it is trained on and embedded with the next day's;
- a day that is not there when a newer one is processed is a *gap*, and late if it turns up;
- the newest record's day with other content is due again, as a correction from the checkpoint before it;
- an older day with other content is *ignored*: the days after it are published, and `as_of` never decreases;
- a day with less than one event a rank is not due by itself: it goes along with the next one, as a late day does.

A day is there when its events are. Its entity rows (`recsys.refresh.catalogue`) belong to it: where they come, or
change, after it was processed as the newest, it is due again; those of an older day, or of one without events, are
embedded with the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from recsys.config import ConfigError, DaysConfig, UpstreamConfig
from recsys.data.delivered import with_rows
from recsys.data.errors import DataError
from recsys.data.footers import read_footer
from recsys.data.schema import Schema
from recsys.dates import dates, day_span
from recsys.refresh.fingerprints import Fingerprints, read_together

if TYPE_CHECKING:
    from recsys.train.distributed import Environment

_KINDS = (("events",), ("users", "items"))
"""What a day brings: its fingerprints are of each by itself."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:T\d{2})?")


@dataclass(frozen=True)
class Delivered:
    """What lies in the days' folders."""

    events: Mapping[str, str]
    """Day -> fingerprint of its events, of every day that counts and has some, oldest first."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """Day -> fingerprint of its entity rows, of every day that counts and has some, oldest first."""
    hours: int = 24
    """How long a day is."""
    enough: Callable[[Iterable[str]], bool] = any
    """Whether the events of these days are one a rank at least."""


@dataclass(frozen=True)
class Cycle:
    """One cycle that is due."""

    day: str
    """ISO date, or hour."""
    fingerprint: str
    """Of the day's files."""
    late: Mapping[str, str]
    """Late days that go along, oldest first, with their fingerprints."""
    gap: tuple[str, ...]
    """Days since the record before that are not there."""
    corrects: bool
    """Whether the newest record's day was delivered again."""

    @property
    def days(self) -> tuple[str, ...]:
        """All days whose events are trained on and whose entities are embedded, in time order."""
        return (*self.late, self.day)


class Processed(Protocol):
    """What `next_cycle` needs of a record."""

    @property
    def day(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def late(self) -> Mapping[str, str]: ...

    @property
    def rows(self) -> Mapping[str, str]: ...


def next_cycle(first: str, delivered: Delivered, records: Sequence[Processed]) -> Cycle | None:
    """The cycle to run now, or None if every day that is there has been processed.

    Args:
        first: the first day that counts.
        delivered: the days that are there.
        records: one a processed day, oldest first.
    """
    seen, available = _seen(records), delivered.events
    newest = records[-1] if records else None
    if newest is not None and newest.day in available:
        processed = {**newest.late, newest.day: newest.fingerprint}
        told = newest.rows.get(newest.day)
        changed = delivered.rows.get(newest.day, told) != told
        if changed or any(available.get(day, value) != value for day, value in processed.items()):
            return again(available, newest)
    after = "" if newest is None else newest.day
    left = [day for day in sorted(available) if day not in seen]
    due = next((day for day in left if day > after and delivered.enough(x for x in left if x <= day)), None)
    if due is None:
        return None
    late = {day: available[day] for day in left if day < due}
    start = first if newest is None else newest.day
    gap = tuple(day for day in dates(start, due, delivered.hours) if day not in available and day not in seen)
    return Cycle(due, available[due], late, gap, corrects=False)


def again(available: Mapping[str, str], newest: Processed) -> Cycle:
    """The newest record's cycle once more, with its late days as far as they are still there.

    Raises:
        DataError: the day itself is not.
    """
    if newest.day not in available:
        raise DataError(f"day {newest.day}, the newest that was processed, is not there any more: deliver it again")
    late = {day: available[day] for day in newest.late if day in available}
    return Cycle(newest.day, available[newest.day], late, (), corrects=True)


def ignored(available: Mapping[str, str], records: Sequence[Processed]) -> dict[str, str]:
    """Day -> fingerprint of the days that came again with other content after newer ones were published."""
    newest = {records[-1].day, *records[-1].late} if records else set()
    seen = _seen(records)
    return {
        day: available[day] for day in sorted(seen) if day not in newest and available.get(day, seen[day]) != seen[day]
    }


def chosen_cycle(wanted: str, first: str, delivered: Delivered, records: Sequence[Processed]) -> Cycle | None:
    """The cycle of the day a user asks for; None if it has been run and nothing has changed since.

    Raises:
        DataError: the day is not there.
        ConfigError: another day comes first, or newer ones have been published since.
    """
    available = delivered.events
    if wanted not in available:
        raise DataError(f"day {wanted} is not there; days: {', '.join(sorted(available)) or 'none'}")
    cycle = next_cycle(first, delivered, records)
    if cycle is not None and (cycle.day == wanted or (wanted in cycle.late and cycle.corrects)):
        return cycle
    if cycle is not None and wanted not in _seen(records):
        how = "goes along with" if wanted in cycle.late else "comes after"
        raise ConfigError(f"--day is {wanted}, which {how} {cycle.day}, the next day that is due: run that one")
    if wanted in ignored(available, records):
        raise ConfigError(
            f"--day is {wanted}, whose correction cannot be applied: {records[-1].day} is published and as_of never "
            "decreases. A cold retrain (--cold) learns from it"
        )
    if cycle is None and wanted not in _seen(records):
        raise ConfigError(f"--day is {wanted}, which has less than one event a rank: it goes along with the next day")
    return None


def find_day(root: Path, days: DaysConfig, day: str, what: str = "events") -> list[Path]:
    """The day's files, sorted by path; none if the day is not there. Hidden ones, and those in hidden folders, are not
    delivered yet, and files of events without a row are nothing. Of its `events`, or of its rows of `users` or
    `items`."""
    pattern = days.pattern(day, what)
    found = [
        path
        for path in sorted(root.glob(pattern) if pattern else ())
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
    ]
    return with_rows(found) if what == "events" else found


def find_days(root: Path, days: DaysConfig, *what: str) -> dict[str, list[Path]]:
    """Day -> files of every day that counts and is there, oldest first: of its `events`, unless other is asked for."""
    kinds = [kind for kind in what or ("events",) if days.pattern("", kind)]
    any_day = "????-??-??" if days.hours >= 24 else "????-??-??T??"
    paths = (str(path.relative_to(root)) for kind in kinds for path in root.glob(days.pattern(any_day, kind)))
    dated = {day for path in paths for day in _DATE.findall(path) if days.has(day)}
    found = {day: [path for kind in kinds for path in find_day(root, days, day, kind)] for day in sorted(dated)}
    return {day: files for day, files in found.items() if files}


def available_days(root: Path, days: DaysConfig, memory: Path, ranks: int = 1) -> Delivered:
    """What is there of every day that counts.

    Args:
        root: folder of the events.
        days: which days count, and where their files are.
        memory: `Ledger.files`; a file that it knows is read only if its size or times have changed.
        ranks: that share a day's events.

    Raises:
        DataError: `root` is no folder, or a file cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the folder that the days' files are in")
    fingerprints = Fingerprints(root, memory)
    events, rows = (
        {day: fingerprints.of(files) for day, files in find_days(root, days, *what).items()} for what in _KINDS
    )
    fingerprints.save()

    def enough(chosen: Iterable[str]) -> bool:
        return sum(count_rows(find_day(root, days, day)) for day in chosen) >= ranks

    return Delivered(events, rows, days.hours, enough)


def read_new_days(root: Path, days: DaysConfig, memory: Path, environment: Environment) -> None:
    """Let all ranks share the reading that `available_days` would do; arguments and errors as of it. A collective."""

    def files() -> list[Path]:
        return [path for kinds in _KINDS for found in find_days(root, days, *kinds).values() for path in found]

    read_together(root, memory, files, environment)


def small_days(root: Path, days: DaysConfig, ranks: int) -> list[str]:
    """The days that go along with the next, since they have less than one event a rank."""
    return [day for day, files in find_days(root, days).items() if count_rows(files) < ranks]


def count_rows(files: Sequence[Path]) -> int:
    """Rows of Parquet files, by their footers. Raises DataError for one that is none."""
    try:
        return sum(sum(read_footer(path).group_rows) for path in files)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"a day's file cannot be read ({error}): deliver the day again") from error


def window(days: DaysConfig, day: str) -> tuple[int, int]:
    """[start, end) of a day in ms. A snapshot that knows the day is as of its end: none of its events can read it."""
    return day_span(day, days.utc_offset_hours, days.hours)


def require_times(schema: Schema, upstream: UpstreamConfig) -> None:
    """Raise ConfigError for a log without event times: of which day an event is could not be seen."""
    if not schema.timed:
        raise ConfigError(
            f"upstream {upstream.name!r} is to be refreshed by days, but {upstream.source.schema} says "
            'timestamp = "": days need event times. Name their column there, or leave out the days (refresh.days; '
            "[days] in a refresh's own config)"
        )


def _seen(records: Sequence[Processed]) -> dict[str, str]:
    """Day -> fingerprint with which it was processed."""
    return {day: value for record in records for day, value in {**record.late, record.day: record.fingerprint}.items()}
