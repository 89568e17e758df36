"""Signs of life of this rank, for work that has no steps: what has been done so far, in no unit."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MOVED = Path("/proc/self/io")
_SOME = 2**20
"""Bytes read and written that are a sign of life: more than what goes into logs meanwhile."""

_beats = 0


def beat() -> None:
    """A piece of what the others wait for is done: a batch, a file, an exchange with them."""
    global _beats
    _beats += 1


class Signs:
    """Tells whether this rank has given a sign of life since it was last asked: a beat, or bytes of files, which
    libraries move that know of no beat. A rank that waits for another one gives neither."""

    def __init__(self) -> None:
        self._beats, self._bytes = _beats, _bytes_moved()

    def given(self) -> bool:
        """Whether there was one."""
        moved = _bytes_moved()
        if _beats == self._beats and moved < self._bytes + _SOME:
            return False
        self._beats, self._bytes = _beats, moved
        return True


def _bytes_moved() -> int:
    """By reads and writes of this process so far; 0 where the system does not say."""
    with suppress(OSError, ValueError):
        lines = dict(line.split(": ") for line in _MOVED.read_text().splitlines())
        return int(lines["rchar"]) + int(lines["wchar"])
    return 0
