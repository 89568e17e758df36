"""Event time at the store's border: int milliseconds since the epoch, UTC, or an aware datetime."""

from __future__ import annotations

import operator
from datetime import UTC, datetime, timedelta

from embedding_store.errors import InvalidTimeError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_milliseconds(value: int | datetime, name: str) -> int:
    """`value` as milliseconds since the epoch; a datetime is rounded down to a whole one.

    Raises:
        InvalidTimeError: a naive datetime, another type, or a number beyond int64; the message starts with `name`.
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
    return milliseconds


def to_text(milliseconds: int) -> str:
    """The time for people, `2022-05-01 00:00:00.000 UTC`; the plain number where the calendar ends."""
    try:
        return (EPOCH + timedelta(milliseconds=milliseconds)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
    except OverflowError:
        return f"{milliseconds} ms"


def now() -> int:
    """The current time in milliseconds since the epoch."""
    return (datetime.now(UTC) - EPOCH) // timedelta(milliseconds=1)
