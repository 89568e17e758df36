"""What the days' files hold, without reading all of them again at each start.

A run remembers the CRC of each file, and the size and times of what it read. A file that still has these is not read.
One that was moved or copied is read once and has the same fingerprint, so its day is not taken for a correction.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.atomic import write_json
from recsys.data.errors import DataError
from recsys.data.settled import settled
from recsys.refresh.checksums import crcs_of

if TYPE_CHECKING:
    from recsys.train.distributed import Environment


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
        return settled(self.modified, self.changed, self.when)

    def same(self, before: _Reading | None) -> bool:
        """Whether this is what was read before, as sizes and times tell."""
        facts = (self.size, self.modified, self.changed)
        return before is not None and before.settled and facts == (before.size, before.modified, before.changed)


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
                raise _unreadable(path, error) from None
            total.update(f"{name}\0{read.size}\0{read.crc:08x}\n".encode())
        return total.hexdigest()[:16]

    def save(self) -> None:
        """Remember the files that were asked for, and forget all others."""
        if self._now != self._before:
            write_json(self._memory, {name: asdict(read) for name, read in self._now.items()})


def read_together(root: Path, memory: Path, files: Callable[[], Sequence[Path]], environment: Environment) -> None:
    """Let all ranks read what the memory does not hold, so that rank 0 finds it there. A collective.

    Files that have been left alone for less than a tick would not be trusted: they are left to who asks for them.

    Args:
        root: as of `Fingerprints`.
        memory: as of `Fingerprints`.
        files: finds the files; called on rank 0 alone.
        environment: this rank.

    Raises:
        DataError: a file cannot be read.
    """
    from recsys.train.distributed import broadcast  # torch, which a command that finds a mistake does not wait for
    from recsys.train.exchange import ranks_of

    unread: list[tuple[str, _Reading]] = []
    before: dict[str, _Reading] = {}
    if environment.is_main:
        before = _recall(memory)
        for path in files():
            name = path.relative_to(root).as_posix()
            found = _look(path)
            if found.settled and not found.same(before.get(name)):
                unread.append((name, found))
    unread = broadcast(unread, environment)
    if not unread:
        return
    try:
        crcs = crcs_of([(root / name, found.size) for name, found in unread], ranks_of(environment))
    except OSError as error:
        raise _unreadable(f"a file below {root}", error) from None
    if environment.is_main:
        now = {name: replace(found, crc=crc) for (name, found), crc in zip(unread, crcs, strict=True)}
        write_json(memory, {name: asdict(read) for name, read in (before | now).items()})


def _unreadable(what: object, error: OSError) -> DataError:
    return DataError(f"{what} cannot be read: {error}. Days must appear, and go, as a whole")


def _look(path: Path) -> _Reading:
    """A file before it is read, of which nothing is known where it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return _Reading(0, 0, 0, 0, 0)
    return _Reading(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, time.time_ns(), 0)


def _recall(memory: Path) -> dict[str, _Reading]:
    try:
        return {name: _Reading(**read) for name, read in json.loads(memory.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # of another version: all files are read
        return {}


def _reading(path: Path, before: _Reading | None) -> _Reading:
    stat, when = path.stat(), time.time_ns()
    now = _Reading(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, when, 0)
    return before if before is not None and now.same(before) else replace(now, crc=_crc(path))


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return crc
