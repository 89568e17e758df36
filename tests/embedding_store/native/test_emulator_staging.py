"""Pooled lookups in a tiered table without a GPU: each cold row crosses once, and the sums are those without that."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES
from tests.embedding_store.native.emulation import COMPILER, IDS, MISSING, ORDERS, compiled, questions
from tests.embedding_store.native.test_emulator_bags import Pooled, Staging, assert_pooled, offsets_of
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

HOT = 30
ROWS = [HOT, len(IDS) - HOT]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("emulate_bags.cpp", tmp_path_factory)


def tiered(dim: int, name: str, **options: object) -> SmallTable:
    return small_table(IDS, dim, name, segment_rows=ROWS, tiered=True, **options)  # type: ignore[arg-type]


def is_cold(table: SmallTable, ids: Tensor) -> Tensor:
    return torch.isin(ids, table.ids[HOT:])


def claimed(table: SmallTable, ids: Tensor, batch: int) -> int:
    """Cold rows that the batches ask for, each once a batch."""
    return sum(len(part[is_cold(table, part)].unique()) for part in ids.split(batch))


def row_bytes(table: SmallTable) -> int:
    return table.dtype.width(table.dim) * table.dtype.torch_dtype.itemsize + 8 * table.dtype.quantised


def assert_same(got: Pooled, without: Pooled) -> None:
    assert torch.equal(got.pooled, without.pooled)
    assert torch.equal(got.found, without.found)
    assert torch.equal(got.hits[:3], without.hits[:3])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 20, 33, 64, 65, 200]), max_size=20),
    name=st.sampled_from(list(DTYPES)),
    dim=st.sampled_from([1, 3, 4, 8, 40, 130, 264]),
    mode=st.sampled_from(["sum", "mean"]),
    weighted=st.booleans(),
    in_row=st.booleans(),
    overlaid=st.booleans(),
    index_cold=st.booleans(),
    batch=st.sampled_from([33, 100, 10_000]),
    places=st.sampled_from([0, 1, 3, 40, 1000]),
    ids_per_warp=st.sampled_from([4, 8, 16, 32]),
    warps=st.integers(1, 3),
    processors=st.sampled_from([1, 132]),
    order=ORDERS,
    seed=st.integers(0, 100),
)
def test_the_same_bits_wherever_the_rows_were_read(
    emulator: ctypes.CDLL,
    lengths,
    name,
    dim,
    mode,
    weighted,
    in_row,
    overlaid,
    index_cold,
    batch,
    places,
    ids_per_warp,
    warps,
    processors,
    order,
    seed,
):
    if not any(lengths):
        return  # of few ids, or none, no rows are staged
    options = {"in_row": in_row, "index_cold": index_cold, "gone": MISSING[:2] if overlaid else None}
    table = tiered(dim, name, seed=seed % 8, **options)
    ids, offsets = questions(seed, sum(lengths)), offsets_of(lengths)
    weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(seed)) if weighted else None
    arguments = (emulator, table, ids, offsets, weights, mode, torch.float32, processors)
    without = Pooled(*arguments)
    assert_pooled(without, table, ids, offsets, weights, mode)
    staging = Staging(batch, places, ids_per_warp, warps)
    got = Pooled(*arguments, staging, order=order)
    assert_same(got, without)
    cold, claims = int(is_cold(table, ids).sum()), claimed(table, ids, batch)
    staged = min(claims, places)
    if staged == claims:
        assert got.hits[3] == claims
        assert got.cold_bytes[1] == 0
    else:
        assert staged < got.hits[3] <= cold
    if not index_cold:
        assert got.cold_bytes[0] == staged * row_bytes(table)


@pytest.mark.parametrize("in_row", [False, True])
@pytest.mark.parametrize("name", DTYPES)
def test_each_cold_row_is_read_once(emulator: ctypes.CDLL, name: str, in_row: bool):
    """Of every width, though each bag asks for the same ids."""
    ids = questions(3, 90).repeat(8)
    offsets = offsets_of([90] * 8)
    for dim in (1, 2, 6, 16, 33, 100, 128, 300):
        table = tiered(dim, name, in_row=in_row)
        got = Pooled(emulator, table, ids, offsets, staging=Staging(len(ids), warps=3))
        assert_same(got, Pooled(emulator, table, ids, offsets))
        crossed = len(ids[is_cold(table, ids)].unique())
        assert got.hits[3] == crossed < got.hits[1] / 8
        assert got.cold_bytes.tolist() == [crossed * row_bytes(table), 0]


def test_all_rows_cold_and_one_row_alone(emulator: ctypes.CDLL):
    table = small_table(IDS, 16, "int8", segment_rows=[0, len(IDS)], tiered=True)
    for ids in (torch.tensor(IDS * 3), torch.full((300,), IDS[5])):
        offsets = offsets_of([len(ids) // 3] * 3)
        got = Pooled(emulator, table, ids, offsets, staging=Staging(len(ids)))
        assert_same(got, Pooled(emulator, table, ids, offsets))
        assert got.hits.tolist() == [0, len(ids), 0, len(ids.unique())]


def test_what_finds_no_place_is_read_where_it_is(emulator: ctypes.CDLL):
    table, ids = tiered(8, "float16"), questions(4, 400)
    offsets = offsets_of([100, 0, 300])
    without = Pooled(emulator, table, ids, offsets)
    crossed, claims = [], claimed(table, ids, len(ids))
    for places in (0, 1, 10, claims - 1, claims):
        got = Pooled(emulator, table, ids, offsets, staging=Staging(len(ids), places, warps=1))
        assert_same(got, without)
        assert got.cold_bytes[0] == places * 16
        crossed.append(int(got.hits[3]))
    assert crossed[0] == without.hits[3] == without.hits[1]
    assert all(more >= less for more, less in itertools.pairwise(crossed))
    assert crossed[0] > crossed[1] > crossed[2] > crossed[-1] == claims


def test_a_row_is_brought_once_for_each_batch(emulator: ctypes.CDLL):
    table, ids = tiered(12, "int4"), questions(5, 500)
    offsets = offsets_of([250, 250])
    without = Pooled(emulator, table, ids, offsets)
    for batch in (1, 7, 100, 499, 500):
        got = Pooled(emulator, table, ids, offsets, staging=Staging(batch, 10_000))
        assert_same(got, without)
        assert got.hits[3] == claimed(table, ids, batch)


def test_an_index_in_the_hosts_memory_is_read_once_for_all_columns(emulator: ctypes.CDLL):
    """Which three warps share, of 32 lanes with four values each."""
    table = tiered(264, "float32", index_cold=True, gone=MISSING[:2])
    ids = questions(6, 200)
    offsets = offsets_of([200])
    without = Pooled(emulator, table, ids, offsets)
    located, got = (Pooled(emulator, table, ids, offsets, staging=Staging(200, places)) for places in (0, 100))
    for one in (located, got):
        assert_same(one, without)
    index, rows = located.cold_bytes.tolist()
    assert without.cold_bytes.tolist() == [0, 3 * index + rows]
    assert got.cold_bytes.tolist() == [index + int(got.hits[3]) * row_bytes(table), 0]


def test_rows_of_the_same_number_in_two_cold_segments(emulator: ctypes.CDLL):
    table = small_table(IDS, 4, "float32", segment_rows=[10, 30, len(IDS) - 40], tiered=True)
    ids = torch.tensor([*IDS, *IDS])
    offsets = torch.arange(len(ids) + 1)
    got = Pooled(emulator, table, ids, offsets, staging=Staging(len(ids)))
    assert torch.equal(got.pooled, table.vectors.repeat(2, 1))
    assert got.hits.tolist() == [20, 2 * len(IDS) - 20, 0, len(IDS) - 10]


@pytest.mark.parametrize("index_cold", [False, True])
def test_without_cold_memory_nothing_is_read_from_it(emulator: ctypes.CDLL, index_cold: bool):
    """What a layout on the device says of it, the host does not know."""
    whole = tiered(8, "int8", index_cold=index_cold)
    table = replace(whole, cold=torch.empty(0, dtype=torch.uint8))
    got = Pooled(emulator, table, torch.tensor(IDS), torch.arange(len(IDS) + 1), staging=Staging(len(IDS)), tiered=True)
    hot = 0 if index_cold else HOT
    assert got.found.tolist() == [1] * hot + [0] * (len(IDS) - hot)
    assert not got.pooled[hot:].any()
    assert got.hits.tolist() == [hot, 0, len(IDS) - hot, 0]


@pytest.mark.parametrize("staging", [None, Staging(200)])
@pytest.mark.parametrize("segment", [2, 3, 4, 5, 2**22])
def test_a_location_in_no_segment_is_no_row(emulator: ctypes.CDLL, segment: int, staging: Staging | None):
    """Nor one of those numbers that mean something else to the kernels."""
    table = tiered(8, "float32")
    slots = table.storage[: int(table.layout[2]) * 64].view(torch.int64).view(-1, 2)
    wrong = (slots[:, 1] != -1) & (slots[:, 1] & 1 == 1)
    lost = slots[wrong, 0].clone()
    slots[wrong, 1] += segment << 40
    ids = torch.tensor([*IDS, *IDS])
    got = Pooled(emulator, table, ids, torch.arange(len(ids) + 1), staging=staging)
    assert torch.equal(got.found, (~torch.isin(ids, lost)).to(torch.int64))
    assert torch.equal(got.pooled, torch.where(got.found[:, None] == 1, table.vectors.repeat(2, 1), 0.0))
    assert int(got.hits[2]) == 2 * len(lost) > 0


def test_bad_offsets_are_counted_as_nothing(emulator: ctypes.CDLL):
    table = tiered(4, "float32")
    got = Pooled(emulator, table, torch.tensor(IDS[:3]), torch.tensor([0, 2, 1, 3]), staging=Staging(3))
    assert got.pooled.isnan().all()
    assert got.hits.tolist() == [0] * 4
