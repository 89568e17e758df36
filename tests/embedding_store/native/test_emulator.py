"""The kernel of lookup without a GPU: compiled by the host's compiler, run by fibres that take turns (emulator/)."""

from __future__ import annotations

import ctypes

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
    return compiled("emulate.cpp", tmp_path_factory)


def lookup(
    emulator: ctypes.CDLL,
    table: SmallTable,
    ids: Tensor,
    out: torch.dtype = torch.float32,
    *,
    ids_per_warp: int = 32,
    warps: int = 2,
    layout_on_device: bool = False,
    order: int = 1,
) -> tuple[Tensor, Tensor]:
    vectors = torch.full((len(ids), table.dim), torch.nan, dtype=out)
    found = torch.zeros(len(ids), dtype=torch.bool)
    emulator.emulate_lookup(
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
    )
    return vectors, found


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", DTYPES)
def test_rows_of_every_width_are_copied_bit_by_bit(emulator: ctypes.CDLL, name: str, out: torch.dtype):
    for dim in (1, 6, 33, 100, 128):
        for in_row in (False, True):
            table = small_table(IDS, dim, name, in_row=in_row)
            ids = questions(dim, 45)
            assert_answers(table, ids, out, lookup(emulator, table, ids, out))


@settings(max_examples=60, deadline=None)
@given(
    stored=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from(EXTREMES), unique=True, max_size=60),
    cut=st.integers(0, 60),
    count=st.integers(0, 90),
    dim=st.integers(1, 40),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    load=st.sampled_from([0.3, 0.6, 1.0]),
    in_row=st.booleans(),
    overlaid=st.booleans(),
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
    in_row,
    overlaid,
    ids_per_warp,
    warps,
    layout_on_device,
    order,
    seed,
):
    rows = min(cut, len(stored)), max(len(stored) - cut, 0)
    gone = sorted(set(MISSING) - set(stored)) if overlaid else None
    table = small_table(stored, dim, name, segment_rows=rows, load=load, in_row=in_row, gone=gone, seed=seed)
    choice = torch.randint(len(stored) + len(MISSING), (count,), generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor(stored + MISSING)[choice]
    options = {"ids_per_warp": ids_per_warp, "warps": warps, "layout_on_device": layout_on_device, "order": order}
    assert_answers(table, ids, out, lookup(emulator, table, ids, out, **options))


@pytest.mark.parametrize("ids_per_warp", [4, 8, 16, 32])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 33, 100])
def test_any_number_of_ids_over_any_number_of_warps(emulator: ctypes.CDLL, count: int, ids_per_warp: int):
    table = small_table(IDS, 5, "float32")
    for warps in (1, 3):
        ids = questions(count, count)
        got = lookup(emulator, table, ids, ids_per_warp=ids_per_warp, warps=warps)
        assert_answers(table, ids, torch.float32, got)


@pytest.mark.parametrize("ids_per_warp", [4, 8, 16, 32])
def test_long_searches_end_at_the_right_row_or_at_an_empty_slot(emulator: ctypes.CDLL, ids_per_warp: int):
    stored = list(range(-200, 200))
    table = small_table(stored, 4, "float16", load=1.0, seed=3)
    assert int(table.layout[2]) > int(table.layout[1])  # the search runs past the last home bucket
    ids = torch.arange(-250, 250)
    got = lookup(emulator, table, ids, torch.float16, ids_per_warp=ids_per_warp)
    assert_answers(table, ids, torch.float16, got)


@pytest.mark.parametrize("ids_per_warp", [4, 8, 32])
@pytest.mark.parametrize("name", ["float32", "int4"])
def test_an_overlay_is_asked_first(emulator: ctypes.CDLL, name: str, ids_per_warp: int):
    rows = [10, len(IDS) - 10]
    for options in ({}, {"segment_rows": rows}, {"load": 1.0}):
        for gone in (MISSING[:2], []):
            table = small_table(IDS, 16, name, gone=gone, seed=7, **options)
            ids = questions(5, 100)
            for on_device in (False, True):
                got = lookup(emulator, table, ids, ids_per_warp=ids_per_warp, layout_on_device=on_device)
                assert_answers(table, ids, torch.float32, got)


@pytest.mark.parametrize("layout_on_device", [False, True])
def test_an_overlays_numbers_are_no_segment(emulator: ctypes.CDLL, layout_on_device: bool):
    table = small_table(IDS, 8, "int8", gone=[])
    slots = table.storage[: int(table.layout[2]) * 64].view(torch.int64).view(-1, 2)
    slots[slots[:, 1] != -1, 1] = 1 << 40  # where the overlay's numbers are
    _, found = lookup(emulator, table, torch.tensor(IDS), layout_on_device=layout_on_device)
    assert found.tolist() == [i % 3 != 0 for i in range(len(IDS))]


@pytest.mark.parametrize("segments", [-1, 4, 2**40])
def test_a_layout_with_too_many_segments_leads_nowhere(emulator: ctypes.CDLL, segments: int):
    """Of one on the device the host knows nothing. What rows it leads to is its own affair."""
    table = small_table([], 8, "float32", gone=[])
    table.layout[4] = segments
    _, found = lookup(emulator, table, torch.tensor(MISSING), layout_on_device=True)
    assert not found.any()


@pytest.mark.parametrize("ids_per_warp", [4, 32])
def test_an_empty_index_finds_nothing_not_even_id_zero(emulator: ctypes.CDLL, ids_per_warp: int):
    table = small_table([], 4, "int8")
    vectors, found = lookup(emulator, table, torch.tensor([0, -1, 7]), ids_per_warp=ids_per_warp)
    assert not vectors.any()
    assert not found.any()


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_several_segments(emulator: ctypes.CDLL, name: str):
    ids = questions(1, 60)
    for rows in ([10, 20, len(IDS) - 30], [0, len(IDS)], [10, len(IDS) - 10], [len(IDS), 0]):
        table = small_table(IDS, 16, name, segment_rows=rows)
        for layout_on_device in (False, True):
            got = lookup(emulator, table, ids, layout_on_device=layout_on_device)
            assert_answers(table, ids, torch.float32, got)


def test_a_location_outside_its_segment_is_no_row(emulator: ctypes.CDLL):
    table = small_table(IDS, 8, "int8", segment_rows=[40, len(IDS) - 40])
    layout = table.layout.clone()
    layout[8 + 3] = 30  # rows of segment 0
    layout[4] = 1
    short = SmallTable(table.ids, table.vectors, table.storage, table.cold, layout[:12], 8, table.dtype)
    ids = torch.tensor(IDS)
    vectors, found = lookup(emulator, short, ids)
    assert found.tolist() == [True] * 30 + [False] * (len(IDS) - 30)
    assert torch.equal(vectors[:30], table.vectors[:30])
    assert not vectors[30:].any()


def test_addresses_beyond_two_to_the_31(emulator: ctypes.CDLL):
    emulator.emulate_row_offset.restype = ctypes.c_int64
    for stride in (0, 520):
        layout = torch.tensor([0, 1, 1, 0, 1, stride, 0, 0, 2**35, -1, -1, 2**33])
        for row in (0, 2**31 - 1, 2**31, 2**32 + 5, 2**33 - 1):
            offset = emulator.emulate_row_offset(
                ctypes.c_void_p(layout.data_ptr()), ctypes.c_int64(row), ctypes.c_int64(512)
            )
            assert offset == 2**35 + (stride or 512) * row
    none = emulator.emulate_row_offset(ctypes.c_void_p(layout.data_ptr()), ctypes.c_int64(2**33), ctypes.c_int64(512))
    assert none == -1


def test_the_plan_covers_all_steps_and_stays_within_the_device(emulator: ctypes.CDLL):
    def plan(count: int, processors: int) -> list[int]:
        made = torch.zeros(3, dtype=torch.int64)
        emulator.emulate_plan(ctypes.c_int64(count), processors, ctypes.c_void_p(made.data_ptr()))
        return made.tolist()

    for processors in (1, 132):
        for count in (1, 1000, 3168, 3169, 10_000, 50_688, 50_689, 10**6, 2**33):
            ids, threads, blocks = plan(count, processors)
            steps, warps = -(-count // ids), blocks * threads // 32
            assert ids in (4, 8, 16, 32)
            assert warps <= 24 * processors
            assert warps >= min(steps, 24 * processors)
            assert ids == 32 or warps >= steps  # few ids a warp, so that one step is all
    assert plan(1000, 132) == [4, 32, 250]  # all 132 processors have some
    assert plan(10_000, 132) == [4, 128, 625]
    assert plan(20_000, 132) == [8, 128, 625]
    assert plan(10**6, 132) == [32, 128, 792]
    for steps in (1, 5, 4 * 6 * 132 + 1):
        assert emulator.emulate_blocks(ctypes.c_int64(steps), 132) == min(-(-steps // 4), 6 * 132)
