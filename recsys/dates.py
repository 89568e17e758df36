"""Days as ISO dates, as numbers since 1970-01-01, and as spans of milliseconds.

Where days are not of 24 hours, a day is called by when it begins: 2024-01-31T06 if it is shorter, 2024-01-31 if longer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
UNTIMED = 0
"""The time of every event of a log without event times, and the `as_of` of what is made of one."""

SECONDS = (10**9, 10**11)
"""Numbers from 2001 to 5138 in seconds; in milliseconds they are of 1970 to 1973. Smaller ones may be a counter's."""


_SPANS = {"m": HOUR_MS // 60, "h": HOUR_MS, "d": DAY_MS}


def span_ms(text: str) -> int | None:
    """Milliseconds of `30m`, `24h` or `7d`; None if it is nothing of the kind."""
    found = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    return int(found[1]) * _SPANS[found[2]] if found else None


def dates(first: str, last: str, hours: int = 24) -> Iterator[str]:
    """The days from `first` on, each of so many hours, up to `last`, which is included."""
    form, length = "%Y-%m-%dT%H" if hours < 24 else "%Y-%m-%d", timedelta(hours=hours)
    day, end = datetime.fromisoformat(first), datetime.fromisoformat(last)
    while day <= end:
        yield day.strftime(form)
        day += length


def is_date(text: str, hours: int = 24) -> bool:
    """Whether a day of so many hours can be called so: 2024-01-31; 2024-01-31T06 if they are less than 24."""
    day, _, hour = text.partition("T")
    try:
        known = date.fromisoformat(day).isoformat() == day
    except ValueError:
        return False
    if hours >= 24:
        return known and text == day
    return known and len(hour) == 2 and hour.isdecimal() and int(hour) < 24 and int(hour) % hours == 0


def day_number(day: str) -> int:
    """Days since 1970-01-01."""
    return (date.fromisoformat(day.partition("T")[0]) - date(1970, 1, 1)).days


def iso_day(number: int) -> str:
    """The ISO date of a day's number."""
    return str(np.datetime64(number, "D"))


def iso_hour(time: int, utc_offset_hours: float = 0.0) -> str:
    """ISO date and hour of a time in ms: 2024-01-31T06."""
    return str(np.datetime64((time + round(utc_offset_hours * HOUR_MS)) // HOUR_MS, "h"))


def hour_number(day: str) -> int:
    """Hours from 1970-01-01 to when the day begins."""
    return day_number(day) * 24 + int(day.partition("T")[2] or 0)


def day_span(day: str, utc_offset_hours: float = 0.0, hours: int = 24) -> tuple[int, int]:
    """[start, end) of a day of so many hours in ms, in the time zone this many hours before UTC."""
    start = hour_number(day) * HOUR_MS - round(utc_offset_hours * HOUR_MS)
    return start, start + hours * HOUR_MS


def number_of(time: int, utc_offset_hours: float = 0.0) -> int:
    """The number of the day that a time in ms is of."""
    return (time + round(utc_offset_hours * HOUR_MS)) // DAY_MS


def iso(time: int) -> str | None:
    """A time in ms as ISO 8601, UTC; None of a log without event times."""
    if time == UNTIMED:
        return None
    return (
        f"{np.datetime64(time, 'ms')}Z"  # numpy's years go beyond 9999: a wrong unit of time shows instead of crashing
    )


def not_milliseconds(times: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which times [N] read as another unit's, or lie more than a day ahead of now; None: none does."""
    if not len(times):
        return None
    latest = time.time_ns() // 1_000_000 + DAY_MS
    strays = (times > latest) | ((times >= SECONDS[0]) & (times < SECONDS[1]))
    return strays if strays.any() else None


def misread(value: int) -> str:
    """What a time that cannot be milliseconds most likely is, and the remedy."""
    for unit, least, most, remedy in (
        ("seconds", *SECONDS, "multiply it by 1,000"),
        ("microseconds", 10**14, 10**17, "divide it by 1,000"),
        ("nanoseconds", 10**17, 2**63, "divide it by 1,000,000"),
    ):
        if least <= value < most:
            return f"{value}, which reads as {unit}; it must be milliseconds since 1970 UTC: {remedy} in the files"
    return f"{value} ms ({np.datetime64(value, 'ms')} UTC), more than a day ahead of now: correct the clock or the unit"
