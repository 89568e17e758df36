"""Signs of life of this rank, for work that has no steps: what has been done so far, in no unit.

A rank gives them as long as its process group runs, whatever it does: others may wait for it in work that it has not
come to yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_MOVED, _THREADS, _MACHINE = Path("/proc/self/io"), Path("/proc/self/task"), Path("/proc/vmstat")
_SOME = 2**20
"""Bytes read and written that are a sign of life: more than what goes into logs meanwhile."""

_BUSY = 0.05
"""Seconds of processors from one look to the next that are a sign of life of who computes: more than to look takes."""

_SECONDS = 1.0
"""Between two looks."""
_END_SECONDS = 10.0
"""For which a thread is waited for that may be asking a store whose machine is gone."""
_SIGNS = "signs of life"
"""In the store: how often a rank has found that it moved on."""

_beats = 0
_computes = 0
_looked = 0
"""Bytes that were read to look for signs, which are none."""


def beat() -> None:
    """A piece of what the others wait for is done: a batch, a file, an exchange with them."""
    global _beats
    _beats += 1


@contextmanager
def computing() -> Iterator[None]:
    """Work of this rank alone, without files and without a beat: as long as it keeps a processor busy it moves on. Not
    for what waits for others, which may keep one busy too."""
    global _computes
    _computes += 1
    try:
        yield
    finally:
        _computes -= 1


class Signs:
    """Tells whether this rank has given a sign of life since it was last asked: a beat; bytes of files, which libraries
    move that know of no beat; time of processors, where it is `computing`; or, while a thread waits for a disk, pages
    that the machine has written, since a long fsync moves no bytes of its own. A rank that waits for another one gives
    none of these. Where the system does not say what a process reads and writes every rank counts as alive: none can be
    told from one that writes a file."""

    def __init__(self) -> None:
        self._beats, self._bytes, self._pages = _beats, _bytes_moved(), _pages_written()
        self._busy = time.process_time()

    def given(self) -> bool:
        """Whether there was one."""
        moved, pages, busy = _bytes_moved(), _pages_written(), time.process_time()
        written, computed = pages != self._pages, _computes > 0 and busy >= self._busy + _BUSY
        self._pages, self._busy = pages, busy
        if moved is None or self._bytes is None:
            return True
        done = _beats != self._beats or moved >= self._bytes + _SOME or computed
        if not done and not (written and _waits_for_a_disk()):
            return False
        self._beats, self._bytes = _beats, moved
        return True


def tell(store: Any, signs: Signs) -> int:
    """Tell the others of a sign, if there was one; how many all ranks have given."""
    return store.add(_SIGNS, int(signs.given()))


@contextmanager
def giving(store: Any) -> Iterator[None]:
    """Tell of signs all the time.

    Args:
        store: of the ranks, for this alone: others may hold theirs while they wait for a key.
    """
    ended, signs = threading.Event(), Signs()

    def run() -> None:
        with suppress(Exception):  # the store is gone, and the ranks with it
            while not ended.wait(_SECONDS):
                tell(store, signs)

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_END_SECONDS)


def _bytes_moved() -> int | None:
    """By reads, mapped ones too, and writes of this process so far; None where the system does not say."""
    with suppress(OSError, ValueError, KeyError):
        said = _numbers(_MOVED)
        return said["rchar:"] + said["wchar:"] + said["read_bytes:"] - _looked
    return None


def _pages_written() -> int:
    """By all of this machine so far, from its memory to its disks; 0 where the system does not say."""
    with suppress(OSError, ValueError, KeyError):
        return _numbers(_MACHINE)["nr_written"]
    return 0


def _waits_for_a_disk() -> bool:
    """Whether a thread of this process does, now."""
    with suppress(OSError):  # a thread may end meanwhile
        return any(_read(thread / "stat").rpartition(b")")[2].split()[0] == b"D" for thread in _THREADS.iterdir())
    return False


def _numbers(path: Path) -> dict[str, int]:
    return {name: int(number) for name, number in (line.split() for line in _read(path).decode().splitlines())}


def _read(path: Path) -> bytes:
    global _looked
    found = path.read_bytes()
    _looked += len(found)
    return found
