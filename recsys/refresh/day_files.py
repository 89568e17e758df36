"""The files of a cycle's days and of those before it: which there are, what of them nobody reads, and what is known of
the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from recsys.config import RefreshConfig
from recsys.data.quarantine import Quarantine
from recsys.data.scan import Findings, Part, Window
from recsys.data.schema import Schema
from recsys.refresh.days import Cycle, find_day, window
from recsys.refresh.facts import Facts, FactsCollector
from recsys.screening import screen
from recsys.train.distributed import Environment, broadcast
from recsys.train.exchange import ranks_of
from recsys.train.watch import Pulse
from recsys.upstream import screen_source

Files = Mapping[str, Sequence[Path]]
"""Day -> files of its events."""


@dataclass(frozen=True)
class DayFiles:
    """Of one upstream."""

    config: RefreshConfig
    schema: Schema
    data: Path
    out: Path
    environment: Environment

    def of(self, cycle: Cycle) -> Files:
        """Those of the cycle's days, as rank 0 sees them. A collective."""
        days = self.config.day_by_day()
        return broadcast({day: find_day(self.data, days, day) for day in cycle.days}, self.environment)

    def up_to(self, cycle: Cycle) -> Files:
        """Those of every day up to the cycle's that has some, as they now are."""
        days = self.config.day_by_day()
        found = {day: find_day(self.data, days, day) for day in days.until(cycle.day)}
        return {day: files for day, files in found.items() if files}

    def all(self, cycle: Cycle) -> list[Path]:
        """The same, one after another."""
        return list(chain(*self.up_to(cycle).values()))

    def read(self, cycle: Cycle, files: Files) -> tuple[dict[str, Findings], list[Facts]]:
        """What is wrong with the rows of each of the cycle's days, and in the same pass what is known of the others but
        for their features. A collective."""
        until = window(self.config.day_by_day(), cycle.day)[1] - 1
        facts = {day: FactsCollector(files[day], self.schema, self.config.upstream, until) for day in cycle.days}
        screened = {day: self._screen(day, files[day], facts[day]) for day in cycle.days}
        with Pulse("a survey of events", self.environment):
            return screened, [facts.pop(day).together(ranks_of(self.environment)) for day in cycle.days]

    def screen_all(self, cycle: Cycle) -> Quarantine:
        """The rows of the source and of every day up to the cycle's that nobody reads. A collective."""
        skip = screen_source(self.config.upstream, self.schema, self.data, self.out, self.environment).quarantine
        for day, files in self.up_to(cycle).items():
            skip |= self._screen(day, files).quarantine
        return skip

    def _screen(self, day: str, files: Sequence[Path], facts: FactsCollector | None = None) -> Findings:
        """Find the rows of a day that cannot be read or are not of it, and collect facts of the others."""
        part = Part(files=files, schema=self.schema, window=Window(day, *window(self.config.day_by_day(), day)))
        return screen(self.out, f"{self.config.upstream.name}-{day}", [part], self.data, self.environment, facts)
