"""The kernels of the tiered lookup without a GPU: both places of rows and of the index, and each cold row read once."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES
from tests.embedding_store.native.emulation import (
    COMPILER,
    EXTREMES,
    IDS,
    MISSING,
    ORDERS,
    OUTS,
    assert_answers,
    compiled,
    pointers,
    questions,
)
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compiled("emulate_tiered.cpp", tmp_path_factory)
    library.emulate_lookup_tiered.restype = library.emulate_claim_words.restype = ctypes.c_int64
    return library


class Answer(NamedTuple):
    vectors: Tensor
    found: Tensor
    counters: list[int]
    """Ids hot, cold and missing, and rows that crossed."""
    cold_bytes: int
    """Read from the cold memory."""
    repeats: Tensor
    """Of the ids whose row another one read: position << 32 | position of that one, as many as there are."""


def lookup(
    emulator: ctypes.CDLL,
    table: SmallTable,
    ids: Tensor,
    out: torch.dtype = torch.float32,
    *,
    claims: bool = True,
    ids_per_warp: int = 32,
    warps: int = 2,
    layout_on_device: bool = False,
    order: int = 1,
) -> Answer:
    vectors = torch.full((len(ids), table.dim), torch.nan, dtype=out)
    found, counters = torch.zeros(len(ids), dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
    words = emulator.emulate_claim_words(ctypes.c_int64(len(ids))) if claims else 0
    scratch = torch.randint(-(2**62), 2**62, (words,))  # whatever was there
    cold_bytes = emulator.emulate_lookup_tiered(
        ctypes.byref(pointers(table, layout_on_device)),
        ctypes.c_void_p(ids.data_ptr()),
        ctypes.c_int64(len(ids)),
        table.dim,
        list(DTYPES).index(table.dtype.name),
        OUTS.index(out),
        ids_per_warp,
        warps,
        ctypes.c_uint64(order),
        *(ctypes.c_void_p(x.data_ptr()) for x in (vectors, found)),
        ctypes.c_void_p(scratch.data_ptr() if claims else None),
        ctypes.c_void_p(counters.data_ptr()),
    )
    _, cold, _, crossed = counters.tolist()
    repeats = scratch[2 * len(ids) + 1 :][: cold - crossed] if claims else scratch
    return Answer(vectors, found, counters.tolist(), cold_bytes, repeats)


def expected_counters(table: SmallTable, ids: Tensor, hot_rows: int, claims: bool) -> list[int]:
    hot, cold = torch.isin(ids, table.ids[:hot_rows]), torch.isin(ids, table.ids[hot_rows:])
    crossed = len(ids[cold].unique()) if claims else int(cold.sum())
    return [int(hot.sum()), int(cold.sum()), int((~hot & ~cold).sum()), crossed]


@settings(max_examples=60, deadline=None)
@given(
    stored=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from(EXTREMES), unique=True, max_size=60),
    cut=st.integers(0, 60),
    count=st.integers(0, 150),
    dim=st.integers(1, 40),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    load=st.sampled_from([0.3, 1.0]),
    overlaid=st.booleans(),
    index_cold=st.booleans(),
    claims=st.booleans(),
    ids_per_warp=st.sampled_from([4, 8, 16, 32]),
    warps=st.integers(1, 3),
    layout_on_device=st.booleans(),
    order=ORDERS,
    seed=st.integers(0, 7),
)
def test_any_table_and_any_question(
    emulator: ctypes.CDLL,
    stored,
    cut,
    count,
    dim,
    name,
    out,
    load,
    overlaid,
    index_cold,
    claims,
    ids_per_warp,
    warps,
    layout_on_device,
    order,
    seed,
):
    hot = min(cut, len(stored))
    gone = sorted(set(MISSING) - set(stored)) if overlaid else None
    places = {"segment_rows": [hot, len(stored) - hot], "tiered": True, "index_cold": index_cold}
    table = small_table(stored, dim, name, load=load, gone=gone, seed=seed, **places)
    choice = torch.randint(len(stored) + len(MISSING), (count,), generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor(stored + MISSING)[choice]
    options = {"ids_per_warp": ids_per_warp, "warps": warps, "layout_on_device": layout_on_device, "order": order}
    got = lookup(emulator, table, ids, out, claims=claims, **options)
    assert_answers(table, ids, out, got[:2])
    assert got.counters == expected_counters(table, ids, hot, claims)


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", DTYPES)
def test_rows_of_every_width(emulator: ctypes.CDLL, name: str, out: torch.dtype):
    for dim in (1, 2, 6, 33, 100, 128):
        table = small_table(IDS, dim, name, segment_rows=[10, len(IDS) - 10], tiered=True)
        ids = questions(dim, 200)
        assert_answers(table, ids, out, lookup(emulator, table, ids, out)[:2])


@pytest.mark.parametrize("ids_per_warp", [4, 32])
def test_each_cold_row_is_read_once_however_many_ask_for_it(emulator: ctypes.CDLL, ids_per_warp: int):
    table = small_table(IDS, 32, "float32", segment_rows=[10, len(IDS) - 10], tiered=True)
    ids = torch.cat([questions(seed, 100) for seed in range(4)] + [torch.full((100,), IDS[20])])
    cold = torch.isin(ids, table.ids[10:])
    for claims, rows in ((True, len(ids[cold].unique())), (False, int(cold.sum()))):
        got = lookup(emulator, table, ids, claims=claims, ids_per_warp=ids_per_warp, warps=3)
        assert_answers(table, ids, torch.float32, got[:2])
        assert got.counters[3] == rows
        assert got.cold_bytes == rows * 32 * 4
    assert len(ids[cold].unique()) < int(cold.sum()) / 4


@pytest.mark.parametrize("count", [20, 700])  # 20 rows in 40 slots: one goes around the end
@pytest.mark.parametrize("same", [True, False])
def test_a_table_of_claims_that_is_as_full_as_it_can_be(emulator: ctypes.CDLL, same: bool, count: int):
    table = small_table(range(count), 4, "float32", segment_rows=[0, count], tiered=True)
    ids = torch.full((count,), 5) if same else torch.randperm(count, generator=torch.Generator().manual_seed(1))
    got = lookup(emulator, table, ids, warps=5)
    assert_answers(table, ids, torch.float32, got[:2])
    assert got.counters == [0, count, 0, 1 if same else count]


def test_whichever_id_comes_first_reads_the_row(emulator: ctypes.CDLL):
    """And all others copy it, those before it as well."""
    table = small_table(IDS, 4, "float32", segment_rows=[10, len(IDS) - 10], tiered=True)
    ids, warps = torch.full((8,), IDS[20]), set[int]()
    for order in range(40):
        got = lookup(emulator, table, ids, ids_per_warp=4, order=order)
        assert_answers(table, ids, torch.float32, got[:2])
        assert got.counters == [0, 8, 0, 1]
        repeats, [reader] = (got.repeats >> 32).tolist(), (got.repeats & 2**32 - 1).unique().tolist()
        assert sorted([*repeats, reader]) == list(range(8))
        warps.add(reader // 4)
    assert warps == {0, 1}


def test_rows_of_the_same_number_in_two_cold_segments(emulator: ctypes.CDLL):
    table = small_table(IDS, 4, "float32", segment_rows=[10, 30, len(IDS) - 40], tiered=True)
    ids = torch.tensor([*IDS, *IDS])
    got = lookup(emulator, table, ids)
    assert_answers(table, ids, torch.float32, got[:2])
    assert got.counters == [20, 2 * len(IDS) - 20, 0, len(IDS) - 10]


@pytest.mark.parametrize("index_cold", [False, True])
@pytest.mark.parametrize("name", ["float32", "int4"])
def test_an_overlay(emulator: ctypes.CDLL, name: str, index_cold: bool):
    rows = [10, len(IDS) - 10]
    for gone in (MISSING[:2], []):
        table = small_table(IDS, 16, name, gone=gone, seed=7, segment_rows=rows, tiered=True, index_cold=index_cold)
        ids = questions(5, 100)
        got = lookup(emulator, table, ids)
        assert_answers(table, ids, torch.float32, got[:2])
        assert got.counters == expected_counters(table, ids, 10, True)


@pytest.mark.parametrize("index_cold", [False, True])
def test_without_cold_memory_nothing_is_read_from_it(emulator: ctypes.CDLL, index_cold: bool):
    """What a layout on the device says of it, the host does not know."""
    whole = small_table(IDS, 8, "int8", segment_rows=[10, len(IDS) - 10], tiered=True, index_cold=index_cold)
    nothing = torch.empty(0, dtype=torch.uint8)
    table = SmallTable(whole.ids, whole.vectors, whole.storage, nothing, whole.layout, 8, whole.dtype)
    for on_device in (False, True):
        got = lookup(emulator, table, torch.tensor(IDS), layout_on_device=on_device)
        assert got.found.tolist() == [i < 10 and not index_cold for i in range(len(IDS))]
        assert torch.equal(got.vectors[:10], whole.vectors[:10] * (not index_cold))
        assert not got.vectors[10:].any()
        hot = 0 if index_cold else 10
        assert got.counters == [hot, 0, len(IDS) - hot, 0]


def test_a_location_outside_its_segment_is_no_row_and_not_claimed(emulator: ctypes.CDLL):
    whole = small_table(IDS, 8, "int8", segment_rows=[10, len(IDS) - 10], tiered=True)
    whole.layout[8 + 4 + 3] = 30  # rows of segment 1
    got = lookup(emulator, whole, torch.tensor([*IDS, *IDS]))
    assert got.found.tolist() == 2 * ([True] * 40 + [False] * (len(IDS) - 40))
    assert torch.equal(got.vectors[:40], whole.vectors[:40])
    assert not got.vectors[40 : len(IDS)].any()
    assert got.counters == [20, 60, 2 * (len(IDS) - 40), 30]


def test_an_empty_table(emulator: ctypes.CDLL):
    table = small_table([], 4, "int8", segment_rows=[0, 0], tiered=True)
    got = lookup(emulator, table, torch.tensor([0, -1, 7]))
    assert not got.vectors.any()
    assert got.counters == [0, 0, 3, 0]
