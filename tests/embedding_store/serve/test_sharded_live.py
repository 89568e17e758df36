"""Sharded tables that follow: no lookup is of two versions, and all ranks are at one."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    InvalidArgumentError,
    Series,
    ShardedLiveTable,
    TagNotFoundError,
    VersionNotFoundError,
)
from tests.distributed import run_ranks
from tests.embedding_store.helpers import folder, publish

IDS = list(range(-300, 300))
VERSIONS = 12


def write(series: Series, version: int, **options: Any) -> None:
    """A version whose every vector says which it is."""
    publish(series, version, IDS, torch.full((len(IDS), series.dim), float(version)), **options)


def version_of(vectors: Tensor, found: Tensor) -> int:
    """Of an answer; fails if it is of two."""
    (version,) = set(vectors[found].flatten().tolist())
    return int(version)


def looked_up(live: ShardedLiveTable, generator: torch.Generator) -> int:
    ids = torch.randint(-400, 400, (1 + int(torch.randint(0, 200, (), generator=generator)),), generator=generator)
    ids[0] = 7
    vectors, found = live.lookup(ids)
    assert torch.equal(found, (ids >= -300) & (ids < 300))
    assert not vectors[~found].any()
    return version_of(vectors, found)


def publish_all(series: Series, seen: list[int]) -> None:
    """The first few when the one before was seen, the others as fast as it goes."""
    for version in range(2, VERSIONS + 1):
        while version < 6 and seen[-1:] < [version - 1]:
            time.sleep(0.001)
        if version % 3:
            write(series, version)
        else:  # a delta that replaces all: with an overlay
            write(series, version, base=version - 1)


def under_publishing(path: str) -> list[int]:
    series, rank = EmbeddingStore(path).series("user"), dist.get_rank()
    seen = list[int]()
    publisher, generator = (
        threading.Thread(target=publish_all, args=(series, seen)),
        torch.Generator().manual_seed(rank),
    )
    with ShardedLiveTable(series, interval=0.02) as live:
        if rank == 0:
            publisher.start()
        while not seen or seen[-1] < VERSIONS:
            seen.append(looked_up(live, generator))
            if rank:
                time.sleep(0.001 * rank)
        assert (live.status.version, live.status.error) == (VERSIONS, None)
    assert not live.status.following
    if rank == 0:
        publisher.join()
    assert looked_up(live, generator) == VERSIONS  # after `close` too
    return seen


@pytest.mark.parametrize("ranks", [2, 3])
def test_no_lookup_is_of_two_versions_while_versions_are_published(store: EmbeddingStore, ranks: int):
    write(store.create("user", dim=4), 1)
    first, *others = run_ranks(under_publishing, ranks, store.location)
    for seen in others:
        assert seen == first  # the same version in the same lookup
    assert first == sorted(first)
    assert set(first) >= {1, 2, 3, 4}  # it did follow


def refreshed(path: str) -> list[str]:
    series, rank, said = EmbeddingStore(path).series("user"), dist.get_rank(), []
    generator = torch.Generator().manual_seed(rank)
    live = ShardedLiveTable(series, tag="prod")
    assert (live.status.version, live.status.swaps, live.status.following) == (1, 0, False)

    def change(action: Any) -> None:
        dist.barrier()
        if rank == 0:
            action()
        dist.barrier()

    def look() -> None:
        status = live.refresh()
        assert looked_up(live, generator) == status.version
        said.append(f"{status.version} {type(status.error).__name__} {status.error}")
        assert len(live._held) == 1

    look()
    change(lambda: (write(series, 2), series.tag("prod", 2)))
    look()
    change(lambda: series.rollback("prod"))
    look()
    change(lambda: (write(series, 3), damage(series, 3, at=-1), series.tag("prod", 3)))
    look()
    change(lambda: damage(series, 3, at=-1))
    look()
    change(
        lambda: (series.evolve(dtype="float16"), write(EmbeddingStore(path).series("user"), 4), series.tag("prod", 4))
    )
    look()
    return said


def damage(series: Series, version: int, at: int) -> None:
    """Change one byte, or change it back."""
    path = Path(folder(series), series.version(version).manifest.data[0].path)
    data = bytearray(path.read_bytes())
    start = series.version(version).manifest.segments[0]
    data[start.vector + start.rows * 16 + at] ^= 1  # float32 [4]
    path.write_bytes(data)


def test_refresh_moves_all_ranks_or_none(store: EmbeddingStore):
    series = store.create("user", dim=4)
    write(series, 1)
    series.tag("prod", 1)
    first, second = run_ranks(refreshed, 2, store.location)
    for said in (first, second):
        assert said[:3] == ["1 NoneType None", "2 NoneType None", "1 NoneType None"]
        assert said[3].startswith(("1 ChecksumError", "1 RankFailedError rank"))
        assert "its bytes have changed" in said[3]
        assert said[4] == "3 NoneType None"
        assert said[5].startswith("3 SchemaChangedError version 4 of user has dim 4, dtype float16")
    assert "1 ChecksumError" in first[3] + second[3]


class Seen(ShardedLiveTable):
    """Whose status is looked at whenever something of it has changed."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if hasattr(self, "seen"):
            status = self.status
            self.seen.append((status.version, status.swaps, type(status.error)))


def statuses(path: str) -> set[tuple[int, int, type]]:
    series = EmbeddingStore(path).series("user")
    live = Seen(series)
    live.seen = []
    write(series, 2)
    live.refresh()
    write(series, 3)
    damage(series, 3, at=-1)
    live.refresh()
    damage(series, 3, at=-1)
    live.refresh()
    return set(live.seen)


def test_a_status_is_of_one_moment(store: EmbeddingStore):
    """However long a thread is held up between two assignments."""
    write(store.create("user", dim=4), 1)
    (seen,) = run_ranks(statuses, 1, store.location)
    none = type(None)
    assert seen == {(1, 0, none), (2, 1, none), (2, 1, ChecksumError), (3, 2, none)}


def dropped(path: str) -> list[bool]:
    series = EmbeddingStore(path).series("user")
    live = ShardedLiveTable(series)
    tables = [weakref.ref(live._table)]
    write(series, 2)
    live.refresh()
    assert looked_up(live, torch.Generator()) == 2
    tables.append(weakref.ref(live._table))
    gc.disable()
    del live
    return [table() is None for table in tables]


def test_a_dropped_one_gives_its_memory_back_at_once(store: EmbeddingStore):
    """On a GPU that holds two versions another one could not be made before the next collection of garbage."""
    write(store.create("user", dim=4), 1)
    assert run_ranks(dropped, 1, store.location) == [[True, True]]


def refusing(path: str) -> list[str]:
    series, said = EmbeddingStore(path).series("user"), []
    for options in ({}, {"tag": "prod"}, {"interval": -1.0}):
        try:
            ShardedLiveTable(series, **options)
        except (VersionNotFoundError, TagNotFoundError, InvalidArgumentError) as error:
            said.append(f"{type(error).__name__}: {error}")
    dist.barrier()
    if dist.get_rank() == 0:
        write(series, 1)
    dist.barrier()
    with ShardedLiveTable(series, interval=60.0) as live, pytest.raises(InvalidArgumentError, match="make it None"):
        live.refresh()
    return said


def test_what_cannot_be_followed(store: EmbeddingStore):
    store.create("user", dim=4)
    first, second = run_ranks(refusing, 2, store.location)
    assert first == second
    starts = [
        "VersionNotFoundError: nothing to serve: user has no snapshot yet",
        "TagNotFoundError: ",
        "InvalidArgumentE",
    ]
    for message, start in zip(first, starts, strict=True):
        assert message.startswith(start), message
