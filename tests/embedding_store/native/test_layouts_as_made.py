"""Every layout that loading makes passes the check that the ops on CUDA make: of what they refuse nothing is found."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from embedding_store import CapturableLiveTable, EmbeddingStore, Series, Snapshot, TieredTable
from embedding_store.dtypes import DTYPES
from embedding_store.native import gpu
from embedding_store.native.mapping import Mapping
from embedding_store.read.snapshot import table_layout
from embedding_store.read.table import Table
from embedding_store.read.upload import upload
from embedding_store.serve.shard import _empty, record_bytes
from tests.embedding_store.native.emulation import COMPILER, compiled, refusal
from tests.embedding_store.small_table import SmallTable

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

IDS = [-(2**63), -1, 0, 2**63 - 1] + [100 + 7 * i for i in range(200)]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("emulate_tiered.cpp", tmp_path_factory)


def write(series: Series, ids: list[int], base: int | None = None, gone: list[int] | None = None) -> Snapshot:
    as_of = max(series.versions(), default=0) + 1
    with series.write(as_of=as_of, space="a", base=base, rows_per_batch=37) as writer:
        writer.append(torch.tensor(ids, dtype=torch.int64), torch.randn(len(ids), series.dim))
        if gone is not None:
            writer.delete(torch.tensor(gone, dtype=torch.int64))
    return writer.snapshot


def histories(store: EmbeddingStore, dim: int, dtype: str) -> Iterator[Snapshot]:
    """Nothing, one row, many segments, overlays over these, and what is left when an overlay takes all away."""
    empty, many = (store.create(f"{name}_{dim}_{dtype}", dim=dim, dtype=dtype) for name in ("empty", "many"))
    yield write(empty, [])
    yield write(empty, [7], base=1)
    yield write(empty, [], base=2, gone=[7])
    yield write(empty, [2**62])
    yield write(many, IDS)
    yield write(many, [*IDS[5:60], *range(40)], base=1, gone=IDS[80:90])
    yield write(many, [], base=2, gone=[*IDS, *range(40)])


def as_given(storage: Tensor, cold: Tensor | None, layout: Tensor, dim: int, dtype: str) -> SmallTable:
    nothing = torch.empty(0, dtype=torch.uint8)
    return SmallTable(nothing, nothing, storage, nothing if cold is None else cold, layout, dim, DTYPES[dtype])


def assert_passes(emulator: ctypes.CDLL, table: Table, start: int | None = None) -> None:
    """What lookups give the ops, and what a search for ids alone does. `start`: of the allocation that it lies in."""
    assert table._lookup_layout() is table.host_layout
    cold = table.cold if isinstance(table, TieredTable) else None
    rest = (table.host_layout, table.dim, table.dtype)
    assert refusal(emulator, as_given(table._storage, cold, *rest), tiered=cold is not None) == ""
    assert refusal(emulator, as_given(table._index_storage, table._index_storage, *rest), rows=False) == ""
    if start is not None:
        assert (table._storage.data_ptr() - start) % 16 == 0


def mapped(snapshot: Snapshot) -> tuple[Mapping, Tensor]:
    mapping, header = snapshot._map(anew=False)
    return mapping, table_layout(snapshot.manifest, mapping.starts, header)


@pytest.mark.parametrize("dim", [1, 8, 33])
@pytest.mark.parametrize("name", DTYPES)
def test_copies_tiers_and_shards_pass(emulator: ctypes.CDLL, store: EmbeddingStore, name: str, dim: int):
    overlaid, parts = 0, set[int]()
    for snapshot in histories(store, dim, name):
        mapping, layout = mapped(snapshot)
        options = {"dim": dim, "dtype": DTYPES[name], "device": "cpu", "index_path": "index.hash"}
        table = Table(snapshot.manifest, *upload(mapping, layout, **options))
        assert_passes(emulator, table)
        overlaid += int(table.host_layout[6])
        index = -(-int(layout[2]) * 64 // 256) * 256  # without the overlay's
        for budget in (0, 1, index, index + 300, index + 2000, 2**40):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                tiers = snapshot.load(gpu_bytes=budget)
            assert isinstance(tiers, TieredTable)
            assert_passes(emulator, tiers)
            parts.add(len(tiers.host_layout))
        shard = _empty(snapshot.load().ids().numpy(), record_bytes(snapshot.manifest))
        assert shard.rows == snapshot.manifest.rows
        records = as_given(shard.storage, None, shard.layout, shard.record_bytes // 4, "float32")
        assert refusal(emulator, records) == ""
    assert overlaid == 4
    assert parts == {12, 16, 20}


@pytest.mark.parametrize("name", DTYPES)
def test_versions_in_slots_pass(emulator: ctypes.CDLL, store: EmbeddingStore, name: str):
    """Whose memory is larger than a version's, and whose second half is one, too."""
    series = store.create("user", dim=5, dtype=name)
    write(series, IDS)
    with CapturableLiveTable(series, device="cpu", interval=3600.0) as live:
        for base in (None, 1, 2):
            if base is not None:
                write(series, IDS[base : base + 20], base=base, gone=IDS[30 : 30 + base])
                live.refresh()
            assert live._slots is not None
            start = live._slots._storages["user"].data_ptr()
            for _, tables in live._slots._filled.values():
                assert_passes(emulator, tables["user"], start)
            with live.reading() as reading:
                table = reading.tables["user"]
                numbers = table.host_layout[: 8 + 4 * int(table.host_layout[4]) + 4 * int(table.host_layout[6])]
                given = as_given(table._storage, None, numbers, 5, name)
                assert refusal(emulator, given) == ""


@pytest.mark.parametrize("name", DTYPES)
def test_a_files_columns_pass(emulator: ctypes.CDLL, store: EmbeddingStore, name: str):
    """Of a mapping that an exported program has taken along, and then moved to a GPU; 4 is what 0 was."""
    series = store.create("user", dim=5, dtype=name)
    with series.write(as_of=1, space="a") as writer:
        writer.append(torch.tensor(IDS), torch.randn(len(IDS), 5))
    table = writer.snapshot.load()
    for stride in (0, 4):
        layout = table.layout.clone()
        layout[5] = stride
        assert refusal(emulator, as_given(table.storage, None, layout, 5, name)) == ""


def test_the_first_lookup_on_a_gpu_passes(emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch):
    given = list[SmallTable]()

    def lookup(ids: Tensor, storage: Tensor, layout: Tensor, dim: int, dtype: str, out: torch.dtype):
        given.append(as_given(storage, None, layout, dim, dtype))
        return torch.zeros(2, dim), torch.zeros(2, dtype=torch.bool)

    monkeypatch.setattr(torch.ops.embedding_store, "lookup", lookup)
    gpu.looks_up(torch.device("cpu"))
    assert refusal(emulator, given[0]) == ""
