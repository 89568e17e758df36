"""How a day's vectors and those of the days before become one: latest, moving average, average; and time to live.

Pure arithmetic on tensors; aggregator.py reads and writes the store around it. arXiv 2509.04337 has the method.
Renormalising, the counts behind "average" and what happens at a time to live's end are our choices: the paper names
none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.config import AGGREGATIONS

DECAY = "decay"
"""The way of cross representations, which are means over events and not over days."""
_BLOCK_VALUES = 1 << 17
"""Values computed at once: a float32 block and its temporaries stay in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How one series carries vectors from day to day.

    Raises:
        ValueError: a field that cannot work, naming it.
    """

    method: str = "ma"
    """`latest`: today's. `ma`: weight * previous + (1 - weight) * today. `average`: the mean of the entity's daily
    vectors since it was first seen, or seen again after its time to live. `decay`: today's are means over an entity's
    events of today, each weighing `weight` of the next; the aggregate is the same of all its events so far."""
    weight: float = 0.8
    """Of what was there before, 0 <= weight < 1; `ma` and, for each event, `decay` only."""
    time_to_live_days: int = 90
    """An entity is kept as long as it was active on one of this many days, the newest included."""
    renormalise: bool = False
    """Scale the aggregate to length 1 each day; the next day goes on from the scaled one. A zero vector stays zero."""
    delta_below: float = 0.5
    """Publish only what changed when that is less than this share of the rows, else the whole snapshot."""

    def __post_init__(self) -> None:
        if self.method not in (*AGGREGATIONS, DECAY):
            raise ValueError(f"method is {self.method!r}; use one of {', '.join((*AGGREGATIONS, DECAY))}")
        if not 0 <= self.weight < 1:
            raise ValueError(f"weight is {self.weight}; use 0 <= weight < 1")
        if self.time_to_live_days < 1:
            raise ValueError(f"time_to_live_days is {self.time_to_live_days}; use 1 or more")
        if not 0 <= self.delta_below <= 1:
            raise ValueError(f"delta_below is {self.delta_below}; use 0 (always whole) to 1")


def aggregate(
    method: str,
    weight: float,
    previous: Tensor,  # float [n, D]
    counts: Tensor,  # float or int [n]
    known: Tensor,  # bool [n]
    today: Tensor,  # float [n, D]
    *,
    news: Tensor | None = None,  # float or int [n]
    renormalise: bool = False,
    out: Tensor | None = None,  # float [n, D]
) -> Tensor:  # [n, D]
    """Today's aggregate of n entities that are active today, computed in float32 block by block.

    Args:
        method: one of AGGREGATIONS, or DECAY.
        weight: of `previous`, for "ma"; of an event beside the next, for "decay".
        previous: the aggregates of the days before, of any floating type. Not looked at where not `known`.
        counts: number of daily vectors in `previous`, for "average"; of events, for "decay".
        known: whether the entity has a previous aggregate; if not, today's vector is its first.
        today: the day's vectors, of any floating type.
        news: number of events in `today`, 1 or more, for "decay".
        renormalise: scale each aggregate to length 1.
        out: written and returned, of any floating type; may be `previous` or `today` itself. None: a new float32
            tensor, whose first use of fresh memory then takes half of the time.

    Memory beside the result: a few blocks of half a megabyte.
    """
    rows, dim = today.shape
    out = torch.empty(rows, dim) if out is None else out
    step = max(1, _BLOCK_VALUES // max(1, dim))
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        block = fresh = today[piece].to(torch.float32)
        if method != "latest":
            share: Tensor | float
            before = counts[piece].to(torch.float32)
            if method == DECAY:
                assert news is not None
                now = total_weight(weight, news[piece])
                share = (now / total_weight(weight, news[piece] + before))[:, None]
            else:
                share = 1 - weight if method == "ma" else (1 / (before + 1))[:, None]
            block = torch.lerp(previous[piece].to(torch.float32), fresh, share)
            first = (~known[piece]).nonzero().squeeze(1)
            block[first] = fresh[first]
        if renormalise:
            block = torch.nn.functional.normalize(block, dim=1)
        out[piece].copy_(block)
    return out


def total_weight(
    decay: float,
    events: Tensor,  # float or int [n]
) -> Tensor:  # float32 [n]
    """Of so many events, of which the newest weighs 1 and each other `decay` of the next: (1 - g^N) / (1 - g)."""
    events = events.to(torch.float32)
    return torch.expm1(events * math.log(decay)) / (decay - 1) if decay else events.clamp(max=1)


def expired(
    last_active: Tensor,  # [n], day numbers
    today: int,
    time_to_live_days: int,
) -> Tensor:  # bool [n]
    """Whether the last activity is before the last `time_to_live_days` days, today included."""
    return today - last_active >= time_to_live_days
