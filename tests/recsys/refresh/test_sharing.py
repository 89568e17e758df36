"""What ranks write together, on real gloo ranks: what one rank writes, or nothing and the same error everywhere."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore, InvalidVectorsError, Series, Snapshot
from recsys.dates import DAY_MS
from recsys.refresh.aggregate import Aggregation
from recsys.refresh.aggregator import Aggregator, Blended, activity_series
from recsys.refresh.sharing import SharedIds, SharedWriter
from recsys.train.distributed import current_environment
from recsys.train.exchange import agreed, in_step
from tests.distributed import run_ranks

DIM = 4
RANKS = (1, 2, 3)


def vectors_of(ids: Tensor, day: int) -> Tensor:
    return torch.stack([(ids % (97 + i)).float() * (day + 1) for i in range(DIM)], dim=1)


def ids_of(day: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(day)
    return torch.randint(-(2**62), 2**62, (3 * count,), generator=torch.Generator().manual_seed(9))[
        torch.randperm(3 * count, generator=generator)[:count]
    ]


def membership() -> list[bool]:
    environment = current_environment()
    rank, ranks = environment.rank, environment.world_size
    known = SharedIds(torch.arange(rank, 1000, ranks) * 3 - 1500, environment)
    asked = torch.arange(-1600 - rank, 1600, 7) if rank != 1 else torch.empty(0, dtype=torch.int64)
    wanted = (asked >= -1500) & (asked < 1500) & ((asked + 1500) % 3 == 0)
    steps = list(in_step(iter(range(2 * rank)), environment))
    assert [step for step in steps if step is not None] == list(range(2 * rank))
    return [torch.equal(known.has(asked), wanted), len(steps) == 2 * (ranks - 1)]


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_know_of_each_others_ids(ranks: int) -> None:
    assert run_ranks(membership, ranks) == [[True, True]] * ranks


def publish_days(path: Path, counts: list[int], delta_below: float) -> list[tuple[bool, int]]:
    """Days of so many entities, of which every rank has a share; some leave on the way."""
    environment = current_environment()
    store = EmbeddingStore(path)
    series = agreed(lambda: store.create("user_ctr", dim=DIM, exist_ok=True), environment)
    activity = agreed(lambda: activity_series(store, "user_ctr"), environment)
    how, told = Aggregation(method="average", time_to_live_days=2, delta_below=delta_below), []
    for day, count in enumerate(counts):
        ids = ids_of(day, count)
        mine = ids[environment.rank :: environment.world_size]
        gone = torch.tensor([ids_of(0, counts[0])[0]]) if day == 1 else None
        mine = mine if gone is None else mine[mine != gone]
        aggregator = Aggregator(
            series,
            activity,
            how,
            day=day,
            as_of=(day + 1) * DAY_MS,
            space="ctr-1",
            withdrawn=gone,
            environment=environment,
        )
        with aggregator.writer(count) as writer:
            for start in range(0, len(mine), 50):
                some = mine[start : start + 50]
                days, events = torch.full((len(some),), day), torch.full((len(some),), 2)
                writer.append(aggregator.blend(some, vectors_of(some, day), days, events))
        told.append((writer.whole, writer.expired))
        torch.distributed.barrier()
    return told


def content(snapshot: Snapshot) -> tuple[dict[int, bytes], list[object]]:
    """Vectors by id, byte for byte, and what the manifest says of them."""
    rows = {
        id: vector.numpy().tobytes()
        for batch in snapshot.batches()
        for id, vector in zip(batch.ids.tolist(), batch.vectors, strict=True)
    }
    manifest, statistics = snapshot.manifest, snapshot.manifest.statistics
    names = ("version", "as_of", "space", "schema", "dim", "dtype", "base", "rows", "stored_rows", "index_entries")
    told = [getattr(manifest, name) for name in names]
    return rows, [*told, statistics.rows, statistics.min_id, statistics.max_id, round(statistics.mean_norm, 9)]


@pytest.mark.parametrize("delta_below", [0.0, 1.0])
def test_ranks_publish_what_one_publishes(tmp_path: Path, delta_below: float) -> None:
    counts = [700, 300, 0, 400]
    found = {}
    for ranks in RANKS:
        told = run_ranks(publish_days, ranks, tmp_path / str(ranks), counts, delta_below)
        assert told == [told[0]] * ranks
        store = EmbeddingStore(tmp_path / str(ranks))
        for name in ("user_ctr", "user_ctr.activity"):
            series = store.series(name)
            assert series.versions() == [1, 2, 3, 4]
            for snapshot in series.history():
                snapshot.verify()
                found.setdefault((name, snapshot.version), []).append(content(snapshot))
        found.setdefault("told", []).append(told[0])
        change = store.series("user_ctr").diff(2, 4)
        found.setdefault("diff", []).append((change.added, change.removed, change.kept, change.moved))
    for same in found.values():
        assert same == [same[0]] * len(RANKS)
    assert sum(expired for _, expired in found["told"][0]) > 100
    assert any(not whole for whole, _ in found["told"][0]) == (delta_below == 1.0)


def write_badly(path: Path, kind: str) -> str:
    """What goes wrong on rank 1 alone, or before the first row, is told everywhere."""
    environment = current_environment()
    series: Series = agreed(lambda: EmbeddingStore(path).create("user_ctr", dim=DIM, exist_ok=True), environment)
    ids = torch.arange(10) + 10 * environment.rank
    try:
        with SharedWriter(series, environment, as_of=-1 if kind == "draft" else 5, space="ctr-1", base=None) as writer:
            repeated = ids if environment.rank != 1 or kind != "rank" else ids // 2
            writer.append(ids % 10 if kind == "overlap" else repeated, vectors_of(ids, 1))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "published"


@pytest.mark.parametrize("kind", ["draft", "rank"])
def test_what_fails_on_a_rank_fails_on_all(tmp_path: Path, kind: str) -> None:
    store = EmbeddingStore(tmp_path)
    with store.create("user_ctr", dim=DIM).write(as_of=0, space="ctr-1"):
        pass
    told = run_ranks(write_badly, 2, tmp_path, kind)
    assert told[0] == told[1]
    assert told[0].startswith({"draft": "AsOfDecreasedError", "rank": "DuplicateIdsError: 5 ids"}[kind])
    assert store.series("user_ctr").versions() == [1]


def test_an_id_of_two_ranks_is_refused_at_the_commit(tmp_path: Path) -> None:
    told = run_ranks(write_badly, 2, tmp_path, "overlap")
    assert told[0].startswith("DuplicateIdsError: 10 ids are in several fragments")
    assert EmbeddingStore(tmp_path).series("user_ctr").versions() == []


def die_amid(path: Path, when: str) -> None:
    environment = current_environment()
    series = EmbeddingStore(path).series("user_ctr")
    writer = SharedWriter(series, environment, as_of=5, space="ctr-1")
    victim = 0 if when == "commit" else 1
    with writer:
        ids = torch.arange(100) + 100 * environment.rank
        writer.append(ids, vectors_of(ids, 1))
        if when == "append" and environment.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        writer.finish()
        if environment.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # until the others are ended


@pytest.mark.parametrize("when", ["append", "finish", "commit"])
def test_a_killed_rank_leaves_nothing_half_visible_and_the_next_run_publishes(tmp_path: Path, when: str) -> None:
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=DIM)
    with pytest.raises(AssertionError, match=r"did not end|onnection|roken pipe"):
        run_ranks(die_amid, 2, tmp_path, when)
    assert series.versions() == []
    assert any(tmp_path.rglob("*.arrow*"))
    assert run_ranks(write_badly, 2, tmp_path, "no") == ["published"] * 2
    snapshot = series.latest()
    assert (snapshot.version, snapshot.rows) == (1, 20)
    snapshot.verify()
    for file in [tmp_path, *tmp_path.rglob("*")]:
        os.utime(file, (time.time() - 7300,) * 2)
    assert series.clean()
    snapshot.verify()
    named = {path.rpartition("/")[2] for file in snapshot.manifest.files for path in (file.path, file.crc_path)}
    assert {file.name for file in (tmp_path / "user_ctr" / "data").rglob("*") if file.is_file()} == named


def test_bad_vectors_leave_nothing(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    series, activity = store.create("user_ctr", dim=DIM), activity_series(store, "user_ctr")
    aggregator = Aggregator(series, activity, Aggregation(), day=1, as_of=DAY_MS, space="ctr-1")
    blended: Any = Blended(torch.tensor([1]), torch.full((1, DIM), torch.nan), torch.zeros(1, 3))
    with pytest.raises(InvalidVectorsError), aggregator.writer(1) as writer:
        writer.append(blended)
    assert not list(tmp_path.rglob("*.arrow"))
