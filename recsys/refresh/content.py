"""What a publication is made of: users and items by their towers, and cross representations, each computed by all ranks
together."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.prior import Prior
from recsys.refresh.arms import ENTITIES
from recsys.refresh.cross import CrossEvents, CrossSums, sum_cross
from recsys.refresh.embed import Embedded, Entities, Towers, embed
from recsys.train.distributed import Environment

BATCH = 4096
"""Entities that a rank embeds at once."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """Where the vectors come from."""

    model: Towers
    schema: Schema
    events: Mapping[str, Entities]
    """Owner -> the entities and their last events."""
    day: int
    """Number of the day: an entity's time to live ends by it."""
    utc_offset_hours: float = 0.0
    """Of the time zone that days are counted in."""
    fresh: bool = False
    """Carry nothing over from earlier snapshots."""
    after_refused: bool = False
    """Carry over from the newest earlier snapshot even if it was refused, not from the newest that was not."""
    before: int | None = None
    """Earlier snapshots are those before this time, ms; None: before the publication's own `as_of`."""
    withdrawn: Mapping[str, Tensor] = field(default_factory=dict)  # int64 [w] each, ascending
    """Owner -> the entities that must not be in what is published; none of them is in `events`."""
    rotation: Tensor | None = None  # float32 [D, D]
    """Takes the vectors of the previous snapshots' space to this one's."""
    prior: Prior | None = None
    """Of the items, on rank 0."""
    read: Callable[[Batch], Batch] | None = None
    """See `embed`."""
    cross: CrossEvents | None = None
    """What cross representations are made of, where they are published; None: of nothing new."""

    def rate(self, seconds: float) -> float:
        """Entities embedded a second; 0 where a call found all of them published before."""
        return sum(map(len, self.events.values())) / seconds if seconds else 0.0


class Part(NamedTuple):
    """What goes into some series of one owner."""

    owner: str
    names: tuple[str, ...]
    size: int
    """Entities on all ranks."""
    batches: Iterator[Embedded]
    """This rank's share of them."""
    stage: str
    """Where the time for them goes."""


class Timer:
    """Seconds spent in named blocks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def tower_parts(content: Content, names: Collection[str], environment: Environment) -> Iterator[Part]:
    """What goes into these series of users and of items: the vectors of their last events. A collective."""
    for owner in ENTITIES:
        if chosen := tuple(name for name in names if name.startswith(owner)):
            events = content.events[owner]
            batches = embed(content.model, content.schema, events, owner, environment, BATCH, read=content.read)
            yield Part(owner, chosen, len(events), batches, "embed")


def cross_parts(
    content: Content, names: Collection[str], decay: float, environment: Environment, timer: Timer
) -> Iterator[Part]:
    """What goes into these series: means over the events, see recsys/refresh/cross.py; nothing where there are no new
    ones. A collective."""
    sums: dict[str, CrossSums] = {}
    if names and content.cross is not None:
        with timer("cross"):
            sums = sum_cross(content.schema, content.cross, decay, environment, BATCH)
    nobody = torch.empty(0, dtype=torch.int64)
    for owner in ENTITIES:
        summed = sums.pop(owner, None)  # its memory is free when the next owner's turn comes
        if chosen := tuple(name for name in names if name.startswith(owner)):
            gone = content.withdrawn.get(owner, nobody)
            batches = iter(()) if summed is None else summed.means(gone, BATCH, environment)
            yield Part(owner, chosen, 0 if summed is None else len(summed), batches, "cross")
