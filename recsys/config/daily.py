"""The days on which upstreams learn on, and which of them the rankers of the report train and are tested on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from recsys.config.rules import ConfigError, require
from recsys.dates import dates

DAY = "{day}"
"""What stands for the day in `DailyConfig.events`."""


@dataclass(frozen=True, kw_only=True)
class DailyConfig:
    """Days of events that arrive one by one, each as files that appear whole (by a rename)."""

    events: str
    """Glob pattern of one day's Parquet files; `{day}` stands for the ISO date: `market/events/{day}/*/*.parquet`. A
    day exists when files match. Names that begin with a dot or an underscore are not looked at."""
    utc_offset_hours: float = 0.0
    """When a day begins and ends: its events are of [00:00, 24:00) in the time zone this many hours before UTC."""
    first: str
    """ISO date of the first day that the upstreams go on with."""
    last: str
    """ISO date of the last one; days after it are left alone."""
    train: tuple[str, ...]
    """First and last day that the rankers train on."""
    validation: tuple[str, ...]
    """First and last day that choose the number of epochs."""
    test: tuple[str, ...]
    """First and last day that the result is measured on, once."""
    publish_delay_ms: int = 0
    """A snapshot may be read by events later than its `as_of` plus this delay."""
    study: bool = True
    """Publish the report's other ways of aggregation too, as `user_<upstream>.latest`, `.ma_0.2`, ..."""

    def __post_init__(self) -> None:
        inside = not Path(self.events).is_absolute() and DAY in self.events
        require(
            inside, f"daily.events is {self.events!r}; give a pattern relative to the data folder, with {DAY} in it"
        )
        require(
            -14 <= self.utc_offset_hours <= 14,
            f"daily.utc_offset_hours is {self.utc_offset_hours}; use hours from -14 to 14",
        )
        for name in ("first", "last"):
            _date(getattr(self, name), name)
        require(self.first <= self.last, f"daily.first is {self.first}, after daily.last = {self.last}: swap them")
        for name in ("train", "validation", "test"):
            self._check_span(name)
        ordered = self.train[1] < self.validation[0] and self.validation[1] < self.test[0]
        require(
            ordered,
            f"daily.train = {list(self.train)}, validation = {list(self.validation)}, test = {list(self.test)} must "
            "follow one another without a common day",
        )
        require(self.publish_delay_ms >= 0, f"daily.publish_delay_ms is {self.publish_delay_ms}; use 0 or more")

    def _check_span(self, name: str) -> None:
        span = getattr(self, name)
        require(len(span) == 2, f"daily.{name} is {list(span)}; give its first and its last day")
        for day in span:
            _date(day, name)
        require(span[0] <= span[1], f"daily.{name} begins on {span[0]}, after its end {span[1]}: swap them")
        require(
            self.first <= span[0] and span[1] <= self.last,
            f"daily.{name} is {span[0]} to {span[1]}; choose days from daily.first = {self.first} to "
            f"daily.last = {self.last}",
        )

    def all_days(self) -> list[str]:
        """Every day from `first` to `last`, as ISO dates."""
        return list(dates(self.first, self.last))

    def pattern(self, day: str) -> str:
        """Glob pattern of this day's files, relative to the data folder."""
        return self.events.replace(DAY, day)


def _date(text: str, name: str) -> None:
    try:
        valid = date.fromisoformat(text).isoformat() == text
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"daily.{name} names the day {text!r}; write it as 2024-01-31")
