"""Tables spread over ranks, against the whole table of the same snapshot."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    MissingFileError,
    RankFailedError,
    RanksDisagreeError,
    Series,
    ShardedTable,
    Snapshot,
    Table,
    load_sharded,
)
from embedding_store.dtypes import DTYPES
from embedding_store.format import documents
from embedding_store.serve import shard
from tests.distributed import run_ranks
from tests.embedding_store.helpers import folder, publish
from tests.embedding_store.write.test_pieces import written_together
from tests.s3 import s3_environment

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**31, 2**63 - 1]
OUTS = [torch.float32, torch.float16, torch.bfloat16]
SAME_DRAWS = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
"""Every rank draws the same examples."""


def vectors_of(ids: Tensor, dim: int, version: int) -> Tensor:
    """Vectors that say which id and version they are of."""
    generator = torch.Generator().manual_seed(version)
    return torch.randn(len(ids), dim, generator=generator) + version


def history(store: EmbeddingStore, name: str, dim: int, dtype: str) -> Series:
    """A whole snapshot, and two deltas with an overlay; ids at both ends of int64."""
    series = store.create(name, dim=dim, dtype=dtype)
    ids = torch.tensor(EXTREMES + list(range(1000, 1400)))
    with series.write(as_of=1, space="a") as writer:
        for part in ids.split(150):
            writer.append(part, vectors_of(part, dim, 1))
    for version in (2, 3):
        with series.write(as_of=version, space="a", base=version - 1) as writer:
            changed = torch.cat((ids[version * 5 : version * 5 + 40], torch.arange(20) + 10_000 * version))
            writer.append(changed, vectors_of(changed, dim, version))
            writer.delete(ids[200 * (version - 1) : 200 * (version - 1) + 30])
    return series


def same(got: Any, expected: Any) -> bool:
    return got.dtype == expected.dtype and got.shape == expected.shape and torch.equal(got, expected)


def compare(path: str, names: list[str]) -> None:
    store = EmbeddingStore(path)
    for name in names:
        for snapshot in store.series(name).history():
            compare_tables(load_sharded(snapshot), snapshot.load())


def compare_tables(table: ShardedTable, whole: Table) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert table.shard.rows <= len(table) == len(whole)
    every = [None] * ranks
    dist.all_gather_object(every, table.ids())
    assert torch.equal(torch.cat(every).sort().values, whole.ids())
    known = st.sampled_from([*whole.ids().tolist(), *EXTREMES, 5, 6, 7])
    column = st.lists(known | st.integers(-(2**63), 2**63 - 1), max_size=80)

    @SAME_DRAWS
    @given(drawn=st.lists(column, min_size=ranks, max_size=ranks), out=st.sampled_from(OUTS), mean=st.booleans())
    def answers_are_the_same(drawn: list[list[int]], out: torch.dtype, mean: bool) -> None:
        ids = torch.tensor(drawn[rank], dtype=torch.int64)
        for got, expected in zip(table.lookup(ids, out), whole.lookup(ids, out), strict=True):
            assert same(got, expected)
        bags = torch.tensor([0, len(ids) // 3, len(ids) // 3, len(ids)])
        weights = torch.linspace(-1, 1, len(ids)) if mean else None
        arguments = (ids, bags, weights, "mean" if mean else "sum", out)
        for got, expected in zip(table.lookup_pooled(*arguments), whole.lookup_pooled(*arguments), strict=True):
            torch.testing.assert_close(got, expected)

    answers_are_the_same()
    asked = torch.tensor([0, 5, 1000, 1000, *EXTREMES]).repeat(rank + 1).view(rank + 1, -1)
    for got, expected in zip(table.lookup(asked), whole.lookup(asked), strict=True):
        assert same(got, expected)
    for got, expected in zip(table.lookup(asked.numpy()), whole.lookup(asked.numpy()), strict=True):
        assert np.array_equal(got, expected)
    column = pa.array(asked.flatten().tolist())
    for got, expected in zip(table.lookup(column), whole.lookup(column), strict=True):
        assert got.equals(expected)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_lookups_of_any_ranks_are_those_of_one_table(store: EmbeddingStore, ranks: int):
    dims = {"float32": 8, "float16": 5, "bfloat16": 3, "int8": 7, "int4": 9}
    assert set(dims) == set(DTYPES)
    for name, dim in dims.items():
        history(store, name, dim, name)
    empty = store.create("empty", dim=2)
    publish(empty, 1, [])
    publish(store.create("single", dim=2), 1, [-7])
    names = [*dims, "empty", "single"] if ranks == 2 else ["int4", "empty"]
    run_ranks(compare, ranks, store.location, names)


def without_native_ops(path: str) -> None:
    """What a GPU's lookup does, but for its kernel of `lookup`, here."""
    snapshot = EmbeddingStore(path).series("user").latest()
    table, whole = load_sharded(snapshot), snapshot.load()
    table._native = False
    generator = torch.Generator().manual_seed(dist.get_rank())
    for rows in (0, 1, 300 * dist.get_rank(), 500):
        ids = torch.cat((torch.randint(980, 1420, (rows,), generator=generator), torch.tensor(EXTREMES)))
        for got, expected in zip(table.lookup(ids), whole.lookup(ids), strict=True):
            assert same(got, expected)


@pytest.mark.parametrize("dtype", ["float16", "int4"])
def test_lookups_by_plain_torch_are_the_same(store: EmbeddingStore, dtype: str):
    history(store, "user", 5, dtype)
    run_ranks(without_native_ops, 3, store.location)


def weights_gradient(path: str) -> tuple[Tensor, Tensor]:
    snapshot = EmbeddingStore(path).series("user").latest()
    ids, bags = torch.tensor([1000, 1000, 3, 1101 + dist.get_rank()]), torch.tensor([0, 2, 4])
    gradients = []
    for table in (load_sharded(snapshot), snapshot.load()):
        weights = torch.ones(4, requires_grad=True)
        table.lookup_pooled(ids, bags, weights)[0].square().sum().backward()
        gradients.append(weights.grad)
    return tuple(gradients)


def test_weights_of_a_pooled_lookup_get_gradients(store: EmbeddingStore):
    history(store, "user", 4, "float32")
    for got, expected in run_ranks(weights_gradient, 2, store.location):
        torch.testing.assert_close(got, expected)
        assert got.abs().sum() > 0


def rewritten(snapshot: Snapshot, series: Series) -> None:
    """As format version 2 had it."""
    path = folder(series) / f"manifests/{snapshot.version:08d}.json"
    document = json.loads(path.read_text())
    assert document.pop("overlay") is None
    del document["checksum"], document["format"], document["format_version"]
    text = documents.encode("manifest", document).replace(b'"format_version": 3', b'"format_version": 2')
    body = text.partition(b"\n")[2]
    path.write_bytes(b'{"checksum": "crc32:%08x",\n' % zlib.crc32(body) + body)


def test_snapshots_of_format_version_2(store: EmbeddingStore):
    series = store.create("user", dim=3)
    rewritten(publish(series, 1, list(range(50))), series)
    assert b'"format_version": 2' in (folder(series) / "manifests/00000001.json").read_bytes()
    run_ranks(compare, 2, store.location, ["user"])


def test_an_index_that_several_writers_made(store: EmbeddingStore):
    series = store.create("user", dim=1, dtype="float16")
    snapshot, pieces = written_together(series, np.random.default_rng(2).permutation(15_000), 3)
    assert len(pieces) == 3 < len(snapshot.manifest.index.pieces)  # the first has the header
    run_ranks(compare, 2, store.location, ["user"])


def read_bytes(path: str) -> tuple[int, int, int]:
    table = load_sharded(EmbeddingStore(path).series("user").latest())
    return table.shard.read_bytes, table.shard.rows, table.shard.storage.numel()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_rank_reads_and_holds_its_part(store: EmbeddingStore, dtype: str):
    series = store.create("user", dim=64, dtype=dtype)
    rows, ranks = 120_000, 3
    with series.write(as_of=1, space="a") as writer:
        for ids in torch.randperm(rows).split(10_000):
            writer.append(ids, torch.randn(len(ids), 64))
    manifest = series.latest().manifest
    read = manifest.total_bytes - 8 * rows  # all but the column of ids
    done = run_ranks(read_bytes, ranks, store.location)
    assert sum(held for _, held, _ in done) == rows
    blocks = 65_536 * (2 + 2 * 3 * (1 + read // ranks // (8 << 20)))  # at the ends of each column's and piece's bytes
    for bytes_read, held, memory in done:
        assert abs(held - rows / ranks) < 5 * rows**0.5
        assert read / ranks * 0.95 < bytes_read < read / ranks * 1.05 + blocks + 20 * 65_536
        assert memory < 1.15 * manifest.total_bytes / ranks


def refused(path: str) -> list[str]:
    store = EmbeddingStore(path)
    table, other = (load_sharded(store.series("user").version(version)) for version in (1, 2))
    rank, good, said = dist.get_rank(), torch.tensor([1000]), []
    bad = [torch.tensor([1.5]), torch.ones(1, dtype=torch.int64, device="meta"), "text", np.array(["a"])]
    for ids in bad:
        try:
            table.lookup(ids if rank == 1 else good)
        except (InvalidIdsError, RankFailedError) as error:
            said.append(f"{type(error).__name__}: {error}")
        assert table.lookup(good)[1].all()  # and goes on
    for call in (
        lambda: table.lookup(good, torch.float64 if rank == 1 else torch.float32),
        lambda: table.lookup_pooled(good, torch.tensor([0, 5 if rank == 1 else 1])),
        lambda: (other if rank == 1 else table).lookup(good),
        lambda: load_sharded(store.series("user").version(1 + rank)),
    ):
        try:
            call()
        except (InvalidArgumentError, RankFailedError, RanksDisagreeError) as error:
            said.append(f"{type(error).__name__}: {error}")
        assert table.lookup(good)[1].all()
    return said


def test_what_is_wrong_is_an_error_on_every_rank(store: EmbeddingStore):
    history(store, "user", 4, "float32")
    first, second = run_ranks(refused, 2, store.location)
    told = "RankFailedError: the lookup was refused on rank 1, whose error says why"
    for message in first[:6]:
        assert message.startswith(told)
    starts = ["InvalidIdsError: ids are torch.float32", "InvalidIdsError: ids are on meta"]
    starts += ["InvalidIdsError: ids are str", "InvalidIdsError: ids are text"]
    starts += ["InvalidArgumentError: out_dtype is", "InvalidArgumentError: offsets"]
    for message, start in zip(second[:6], starts, strict=True):
        assert message.startswith(start), message
    for said in (first, second):
        assert said[6].startswith(
            "RanksDisagreeError: the ranks look up different snapshots: rank 0 version 1, rank 1 ver"
        )
        assert said[7].startswith("RanksDisagreeError: the snapshots to load differ: rank 0 user version 1 blake2b:")


def failing(path: str) -> str:
    try:
        load_sharded(EmbeddingStore(path).series("user").latest())
    except (ChecksumError, MissingFileError, RankFailedError) as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def out_of_memory(path: str) -> str:
    if dist.get_rank() == 1:
        shard._empty = None  # type: ignore[assignment]  # what cannot be had
    try:
        load_sharded(EmbeddingStore(path).series("user").latest())
    except (TypeError, RankFailedError) as error:
        return type(error).__name__
    return "loaded"


def test_a_rank_without_room_for_its_part_is_an_error_on_every_rank(store: EmbeddingStore):
    history(store, "user", 4, "float32")
    assert run_ranks(out_of_memory, 2, store.location) == ["RankFailedError", "TypeError"]


@pytest.mark.parametrize("which", ["index", "vectors"])
def test_a_changed_byte_is_found_by_the_rank_that_reads_it(store: EmbeddingStore, which: str):
    series = store.create("user", dim=64)
    snapshot = publish(series, 1, list(range(12_000)))
    file = snapshot.manifest.index if which == "index" else snapshot.manifest.data[0]
    path = folder(series) / file.path
    data = bytearray(path.read_bytes())
    data[100_000 if which == "index" else 200_000] ^= 1  # of the first rank's half
    path.write_bytes(data)
    first, second = run_ranks(failing, 2, store.location)
    assert first.startswith(f"ChecksumError: {path}: its bytes have changed, in the block at")
    assert second == f"RankFailedError: rank 0 failed, so no rank goes on: {first}"


def test_a_snapshot_that_has_gone(store: EmbeddingStore):
    series = store.create("user", dim=3)
    publish(series, 1, [1])
    assert run_ranks(failing, 2, store.location) == ["loaded"] * 2
    for file in folder(series).rglob("index.hash*"):
        file.unlink()
    said = run_ranks(failing, 2, store.location)
    assert all(message.startswith("MissingFileError: ") for message in said)


def test_without_a_process_group(series: Series):
    snapshot = publish(series, 1, [1])
    with pytest.raises(InvalidArgumentError, match="group: no process group is running"):
        load_sharded(snapshot)


def from_bucket(url: str, cache: str, environment: dict[str, str]) -> tuple[bool, int, int]:
    os.environ.update(environment)  # that of the process which ranks are forked off is older than the bucket's
    snapshot = EmbeddingStore(url, cache=Path(cache, str(dist.get_rank()))).series("user").latest()
    table = load_sharded(snapshot)
    fetched = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    dist.barrier()
    ids = torch.arange(-5, 3000)
    same_vectors = all(map(torch.equal, table.lookup(ids), snapshot.load().lookup(ids)))
    return same_vectors, fetched, table.shard.read_bytes


def test_of_a_bucket_only_a_part_is_fetched(url: str, tmp_path: Path):
    series = EmbeddingStore(url, cache=tmp_path / "writer").create("user", dim=128)
    snapshot = publish(series, 1, list(range(3000)), torch.randn(3000, 128))
    for same_vectors, fetched, read in run_ranks(from_bucket, 2, url, str(tmp_path / "cache"), s3_environment()):
        assert same_vectors
        assert fetched == 0
        assert read < 0.75 * snapshot.manifest.total_bytes
