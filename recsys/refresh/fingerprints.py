"""What the days' files hold, without reading all of them again at each start.

A run remembers the CRC of each file, and the size and times of what it read. A file that still has these is not read.
One that was moved or copied is read once and has the same fingerprint, so its day is not taken for a correction.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recsys.atomic import write_json
from recsys.data.errors import DataError

_SETTLED = 2_000_000_000
"""ns that a file must have been left alone before it was read: a later change could have the same time, since clocks of
file systems tick, once in 2 s at the slowest, and those of other hosts differ."""


@dataclass(frozen=True)
class _Reading:
    """A file as it was read."""

    size: int
    modified: int
    """ns since 1970, as `changed`."""
    changed: int
    """Of the content or of what the file system says of it: writers can set back `modified`, but not this."""
    when: int
    """When reading began, ns since 1970."""
    crc: int

    @property
    def settled(self) -> bool:
        return max(self.modified, self.changed) + _SETTLED <= self.when


class Fingerprints:
    """Fingerprints of files below one folder.

    Args:
        root: the folder.
        memory: the JSON file that remembers them; what it does not hold is read.
    """

    def __init__(self, root: Path, memory: Path) -> None:
        self._root, self._memory = root, memory
        self._before = _recall(memory)
        self._now: dict[str, _Reading] = {}

    def of(self, files: Sequence[Path]) -> str:
        """Of names, sizes and bytes: equal for the same content wherever it lies, other if any byte differs.

        Raises:
            DataError: a file cannot be read.
        """
        total = hashlib.sha256()
        for path in files:
            name = path.relative_to(self._root).as_posix()
            try:
                read = self._now[name] = _reading(path, self._before.get(name))
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}. Days must appear, and go, as a whole") from None
            total.update(f"{name}\0{read.size}\0{read.crc:08x}\n".encode())
        return total.hexdigest()[:16]

    def save(self) -> None:
        """Remember the files that were asked for, and forget all others."""
        if self._now != self._before:
            write_json(self._memory, {name: asdict(read) for name, read in self._now.items()})


def _recall(memory: Path) -> dict[str, _Reading]:
    try:
        return {name: _Reading(**read) for name, read in json.loads(memory.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # of another version: all files are read
        return {}


def _reading(path: Path, before: _Reading | None) -> _Reading:
    stat, when = path.stat(), time.time_ns()
    now = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if before is not None and before.settled and now == (before.size, before.modified, before.changed):
        return before
    return _Reading(*now, when, _crc(path))


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return crc
