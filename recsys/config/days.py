"""The days whose events an upstream goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.config.rules import require
from recsys.dates import dates, hour_number, is_date

DAY_STEPS = 16
"""That a day's pass has at least, where no batch size is given and the rows allow it."""
DAY = "{day}"
"""What stands for the day in a pattern of `DaysConfig`."""


@dataclass(frozen=True, kw_only=True)
class DaysConfig:
    """Days of events that arrive one by one, each as files that appear whole (by a rename)."""

    events: str
    """Glob pattern of one day's Parquet files; `{day}` stands for the ISO date: `market/events/{day}/*/*.parquet`. A
    day exists when files match. Names that begin with a dot or an underscore are not looked at."""
    hours: int = 24
    """How long a day is. 1, 2, 3, 4, 6, 8 or 12: it is a part of one, and called by its first hour, 2024-01-31T06; 48,
    72, ..., a week's 168: it is several, counted from `first`, and called by the first of them."""
    users: str = ""
    """The same for rows of users: of each that is new or has changed one row, as in the source's `users`, of no time
    after the day. Each gets a vector in the day's cycle, with events or without. They wait for the next day that has
    events where their own has none."""
    items: str = ""
    """The same for items."""
    utc_offset_hours: float = 0.0
    """When a day begins and ends: its events are of [00:00, 24:00) in the time zone this many hours before UTC."""
    first: str
    """ISO date of the first day that the upstream goes on with."""
    last: str = ""
    """ISO date of the last one; days after it are left alone. Empty: there is none."""
    epochs: int = 1
    """Passes over a new day."""
    batch_size: int = 0
    """Rows a rank and step when training on a day; 0: the upstream's own, or, where it has none, as many as leave the
    day 16 steps, within the bounds of `training.batch_size`. Of a day that has fewer, all are one step."""

    def __post_init__(self) -> None:
        for name in ("events", "users", "items"):
            given = getattr(self, name)
            inside = not Path(given).is_absolute() and DAY in given
            require(
                inside or (name != "events" and not given),
                f"{name} is {given!r}; give a pattern relative to the data folder, with {DAY} in it",
            )
        require(
            -14 <= self.utc_offset_hours <= 14, f"utc_offset_hours is {self.utc_offset_hours}; use hours from -14 to 14"
        )
        require(
            self.hours > 0 and (24 % self.hours == 0 or self.hours % 24 == 0),
            f"hours is {self.hours}; use a divisor of 24, for parts of days, or a multiple, for several days",
        )
        check_day(self.first, "first", self.hours)
        if self.last:
            check_day(self.last, "last", self.hours)
            require(self._on_grid(self.last), f"last is {self.last}, no day of {self.hours} hours from {self.first} on")
            require(self.first <= self.last, f"first is {self.first}, after last = {self.last}: swap them")
        require(self.epochs > 0, f"epochs is {self.epochs}; use 1 or more")
        require(
            self.batch_size >= 0,
            f"batch_size is {self.batch_size}; use 1 or more, or 0: the upstream's own, or what the day's rows allow",
        )

    def pattern(self, day: str, what: str = "events") -> str:
        """Glob pattern of this day's files, relative to the data folder: of its `events`, `users` or `items`."""
        return getattr(self, what).replace(DAY, day)

    def until(self, day: str) -> Iterator[str]:
        """Every day from `first` to this one."""
        return self.between(self.first, day)

    def has(self, day: str) -> bool:
        """Whether this is a day that counts."""
        named = is_date(day, self.hours) and self._on_grid(day)
        return named and self.first <= day and (not self.last or day <= self.last)

    def between(self, first: str, last: str) -> Iterator[str]:
        """The days from one to another, both included."""
        return dates(first, last, self.hours)

    def _on_grid(self, day: str) -> bool:
        return (hour_number(day) - hour_number(self.first)) % self.hours == 0


def check_day(text: str, name: str, hours: int = 24) -> None:
    """Raise ConfigError unless the text names a day of so many hours."""
    example = "2024-01-31" if hours >= 24 else f"2024-01-31T{24 - hours:02}, beginning at a multiple of {hours} hours"
    require(is_date(text, hours), f"{name} names the day {text!r}; write it as {example}")
