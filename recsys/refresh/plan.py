"""What a cycle starts from, and what goes along with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.config import RefreshConfig
from recsys.refresh.between import entries
from recsys.refresh.catalogue import (
    Along,
    Delivery,
    Withdrawn,
    along,
    between_delivery,
    day_delivery,
    withdrawn_before,
)
from recsys.refresh.days import Cycle, available_days, find_days, window
from recsys.refresh.first import trained
from recsys.refresh.publish import space_name
from recsys.refresh.records import Ledger, Record, before
from recsys.train import checkpoint


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a cycle starts from."""

    key: Mapping[str, Any]
    """What its training is of."""
    folder: Path
    """Where that is kept."""
    start: str
    """The checkpoint, relative to the run's folder; empty: from scratch."""
    space: str
    """Of its vectors."""
    along: Along
    """What goes along with it."""
    withdrawn: Withdrawn
    """Who was before it."""

    @property
    def cold(self) -> bool:
        """Whether it starts from scratch, in a space of its own."""
        return not self.start


class Planner:
    """Decides, on rank 0, what the cycles of an upstream start from.

    Args:
        config: of the refresh.
        data: folder of the events.
        ledger: of the upstream.
        after_refused: go on from the newest day even where a gate refused it, not from the newest that passed.
    """

    def __init__(self, config: RefreshConfig, data: Path, ledger: Ledger, *, after_refused: bool) -> None:
        self._config, self._data, self._ledger, self._after_refused = config, data, ledger, after_refused
        self._name = config.upstream.name

    def plan(self, cycle: Cycle, cold: bool) -> Plan:
        """What the cycle starts from; `cold`: from scratch."""
        records = self._ledger.records()
        replaced = next((record for record in records if record.day == cycle.day), None)
        start, space = self._start(cycle, records, replaced, cold)
        key = {
            "day": cycle.day,
            "fingerprint": cycle.fingerprint,
            "late": dict(cycle.late),
            "start": start,
            "model": checkpoint.read_progress(self._ledger.out / start)["id"] if start else "",
            "space": space,
            "replaces": replaced.key if replaced else "",
        }
        return Plan(
            key=key,
            folder=self._ledger.training(cycle.day, key),
            start=start,
            space=space,
            along=self.along(cycle),
            withdrawn=withdrawn_before(self._ledger, self._name, self._built_on(records, cycle)),
        )

    def along(self, cycle: Cycle) -> Along:
        """Which rows go along with a cycle as they now are, and when it publishes."""
        days, records = self._config.day_by_day(), self._ledger.records()
        rows = available_days(self._data, days, self._ledger.files).rows
        delivered, end = entries(self._ledger.between), window(days, cycle.day)[1]
        return along(cycle.day, end, rows, delivered, self._built_on(records, cycle), records)

    def deliveries(self, plan: Plan, cycle: Cycle) -> list[Delivery]:
        """Rows that go along; where a new space begins without the old, all that there ever were. On every rank."""
        days, between = self._config.day_by_day(), entries(self._ledger.between)
        chosen = list(plan.along.rows)
        if anew := plan.cold and not self._config.align:
            chosen = [day for day in find_days(self._data, days, "users", "items") if day <= cycle.day]
        came_with = [day_delivery(self._data, days, day) for day in chosen]
        return came_with + [between_delivery(each) for each in between if anew or each.number in plan.along.between]

    def _start(self, cycle: Cycle, records: Sequence[Record], replaced: Record | None, cold: bool) -> tuple[str, str]:
        """The checkpoint to train on from, relative to the run's folder and empty for a cold start; and the space."""
        if cold:
            newest = max((generation(record.space) for record in records), default=1)
            return "", space_name(self._name, 1 + newest)
        if replaced is not None:
            return replaced.start, replaced.space  # a day that began a space begins it again
        if built_on := self._built_on(records, cycle):
            return built_on[-1].checkpoint, built_on[-1].space
        out = self._ledger.out
        return str(trained(out, self._name).relative_to(out)), space_name(self._name)

    def _built_on(self, records: Sequence[Record], cycle: Cycle) -> list[Record]:
        return before(records, cycle.day, after_refused=self._after_refused)


def generation(space: str) -> int:
    """The number at the end of a space's name."""
    return int(space.rpartition("-")[2])
