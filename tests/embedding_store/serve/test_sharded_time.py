"""Lookups as of many times in spread versions, against those in whole tables."""

from __future__ import annotations

import pickle

import torch
import torch.distributed as dist

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    PointInTime,
    RankFailedError,
    ShardedPointInTime,
)
from tests.distributed import run_ranks
from tests.embedding_store.serve.test_sharded import history


def compared(path: str) -> list[str]:
    series, rank, said = EmbeddingStore(path).series("user"), dist.get_rank(), list[str]()
    snapshots = series.history()
    whole, spread = PointInTime(snapshots, series.dim), ShardedPointInTime(snapshots, series.dim)
    generator = torch.Generator().manual_seed(rank)
    for rows, latest in [(50, 6), (0, 6), (30, 2), (7 * rank, 6), (20, 2 + 2 * rank)]:
        ids = torch.randint(990, 1420, (rows,), generator=generator)
        times = torch.randint(0, latest, (rows,), generator=generator)
        for delay, out in [(0, torch.float32), (1, torch.float16)]:
            arguments = (ids.view(1, -1), times.view(1, -1), delay, out)
            for got, expected in zip(spread.lookup(*arguments), whole.lookup(*arguments), strict=True):
                assert got.dtype == expected.dtype
                assert torch.equal(got, expected)
    ids = torch.tensor([1000])
    for wrong in (
        lambda: spread.lookup(ids, ids if rank == 0 else ids.int()),
        lambda: spread.lookup_history(ids, ids, 2),
        lambda: spread.lookup(ids if rank == 0 else [1000], ids),
        lambda: spread.lookup(ids, ids, out_dtype=torch.float32 if rank == 0 else "float32"),
        lambda: pickle.dumps(spread),
    ):
        try:
            wrong()
        except (InvalidIdsError, RankFailedError, InvalidArgumentError) as error:
            said.append(f"{type(error).__name__}: {error}")
        assert spread.lookup(ids, ids)[1].all()
    return said


def test_lookups_as_of_a_time_are_those_of_whole_tables(store: EmbeddingStore):
    history(store, "user", 5, "int8")
    first, second = run_ranks(compared, 3, store.location)[:2]
    assert first[0].startswith("RankFailedError: rank 1 failed, so no rank goes on: InvalidIdsError: timestamps are ")
    assert second[0].startswith("InvalidIdsError: timestamps are torch.int32")
    assert first[1] == second[1]
    assert first[1].startswith("InvalidArgumentError: k is 2: the last k versions are looked up in whole tables only")
    assert first[2].startswith("RankFailedError: rank 1 failed, so no rank goes on: InvalidIdsError: ids are list")
    assert second[2].startswith("InvalidIdsError: ids are list")
    assert first[3].startswith("RankFailedError: rank 1 failed, so no rank goes on: InvalidArgumentError: out_dtype")
    assert first[4] == second[4]
    assert first[4].startswith("InvalidArgumentError: a ShardedPointInTime is of its process group and cannot be")
    assert second[3].startswith("InvalidArgumentError: out_dtype is float32")
