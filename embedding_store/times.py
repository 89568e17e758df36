"""Event time at the store's border: int milliseconds since the epoch, UTC, or an aware datetime.

Numbers that read as another unit are refused, because nothing would show the mistake later: in seconds a lookup finds
nothing, in microseconds it reads the future, and a snapshot as of nanoseconds is the last one that a series can have.
"""

from __future__ import annotations

import operator
from datetime import UTC, datetime, timedelta

from embedding_store.errors import InvalidTimeError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COUNTERS = 10**9
"""Numbers below may count anything: logs without times use them."""
SECONDS = 10**11
"""Below, and from COUNTERS on, a number reads as seconds: 2001 to 5138. As milliseconds it would be of 1970 to 1973."""
THIS_AGE = 4 * 10**12
"""Milliseconds until October 2096; no time that is stored is later."""
FOR_EVER = THIS_AGE * 10**6
"""Beyond, a number is of this age in no unit: it asks for the newest, and its negative for none."""


def to_milliseconds(value: int | datetime, name: str) -> int:
    """`value` as milliseconds since the epoch; a datetime is rounded down to a whole one.

    Raises:
        InvalidTimeError: a naive datetime, another type, a number beyond int64, or one that reads as seconds,
            microseconds or nanoseconds; the message starts with `name`.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise InvalidTimeError(f"{name} is {value!r}, a datetime without a time zone: add tzinfo, say datetime.UTC")
        return (value - EPOCH) // timedelta(milliseconds=1)
    try:
        milliseconds = operator.index(value)
    except TypeError:
        milliseconds = None
    if milliseconds is None or isinstance(value, bool):
        raise InvalidTimeError(f"{name} is {value!r}: give int milliseconds since the epoch or an aware datetime")
    if not -(2**63) <= milliseconds < 2**63:
        raise InvalidTimeError(f"{name} is {milliseconds}, beyond int64: give milliseconds since the epoch")
    check_unit(milliseconds, name)
    return milliseconds


def to_stored(value: int | datetime, name: str) -> int:
    """As `to_milliseconds`, for a time that is stored: after one far beyond THIS_AGE nothing could follow.

    Raises:
        InvalidTimeError: also at THIS_AGE or later.
    """
    milliseconds = to_milliseconds(value, name)
    if abs(milliseconds) >= THIS_AGE:
        limit = f"{THIS_AGE} ({to_text(THIS_AGE)})"
        raise InvalidTimeError(f"{name} is {milliseconds} ({to_text(milliseconds)}): give a time before {limit}")
    return milliseconds


def check_unit(milliseconds: int, name: str) -> None:
    """Raise InvalidTimeError if a time reads as another unit than milliseconds."""
    size = abs(milliseconds)
    if COUNTERS <= size < SECONDS:
        unit, remedy = "seconds", "multiply by 1000"
    elif THIS_AGE <= size < THIS_AGE * 1000:
        unit, remedy = "microseconds", "divide by 1000"
    elif THIS_AGE * 1000 <= size <= FOR_EVER:
        unit, remedy = "nanoseconds", "divide by 1000000"
    else:
        return
    message = f"{name} is {milliseconds}, which reads as {unit}: {remedy}, because times are milliseconds since the"
    raise InvalidTimeError(f"{message} epoch, or give an aware datetime")


def to_text(milliseconds: int) -> str:
    """The time for people, `2022-05-01 00:00:00.000 UTC`; the plain number where the calendar ends."""
    try:
        return (EPOCH + timedelta(milliseconds=milliseconds)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
    except OverflowError:
        return f"{milliseconds} ms"


def event_text(as_of: int) -> str:
    """An event time for people, which may be a counter's number."""
    return f"counter {as_of}" if 0 <= as_of < COUNTERS else to_text(as_of)


def now() -> int:
    """The current time in milliseconds since the epoch."""
    return (datetime.now(UTC) - EPOCH) // timedelta(milliseconds=1)
