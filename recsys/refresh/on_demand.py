"""`recsys embed`: rows of entities are embedded between two cycles, by one process, in seconds.

The newest model whose day was not refused gives the vectors. Both series get a delta, the other owner's an empty one,
so that versions of users and items never part; they are as of a time after everything that is published, and not before
the rows'. What was published, and the rows, are kept (`recsys.refresh.between`): the next cycle embeds them again.

Half of the command's time is the import of torch and TorchRec: nothing here may import what only training needs.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from recsys.config import RefreshConfig, UpstreamConfig
from recsys.data.delivered import OTHER, with_rows
from recsys.data.errors import DataError
from recsys.data.last_events import NOBODY, LastEvents, last_events
from recsys.data.schema import Schema
from recsys.dates import DAY_MS, HOUR_MS, number_of
from recsys.folders import upstream_folder
from recsys.models.kinds import UpstreamModel, build_upstream
from recsys.refresh.between import Entry, entries, keep, newest, publication_of
from recsys.refresh.catalogue import (
    Delivery,
    Place,
    as_tensors,
    between_delivery,
    tell,
    withdrawn_before,
    withdrawn_by,
)
from recsys.refresh.content import Content, Timer
from recsys.refresh.days import window
from recsys.refresh.errors import UnfinishedError
from recsys.refresh.publish import Publication, Publisher, space_name
from recsys.refresh.records import PUBLICATION, PUBLISHED, Ledger, Record
from recsys.source import sized_upstream, upstream_schema
from recsys.stages import exclusive
from recsys.train import checkpoint
from recsys.train.checkpoint import CheckpointError, load_model
from recsys.train.distributed import Environment, process_group
from recsys.train.tables import allocate


def embed_rows(config: RefreshConfig, rows: Path, owner: str, data: Path, out: Path) -> Publication | None:
    """Embed the entities of a file of rows and publish them.

    Args:
        config: the upstream and how it is refreshed.
        rows: one row an entity, as the source's `users` (`items`) have.
        owner: `user` or `item`.
        data: folder of the events.
        out: folder of the run, where the upstream's vectors have been published.

    Returns:
        what was published, now or by the same call before; None: the file holds no row.

    Raises:
        DataError: no such file, one that does not fit, or more rows that cannot be used than the schema allows.
        CheckpointError: the model's checkpoint is missing, or of another schema or config.
        UnfinishedError: nothing is published yet, or a cycle was stopped while it published.
        StoreError: the store refuses a snapshot, or the tag was moved by somebody else.
    """
    if not rows.is_file():
        raise DataError(f"{rows}: no such file; give --rows a Parquet file of {owner}s")
    if not with_rows([rows]):
        print(f"{rows} holds no rows: nothing to do")
        return None
    start = time.monotonic()
    config = replace(config, upstream=sized_upstream(config.upstream, out))
    schema, name = upstream_schema(config.upstream, data, out), config.upstream.name
    with process_group(alone=True) as environment, exclusive(upstream_folder(out, name), environment):
        place = Place(upstream=config.upstream, schema=schema, data=data, out=out, environment=environment)
        known = _known(config, out)
        key = known.key(rows, owner)
        last = known.delivered[-1] if known.delivered else None
        again = last if last is not None and last.publication.key == key else None
        if again is not None and again.publication.done:
            print(f"{name}: {rows} was embedded before, as version {again.publication.versions[f'{owner}_{name}']}")
            return again.publication
        number = again.number if again else newest(known.delivered) + 1
        content, as_of = _content(known, rows, owner, number, place)
        publisher = Publisher(out, config, environment)
        known.require_finished(publisher)
        if again is None:
            keep(known.ledger.between, number, rows)
        path = publication_of(known.ledger.between, number)
        publication = publisher.decide(path, key, as_of, known.space)
        publisher.publish(publication, content, Timer())
        if moves := publisher.followed(publication):
            publisher.move_tags(publication, path)
        publisher.note_done(publication, path)
    tag = f"tag {config.tag} moved" if moves else f"tag {config.tag} did not stand on the version before, and stays"
    count, version = len(content.events[owner]), publication.versions[f"{owner}_{name}"]
    print(f"{name}: {count:,} {owner}s of {rows} -> version {version}, {tag} ({time.monotonic() - start:.1f} s)")
    return publication


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is published when rows come."""

    config: RefreshConfig
    ledger: Ledger
    records: Sequence[Record]
    """Of all days."""
    delivered: Sequence[Entry]
    """What came between the days before."""
    first: Publication
    """That of the source."""

    @property
    def passed(self) -> list[Record]:
        """The days that were not refused."""
        return [record for record in self.records if not record.gates]

    @property
    def model(self) -> Path:
        """The newest checkpoint whose day was not refused, or the source's."""
        if self.passed:
            return self.ledger.out / self.passed[-1].checkpoint
        folder = upstream_folder(self.ledger.out, self.config.upstream.name) / "checkpoints"
        found = checkpoint.latest(folder)
        if found is None:
            raise CheckpointError(f"{folder}: no checkpoint there; train the upstream on its source first")
        return found

    @property
    def space(self) -> str:
        """Of its vectors."""
        return self.passed[-1].space if self.passed else space_name(self.config.upstream.name)

    @property
    def offset(self) -> float:
        """Hours of the days before UTC."""
        return self.config.days.utc_offset_hours if self.config.days else 0.0

    @property
    def day(self) -> int:
        """Number of the newest day: by this one entities expire."""
        newest = self.passed[-1] if self.passed else None
        end = self.first.as_of if newest is None else window(self.config.day_by_day(), newest.day)[1]
        return number_of(end - 1, self.offset)

    @property
    def since(self) -> int:
        """When that day begins, ms: as of then at the least the rows' entities are active."""
        return self.day * DAY_MS - round(self.offset * HOUR_MS)

    def floor(self, before: int) -> int:
        """The newest time as of which anything is published, ms, but for deliveries from this number on."""
        between = [entry.publication.as_of for entry in self.delivered if entry.number < before]
        return max([self.first.as_of, *(record.as_of for record in self.records), *between])

    def pending(self, before: int) -> list[Entry]:
        """What came since the newest day that passed, but for deliveries from this number on."""
        done = self.passed[-1].between if self.passed else 0
        return [entry for entry in self.delivered if done < entry.number < before]

    def key(self, rows: Path, owner: str) -> dict[str, Any]:
        """What the publication of these rows is known by: it is the same until a cycle has come to its end."""
        after = f"{self.records[-1].day}/{self.records[-1].key}" if self.records else ""
        model = checkpoint.read_progress(self.model)["id"]
        content = f"{rows.stat().st_size} bytes, {zlib.crc32(rows.read_bytes()):08x}"
        return {
            "file": rows.name,
            "rows": content,
            "owner": owner,
            "since": self.since,
            "model": model,
            "after": after,
        }

    def require_finished(self, publisher: Publisher) -> None:
        """Raise UnfinishedError if a cycle was stopped after it had begun to publish: it alone can complete that."""
        done = {(record.day, record.key) for record in self.records}
        versions = self.records[-1].versions if self.records else self.first.versions
        for path in sorted(self.ledger.folder.glob(f"days/*/*/{PUBLICATION}")):
            found = Publication(**json.loads(path.read_text()))
            begun = any(
                publisher.store.series(name).next_version > version > versions.get(name, 0)
                for name, version in found.versions.items()
            )
            place = (path.parent.parent.name, path.parent.name)
            if begun and place not in done and found.key.get("between") == newest(self.delivered):
                raise UnfinishedError(
                    f"the cycle of {place[0]} was stopped while it published: give `recsys refresh` again, which "
                    "completes it, then this command"
                )


def _known(config: RefreshConfig, out: Path) -> _Known:
    """Raises UnfinishedError if the source has not been published."""
    name = config.upstream.name
    path = upstream_folder(out, name) / PUBLISHED
    first = Publication(**json.loads(path.read_text())) if path.is_file() else None
    if first is None or not first.done:
        raise UnfinishedError(
            f"{out} does not hold the first vectors of upstream {name!r} yet: give `recsys refresh`, then this command"
        )
    ledger = Ledger(out, name)
    return _Known(
        config=config, ledger=ledger, records=ledger.records(), delivered=entries(ledger.between), first=first
    )


def _content(known: _Known, rows: Path, owner: str, number: int, place: Place) -> tuple[Content, int]:
    """The vectors to be, and the time as of which they are published."""
    schema, name = place.schema, f"between-{number:04d}"
    delivery = Delivery(name=name, root=rows.parent, files={owner: [rows]}, since=known.since)
    told = tell([*map(between_delivery, known.pending(number)), delivery], place)
    withdrawn = withdrawn_by(withdrawn_before(known.ledger, place.upstream.name, known.passed), told, schema)
    chosen = last_events([rows], schema, owner, told.skip, told.since)
    events: dict[str, LastEvents] = {owner: chosen.without(withdrawn[owner]), OTHER[owner]: NOBODY}
    content = Content(
        model=load_tower(known.model, place.upstream, schema, owner, place.environment),
        schema=schema,
        events=events,
        day=known.day,
        utc_offset_hours=known.offset,
        withdrawn=as_tensors(withdrawn),
    )
    return content, max(known.floor(number) + 1, chosen.as_of)


def load_tower(
    path: Path, upstream: UpstreamConfig, schema: Schema, owner: str, environment: Environment
) -> UpstreamModel:
    """A model that has its tower and the vocabulary of this owner alone, with whole tables in this process.

    Raises:
        CheckpointError: the checkpoint is of another schema or config, or cannot be read.
    """
    model = build_upstream(upstream, schema)
    tower, names = model.part_of(owner)
    allocate(tower)
    load_model(path, nn.ModuleDict({"model": model}), parts=tuple(f"model.{name}" for name in names))
    tower.to(environment.device)
    return model
