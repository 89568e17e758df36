"""Tables of versions that stay open between lookups as of a time: mapped ones, or copies in so many bytes of a GPU.

A copy that is let go gives its memory back at once: cudaFree waits until nothing on the device can be reading it, on
whatever stream, see native/gpu.py. So a lookup need but have been issued when its table goes.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from embedding_store import arguments
from embedding_store.arguments import integer
from embedding_store.errors import DeviceMemoryError
from embedding_store.native import gpu
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table

OPEN_TABLES = 256
"""Mapped tables that stay open between calls. One takes addresses, not memory."""
_REMEDY = "give as many, or look up on the CPU, where versions are mapped"
_Key = tuple[str, int, str]
_Result = TypeVar("_Result")
_Progress = Callable[[int, int], bool | None]


class _Open:
    """A version's table, once it is loaded, and the lock under which that happens."""

    def __init__(self, key: _Key, size: int) -> None:
        self.key = key
        self.size = size
        """What it takes of the room: bytes of a copy, 1 of a mapped table."""
        self.users = set[int]()
        """Calls that hold it, by the ids of their lists: it is not let go meanwhile."""
        self.lock = threading.Lock()
        self.table: Table | None = None


class OpenTables:
    """Tables by version, loaded when first needed; where there is no more room those used longest ago are let go.

    Threads may share it, and several series: only those that need the same version wait for its load. A forked child
    has the tables too, but for those on a GPU, which it cannot use.

    Args:
        device: where they lie; on the CPU they are mapped, OPEN_TABLES of them.
        gpu_bytes: of the device's memory for all of them together; None: what it has. The CPU rehearses it with copies
            in its own memory.

    Raises:
        InvalidArgumentError, NativeLibraryError: no such device, or lookups do not run there; `gpu_bytes` is below 0.
    """

    def __init__(self, device: torch.device | str = "cpu", gpu_bytes: int | None = None) -> None:
        self.gpu_bytes = None if gpu_bytes is None else integer(gpu_bytes, "gpu_bytes", least=0, why=" bytes")
        self.device = gpu.usable(arguments.device(device))
        """Where the tables are; of a GPU with its number."""
        self.mapped = self.device.type == "cpu" and gpu_bytes is None
        """Whether they are mapped from their files, and not copied."""
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        self._changed = threading.Condition()  # never held over a load
        _shared.add(self)

    def get(self, snapshot: Snapshot, progress: _Progress | None = None, *, background: bool = False) -> Table:
        """The snapshot's table. Arguments are those of `held`, which says what is raised."""
        with self.held([snapshot], progress, background=background) as (table,):
            return table

    @contextmanager
    def held(
        self, snapshots: Sequence[Snapshot], progress: _Progress | None = None, *, background: bool = False
    ) -> Iterator[list[Table]]:
        """Tables of the first of these snapshots: of one at least, of as many as there is room for at once. They are
        not let go meanwhile. May wait for other threads to let go of theirs.

        Args:
            progress, background: how those are copied that are not there yet, see Snapshot.load_checked.

        Raises:
            DeviceMemoryError: `gpu_bytes` is less than one of them takes, or the device has not as much.
            StoreError: what `Snapshot.load` raises.
            StoppedError: of read/copying.py: `progress` said so.
        """
        held, tables = list[_Open](), list[Table]()
        load = partial(self._loaded, progress=progress, background=background)
        try:
            while len(held) < len(snapshots) and self._holds(snapshots[len(held)], held, load):
                pass
            tables += [one.table for one in held if one.table is not None]
            yield tables
        finally:
            tables.clear()  # before others may take the room of one, which is there when nobody has it any more
            self._leave(held, held)

    def making_room(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """What `work` gives of these arguments. It takes torch's memory on the device, beside the tables: where that is
        full, those that no call holds go, one after another, as they do for a table."""
        while True:
            try:
                return work(*arguments)
            except (torch.OutOfMemoryError, MemoryError):  # the second from our own ops
                if not self._let_go(1):
                    raise

    def in_order(self, snapshots: Sequence[Snapshot]) -> list[int]:
        """The numbers of these snapshots in the order in which a call that needs them all should: where they do not fit
        at once, those that are open first, since others would drive them out."""
        if self.mapped:
            return list(range(len(snapshots)))
        with self._changed:
            return sorted(range(len(snapshots)), key=lambda number: _key(snapshots[number]) not in self._open)

    def _holds(self, snapshot: Snapshot, held: list[_Open], load: Callable[[Snapshot], Table]) -> bool:
        """Whether this table, too, is `held` now: the first one always is."""
        while (one := self._entered(snapshot, held)) is not None:
            try:
                self._load(one, snapshot, load)
                return True
            except DeviceMemoryError:
                self._leave([one], held)
                held.remove(one)
                if held:
                    return False
                if self._nothing_can_go():
                    raise
        return False

    def _entered(self, snapshot: Snapshot, held: list[_Open]) -> _Open | None:
        """The snapshot's place, among those `held`, and room for its table; None where others hold too much. Only a
        call that holds nothing waits until they have done: two that hold some would wait for each other."""
        key, size = _key(snapshot), 1 if self.mapped else snapshot.device_bytes
        if not self.mapped and self.gpu_bytes is not None and size > self.gpu_bytes:
            raise DeviceMemoryError(f"gpu_bytes is {self.gpu_bytes}, but {self._needs(snapshot, size)}: {_REMEDY}")
        with self._changed:
            while (one := self._open.get(key)) is None:
                if self._make_room(size) or self.mapped:  # of mapped ones a call may have more
                    one = self._open[key] = _Open(key, size)
                elif held:
                    return None
                else:
                    self._changed.wait()
            self._open.move_to_end(key)
            held.append(one)  # first, so that Ctrl-C leaves no user who does not know of it
            one.users.add(id(held))
            return one

    def _load(self, one: _Open, snapshot: Snapshot, load: Callable[[Snapshot], Table]) -> None:
        if one.table is not None:  # it stays
            return
        with one.lock:
            while one.table is None:
                try:
                    one.table = load(snapshot)
                except DeviceMemoryError as error:  # others have taken what `gpu_bytes` says is ours
                    if not self._let_go(one.size):
                        needs = self._needs(snapshot, one.size)  # the error's gpu_bytes are others than ours
                        raise DeviceMemoryError(
                            f"{needs}, of which too few are free ({error.lack}): {_REMEDY}"
                        ) from None

    def _loaded(self, snapshot: Snapshot, progress: _Progress | None, *, background: bool) -> Table:
        if self.mapped:
            return snapshot.load()
        memory = gpu.device_memory  # a copy, on the CPU too
        return snapshot.load_checked(self.device, progress, background=background, memory=memory)

    def _needs(self, snapshot: Snapshot, size: int) -> str:
        return f"version {snapshot.version} of series {snapshot.series!r} takes {size} bytes of {self.device}"

    def _leave(self, some: Sequence[_Open], held: list[_Open]) -> None:
        """They may be let go from now on, as far as the call of `held` goes; those that could not be loaded are."""
        with self._changed:
            for one in some:
                one.users.discard(id(held))
                if one.table is None and not one.users and self._open.get(one.key) is one:
                    del self._open[one.key]
            if self.mapped and len(self._open) > OPEN_TABLES:
                self._make_room(0)
            self._changed.notify_all()

    def _nothing_can_go(self) -> bool:
        """Whether no call has, or has left, a table here that could make room on a full device. Where calls hold all of
        them, this waits until one has done; who asks holds none, so that no two wait for each other."""
        with self._changed:
            if self._open and all(one.users for one in self._open.values()):
                self._changed.wait()
                return False
            return not self._open

    def _make_room(self, size: int) -> bool:
        """Let go of what was used longest ago until there is room for `size` more; whether there is. Under the lock: no
        other thread takes the room before the memory is given back."""
        room = OPEN_TABLES if self.mapped else self.gpu_bytes
        if room is None:
            return True
        lacking = sum(one.size for one in self._open.values()) + size - room
        idle = [one for one in self._open.values() if not one.users]
        if lacking > sum(one.size for one in idle):
            return False
        for one in idle:
            if lacking <= 0:
                break
            del self._open[one.key]
            lacking -= one.size
        return True

    def _let_go(self, size: int) -> bool:
        """Let go of tables of so many bytes that no call holds, or of all there are; whether there was one."""
        with self._changed:
            idle, gone = [key for key, one in self._open.items() if not one.users], 0
            while idle and gone < size:
                gone += self._open.pop(idle.pop(0)).size
            return gone > 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled one has no tables open: say of a worker of a DataLoader, that was not forked."""
        return OpenTables, (str(self.device), self.gpu_bytes)

    def _after_fork(self) -> None:
        """In the child: the threads that held locks and tables are not there."""
        self._changed = threading.Condition()
        for one in self._open.values():
            one.lock, one.users = threading.Lock(), set()


def _key(snapshot: Snapshot) -> _Key:
    """Of its content too: stores may share tables, and have series of one name with the same ids."""
    return snapshot.series, snapshot.version, snapshot.manifest.content


_shared: weakref.WeakSet[OpenTables] = weakref.WeakSet()


def _after_fork() -> None:
    for tables in list(_shared):
        tables._after_fork()


os.register_at_fork(after_in_child=_after_fork)
