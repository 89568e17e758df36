"""Rows of entities that come with the days, and between them: they give an entity its vector without an event, and take
it away.

A delivery goes along with the first cycle after it, and with each further one until a day that passed its gates has
taken it. Of an entity with both the last row or event by time counts. Who is withdrawn is a function of the deliveries
alone, and kept with the training of each day, so that a cycle that is run again finds the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.atomic import write_json
from recsys.config import DaysConfig, UpstreamConfig
from recsys.data.delivered import check_rows, with_rows
from recsys.data.entities import entity_parts, withdrawn_after
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.scan import Findings, Window
from recsys.data.schema import Schema
from recsys.folders import upstream_folder
from recsys.refresh.arms import ENTITIES
from recsys.refresh.between import Entry, newest
from recsys.refresh.days import find_day, window
from recsys.refresh.records import WITHDRAWN, Ledger, Record
from recsys.screening import screen
from recsys.train.distributed import Environment

Withdrawn = Mapping[str, Mapping[int, int]]
"""Owner -> id -> time of the row that withdrew it, ms."""
NOBODY_WITHDRAWN: Withdrawn = {owner: {} for owner in ENTITIES}


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Rows that came together."""

    name: str
    """`2024-01-31-rows`, or `between-0001`: what is wrong with them is in out/quarantine/<upstream>-<name>.json."""
    root: Path
    """The folder that the files lie below."""
    files: Mapping[str, Sequence[Path]]
    """Owner -> files."""
    since: int
    """When it came, ms: its entities count as active at this time at the least."""
    window: Window | None = None
    """The day that it came with."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What deliveries say that go along with a cycle."""

    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Owner -> files, in the order of delivery."""
    since: Mapping[Path, int] = field(default_factory=dict)
    """File -> when it came, ms."""
    skip: Quarantine = NOTHING
    """Rows that are left out."""
    bad: dict[str, int] = field(default_factory=dict)
    """Delivery -> how many these are; those without are not listed."""

    def of(self, owner: str) -> list[Path]:
        """An owner's files."""
        return list(self.files.get(owner, ()))


@dataclass(frozen=True, kw_only=True)
class Along:
    """Which deliveries go along with a cycle, and when it publishes."""

    rows: Mapping[str, str]
    """Days -> fingerprints of their rows."""
    between: tuple[int, ...]
    """Numbers of the deliveries between the days."""
    newest: int
    """Number of the newest of these that is there; 0: none."""
    as_of: int
    """Of the snapshots, ms."""
    before: int
    """They go on from the newest ones before this time, ms."""

    @property
    def key(self) -> dict[str, Any]:
        """What of it a publication is known by."""
        return {"rows": dict(self.rows), "between": self.newest}


def along(
    day: str,
    end: int,
    rows: Mapping[str, str],
    delivered: Sequence[Entry],
    built_on: Sequence[Record],
    records: Sequence[Record],
) -> Along:
    """What goes along with the cycle of a day.

    A snapshot is as of the end of its day, or later where something is published as of a later time: a day that is
    processed late may find rows of the next day embedded.

    Args:
        day: ISO date.
        end: of the day, ms.
        rows: day -> fingerprint of the rows that are there.
        delivered: what came between the days.
        built_on: records of the days that it builds on.
        records: of all days.
    """
    taken: dict[str, str] = {}
    for record in built_on:
        taken |= record.rows
    replaced = next((record for record in records if record.day == day), None)
    times = [record.as_of for record in records] + [entry.publication.as_of for entry in delivered]
    floor = max(times, default=0)
    as_of = before = end if floor < end else floor + 1
    if replaced is not None:
        as_of, before = max(replaced.as_of, floor), replaced.before or replaced.as_of
    done = max((record.between for record in built_on), default=0)
    return Along(
        rows={each: value for each, value in rows.items() if each <= day and taken.get(each) != value},
        between=tuple(entry.number for entry in delivered if entry.number > done),
        newest=newest(delivered),
        as_of=as_of,
        before=before,
    )


def day_delivery(data: Path, days: DaysConfig, day: str) -> Delivery:
    """The rows that a day came with; there may be none."""
    start, end = window(days, day)
    files = {owner: find_day(data, days, day, f"{owner}s") for owner in ENTITIES}
    return Delivery(name=f"{day}-rows", root=data, files=files, since=start, window=Window(day, None, end))


def between_delivery(entry: Entry) -> Delivery:
    """Rows that came between the days."""
    name = f"between-{entry.number:04d}"
    return Delivery(name=name, root=entry.root, files={entry.owner: [entry.file]}, since=entry.since)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where rows are read."""

    upstream: UpstreamConfig
    """For whom."""
    schema: Schema
    """Of its events."""
    data: Path
    """Folder of the events."""
    out: Path
    """Folder of the run."""
    environment: Environment
    """This rank."""


def tell(deliveries: Sequence[Delivery], place: Place) -> Told:
    """Read all rows of these deliveries once, or look up what was found before. A collective.

    Raises:
        DataError, ClockSkewError: files that do not fit the events, rows of the other owner, or more rows that cannot
            be used than the schema allows: an id twice on a day, a time after it.
    """
    files: dict[str, list[Path]] = {owner: [] for owner in ENTITIES}
    since, skip, bad = dict[Path, int](), NOTHING, dict[str, int]()
    for delivery in deliveries:
        kept = {owner: with_rows(given) for owner, given in delivery.files.items()}
        for owner, given in delivery.files.items():
            if given and not kept[owner] and place.environment.is_main:
                print(f"{place.upstream.name}-{delivery.name}: no rows of {owner}s, nothing to do for them", flush=True)
        found = screen_rows({owner: each for owner, each in kept.items() if each}, delivery, place)
        if found is None:
            continue
        for owner, each in kept.items():
            files[owner] += each
            since |= dict.fromkeys(each, delivery.since)
        skip |= found.quarantine
        bad |= {delivery.name: sum(map(len, found.quarantine.rows.values()))} if found.bad else {}
    return Told(files=files, since=since, skip=skip, bad=bad)


def screen_rows(files: Mapping[str, Sequence[Path]], delivery: Delivery, place: Place) -> Findings | None:
    """What is wrong with a delivery's rows; None: it has none. A collective.

    Args:
        files: owner -> those of the delivery's files that hold rows.
        delivery: the delivery.
        place: where it is read.

    Raises:
        DataError, ClockSkewError: as `tell`.
    """
    parts = []
    for owner, given in files.items():
        check_rows(given, place.schema, owner, beside=_events(place))
        parts += entity_parts(given, place.schema, owner, window=delivery.window, distinct=True)
    if not parts:
        return None
    return screen(place.out, f"{place.upstream.name}-{delivery.name}", parts, delivery.root, place.environment)


def _events(place: Place) -> list[Path]:
    """A file of the source's events, if it is still there: its types of columns are the model's."""
    found = place.data.glob(place.upstream.source.events[0])
    return sorted(path for path in found if path.is_file())[:1]


def withdrawn_before(ledger: Ledger, upstream: str, built_on: Sequence[Record]) -> Withdrawn:
    """Who was withdrawn once the newest day that a cycle builds on was done, or the source was published."""
    path = ledger.withdrawn(built_on[-1]) if built_on else upstream_folder(ledger.out, upstream) / WITHDRAWN
    if not path.is_file():
        return NOBODY_WITHDRAWN
    found = json.loads(path.read_text())
    return {owner: {int(id_): time for id_, time in found[owner].items()} for owner in ENTITIES}


def withdrawn_by(before: Withdrawn, told: Told, schema: Schema) -> Withdrawn:
    """Who is withdrawn once these rows are known."""
    return {owner: withdrawn_after(before[owner], told.of(owner), schema, owner, told.skip) for owner in ENTITIES}


def write_withdrawn(path: Path, withdrawn: Withdrawn, schema: Schema) -> None:
    """Keep who is withdrawn, for what builds on it; nothing where the schema withdraws nobody."""
    if schema.withdrawn:
        write_json(path, {owner: {str(id_): time for id_, time in ids.items()} for owner, ids in withdrawn.items()})


def as_tensors(withdrawn: Withdrawn) -> dict[str, Tensor]:
    """Owner -> who is withdrawn, int64 [w] each, ascending."""
    return {owner: torch.tensor(sorted(ids), dtype=torch.int64) for owner, ids in withdrawn.items()}
