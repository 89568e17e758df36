"""What the cycles of one upstream leave behind, under `out/daily/<upstream>`:

days/<day>.json                   the record of the day's cycle, written last: a cycle is done exactly when it is there
days/<day>/<key>/                 one training: checkpoints, metrics.jsonl, tensorboard, publish.json, rotation.npy,
                                  withdrawn.json
between/                          rows embedded between the days, see recsys/refresh/between.py
files.json                        what the days' files hold, see recsys/refresh/fingerprints.py
ignored.json                      days that came again too late to be applied
metrics.prom, tensorboard/, <series>/quality.html   see recsys/monitor
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recsys.atomic import write_json
from recsys.config import RefreshConfig

KEPT = 4
"""Newest records whose checkpoints are kept: a correction of the newest starts from the one before it."""
PUBLICATION = "publish.json"
"""What a cycle decided to publish."""
PUBLISHED = "published.json"
"""In the upstream's folder: what was published of its source."""
WITHDRAWN = "withdrawn.json"
"""Owner -> id -> time of the row that withdrew it, ms."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One processed day."""

    day: str
    """ISO date."""
    fingerprint: str
    """Of the day's files as they were used."""
    late: dict[str, str] = field(default_factory=dict)
    """Late days that went along, with their fingerprints."""
    rows: dict[str, str] = field(default_factory=dict)
    """Days whose entity rows went along, with their fingerprints."""
    between: int = 0
    """Number of the newest delivery by `recsys embed` that went along, or had before (`recsys.refresh.between`)."""
    gap: list[str] = field(default_factory=list)
    """Days before it that were not there."""
    corrects: bool = False
    """Whether it replaced an earlier record of the same day."""
    key: str
    """Name of the training's folder."""
    start: str
    """The checkpoint that training began with, relative to the run's folder; empty for a cold start."""
    checkpoint: str
    """The one it ended with."""
    as_of: int
    """Of the snapshots: the end of the day, ms; or later, where rows had been embedded as of a later time."""
    before: int = 0
    """What the day went on from is the newest snapshot before this time, ms; 0: before `as_of`."""
    space: str
    """Of the snapshots."""
    versions: dict[str, int]
    """Series -> version."""
    whole: dict[str, bool]
    """Series -> whether it was written whole (true) or as a delta."""
    expired: dict[str, int]
    """Series -> entities that left it."""
    events: int
    """Rows of the day and of the late days with it that were learned from."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Day -> rows that were left out: see out/quarantine/<upstream>-<day>.json. Days without are not listed."""
    read_as_0: dict[str, int] = field(default_factory=dict)
    """Feature -> how many of its values in these events are null or NaN."""
    entities: dict[str, int]
    """`user`, `item` -> how many were embedded."""
    rows_per_second: dict[str, float]
    """`train`: events; `embed`: entities of both kinds; of all ranks."""
    seconds: dict[str, float]
    """`train`, `embed`, `cross` where there is one, `aggregate`, `store`, `quality`."""
    gates: list[str]
    """Why the tag did not move; empty: it did."""
    tagged: bool
    """Whether the tag moved."""
    batch_size: int = 0
    """Rows a rank and step; 0 in records of an earlier version."""
    shortfall: str = ""
    """What became of events that were less than a batch; empty: they were more."""
    progressive: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the model of the day before says of the day's events, see recsys/progressive.py; empty after a cold
    start."""
    quality: dict[str, Any]
    """See recsys/monitor/quality.py."""
    alignment: dict[str, Any] | None = None
    """How well the old space was carried over, after an aligned cold start."""


class Ledger:
    """Reads and writes the records of one upstream.

    Args:
        out: folder of the run.
        upstream: its name.
    """

    def __init__(self, out: Path, upstream: str) -> None:
        self.out = out
        self.folder = out / "daily" / upstream
        """Everything of the upstream's days."""
        self.files = self.folder / "files.json"
        """What `available_days` remembers."""

    def records(self) -> list[Record]:
        """Oldest day first."""
        known = {entry.name for entry in fields(Record)}
        documents = [json.loads(path.read_text()) for path in sorted((self.folder / "days").glob("*.json"))]
        return [Record(**{key: value for key, value in each.items() if key in known}) for each in documents]

    @property
    def between(self) -> Path:
        """What `recsys embed` keeps of its deliveries, see recsys/refresh/between.py."""
        return self.folder / "between"

    def training(self, day: str, key: Mapping[str, Any]) -> Path:
        """Folder of a cycle's training; another key, another folder."""
        return self.folder / "days" / day / digest(key)

    def write(self, record: Record) -> None:
        """Finish a cycle: whole or not at all."""
        write_json(self.folder / "days" / f"{record.day}.json", asdict(record))

    def withdrawn(self, record: Record) -> Path:
        """The file that says who is withdrawn since a day, see `recsys.refresh.catalogue`."""
        return self.folder / "days" / record.day / record.key / WITHDRAWN

    def note_ignored(self, days: Mapping[str, str]) -> list[str]:
        """Note days that were delivered again too late; returns those not noted before."""
        path = self.folder / "ignored.json"
        noted = json.loads(path.read_text()) if path.is_file() else {}
        new = [day for day, value in days.items() if noted.get(day) != value]
        if new:
            write_json(path, noted | dict(days))
        return new

    def prune(self) -> None:
        """Delete the checkpoints of all but the newest records, and trainings whose results were replaced.

        Refused days do not count: the next day goes on from the newest that passed, however many were refused since.
        """
        records = self.records()
        kept = {(record.day, record.key) for record in records}
        passed = [record for record in records if not record.gates]
        newest = {(record.day, record.key) for record in (*records[-KEPT:], *passed[-KEPT:])}
        for folder in sorted((self.folder / "days").glob("*/*/")):
            place = (folder.parent.name, folder.name)
            if place not in kept:
                shutil.rmtree(folder)
            elif place not in newest:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def summary(record: Record, config: RefreshConfig) -> str:
    """One line on a cycle that is done."""
    name = config.upstream.name
    version = record.versions[f"user_{name}"]
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in record.seconds.items())
    notes = [f"with late {', '.join(record.late)}"] if record.late else []
    notes += [f"without {', '.join(record.gap)}"] if record.gap else []
    notes += ["a correction"] if record.corrects else []
    notes += [record.shortfall] if record.shortfall else []
    gone = sum(record.quarantined.values())
    notes += [f"{gone:,} row{'s' if gone > 1 else ''} quarantined"] if gone else []
    tag = f"tag {config.tag} moved" if record.tagged else f"NOT TAGGED: {'; '.join(record.gates)}"
    entities = f"{record.entities['user']} users, {record.entities['item']} items"
    noted = f" ({'; '.join(notes)})" if notes else ""
    return f"{name} {record.day}{noted}: {entities} -> version {version}, {tag} ({took})"


def before(records: Sequence[Record], day: str, *, after_refused: bool = False) -> list[Record]:
    """The days that a day builds on, oldest first: without those that were refused, unless it is to go on from them."""
    return [record for record in records if record.day < day and (after_refused or not record.gates)]


def digest(key: Mapping[str, Any]) -> str:
    """A short name for what JSON can say."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
