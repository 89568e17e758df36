"""A small pair of series whose vectors say who clicks on what, published day by day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedding_store import EmbeddingStore
from recsys.atomic import write_json
from recsys.data.newest import Newest
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks
from recsys.data.schema import Label, Schema
from recsys.data.shares import read_share
from recsys.data.survey import Survey
from recsys.dates import DAY_MS
from recsys.monitor.quality import Quality, measure
from recsys.monitor.traffic import Seen, Traffic, TrafficSample

DIM = 8
USERS = torch.arange(200) * 7_919 - 300_000  # some negative
ITEMS = torch.arange(80) * 104_729 + 2**40


def vectors_of(count: int, seed: int) -> Tensor:
    """Unit vectors, float32 [count, DIM]."""
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def publish(store: EmbeddingStore, name: str, ids: Tensor, vectors: Tensor, day: int, space: str = "ctr-1") -> int:
    """A snapshot as of the end of day `day`; its version."""
    series = store.create(name, dim=vectors.shape[1], dtype="float32", exist_ok=True)
    with series.write(as_of=(day + 1) * DAY_MS, space=space) as writer:
        writer.append(ids, vectors)
    return series.latest().version


def seen(ids: Tensor) -> Seen:
    """Entities of events, int64 [E]."""
    return Seen(*ids.unique(return_counts=True))


class DayEvents(NamedTuple):
    """A day event by event."""

    users: Tensor  # int64 [E]
    items: Tensor  # int64 [E]
    labels: Tensor  # float32 [E]
    mask: Tensor  # bool [E]

    @property
    def traffic(self) -> Traffic:
        """As it is measured."""
        users, items, labels, mask = (column.numpy() for column in self)
        sample = TrafficSample(Schema(timestamp="", user_id="u", item_id="i", labels=(Label(name="click"),)), "click")
        places = np.arange(len(users))
        sample.add_events(users, items, labels, mask, places)
        rows = {}
        for owner, ids in (("user", users), ("item", items)):
            newest = Newest()
            newest.add(ids, places, places)
            rows[owner] = newest.rows()
        return sample.together(rows)


def day_events(rows: int = 3_000, seed: int = 0) -> DayEvents:
    """Users meet items; the label follows the inner product of `vectors_of`'s seeds 1 (users) and 2 (items)."""
    generator = torch.Generator().manual_seed(seed)
    user, item = (torch.randint(len(ids), (rows,), generator=generator) for ids in (USERS, ITEMS))
    score = (vectors_of(len(USERS), 1)[user] * vectors_of(len(ITEMS), 2)[item]).sum(dim=1)
    labels = (torch.rand(rows, generator=generator) < torch.sigmoid(6 * score)).float()
    return DayEvents(USERS[user], ITEMS[item], labels, torch.ones(rows, dtype=torch.bool))


def noisy(owner: str, day: int, vectors: Tensor) -> Tensor:
    """Noise that fades day by day, so that every version scores differently."""
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(day * 2 + (owner == "user")))
    return vectors + noise / (day + 1)


def replay(
    store: EmbeddingStore,
    days: int,
    change: Callable[[str, int, Tensor], Tensor] = lambda owner, day, vectors: vectors,
    first: int = 0,
) -> Quality:
    """Publish the pair daily, true vectors passed through `change(owner, day, vectors)`; the last day's quality."""
    for day in range(first, first + days):
        versions = {}
        for owner, ids, seed in (("user", USERS, 1), ("item", ITEMS, 2)):
            name = f"{owner}_ctr"
            activity = torch.tensor([[19_000.0 + day, 1.0]]).repeat(len(ids), 1)
            activity[len(ids) // 2 :, 0] = 19_000.0 + first
            publish(store, f"{name}.activity", ids, activity, day)
            versions[name] = publish(store, name, ids, change(owner, day, vectors_of(len(ids), seed)), day)
    return measure(store, "ctr", versions, day_events().traffic)


def day_name(day: int) -> str:
    """ISO date of day 0, 1, ... of the replays: 2024-02-26 is day 0."""
    return (date(2024, 2, 26) + timedelta(days=day)).isoformat()


def write_record(folder: Path, day: int, quality: Quality, **fields: Any) -> None:
    """`days/<day>.json` as a refresh leaves it."""
    record = {
        "day": day_name(day),
        "as_of": (day + 1) * DAY_MS,
        "versions": {name: measured.version for name, measured in quality.series.items()},
        "gates": [],
        "seconds": {"train": 12.5 + day, "embed": 2.5, "aggregate": 0.25, "store": 0.5, "quality": 1.0},
        "quality": quality.as_dict(),
    }
    write_json(folder / "days" / f"{day_name(day)}.json", {**record, **fields})


def read_traffic(
    files: Sequence[Path], schema: Schema, label: str, skip: Quarantine = NOTHING, *, ranks: Ranks = ALONE
) -> Traffic:
    """A day's traffic as a cycle collects it, from files alone. A collective."""
    facts = schema.select(features=(), labels=(label,))
    found, sample = Survey(files, facts), TrafficSample(facts, label, None)
    for read in read_share(files, facts, skip, ranks):
        found.add(read)
        sample.add(read)
    return sample.together(found.together(ranks).rows, ranks)
