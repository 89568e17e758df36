"""How fast a run is, and how much of its time it waits for input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class _Input(Protocol):
    @property
    def wait_seconds(self) -> float: ...


class Clock:
    """Counts rows and seconds; what happens within `paused()` takes no time."""

    def __init__(self, stream: _Input) -> None:
        self._stream = stream
        self._paused = 0.0
        self._last_step = time.perf_counter()
        self._stands = False
        self._rows = 0
        self._window_start = self._now()
        self._start: float | None = None
        self._end = 0.0
        self._start_wait = self._end_wait = 0.0

    def tick(self, rows: int) -> None:
        """A step of this many rows is done. The first one is not counted: it sets things up."""
        self._last_step = time.perf_counter()
        if self._start is None:
            self._start, self._start_wait = self._now(), self._stream.wait_seconds
        else:
            self._rows += rows

    def window(self) -> float:
        """Seconds since the last call. The totals below are as of the last call."""
        start, self._window_start = self._window_start, self._now()
        self._end, self._end_wait = self._window_start, self._stream.wait_seconds
        return self._window_start - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens here."""
        start, self._stands = time.perf_counter(), True
        yield
        self._last_step, self._stands = time.perf_counter(), False
        self._paused += self._last_step - start

    def since_step(self) -> float:
        """Seconds since the last step was done, the training began or the last pause ended; 0 in a pause."""
        return 0.0 if self._stands else time.perf_counter() - self._last_step

    @property
    def samples_per_second(self) -> float:
        """Rows a second over all windows; 0 before the second step."""
        return self._rows / (self._end - self._start) if self._start and self._rows else 0.0

    @property
    def input_wait_fraction(self) -> float:
        """Share of that time that was spent waiting for input; 0 before the second step."""
        return (self._end_wait - self._start_wait) / (self._end - self._start) if self._start and self._rows else 0.0

    def _now(self) -> float:
        return time.perf_counter() - self._paused
