"""The kernels of pooled lookups without a GPU: bags of every length, divided among few and many warps."""

from __future__ import annotations

import ctypes
import itertools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES
from embedding_store.native import reference
from tests.embedding_store.native.emulation import COMPILER, ORDERS, OUTS, address, compiled, pointers
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

EXTREMES = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1]
MISSING = [5, -7, 2**40, -(2**62)]
IDS = EXTREMES + [1000 + 37 * i for i in range(70)]
LENGTHS = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 20, 31, 32, 33, 63, 64, 65, 100, 300]), max_size=50)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("emulate_bags.cpp", tmp_path_factory)


class Staging(NamedTuple):
    """How cold rows are brought to the device before they are pooled."""

    batch: int = 0
    """Ids at a time; 0: no rows are."""
    places: int = 1000
    ids_per_warp: int = 32
    warps: int = 2


class Pooled:
    """What a pooled lookup gave."""

    def __init__(
        self,
        emulator: ctypes.CDLL,
        table: SmallTable,
        ids: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        mode: str = "sum",
        out: torch.dtype = torch.float32,
        processors: int = 1,
        staging: Staging | None = None,
        tiered: bool = False,
        order: int = 1,
    ) -> None:
        bags = len(offsets) - 1
        self.pooled = torch.full((bags, table.dim), 7.0, dtype=out)  # what is not written is seen
        self.found = torch.full((bags,), 7, dtype=torch.int64)
        # Asked for of tiered tables, but answered by any of one segment.
        asked = len(table.cold) or table.layout[4] == 1 or tiered
        self.hits = torch.full((4,), 7, dtype=torch.int64) if asked else None
        self.cold_bytes = torch.zeros(2, dtype=torch.int64)
        """Read from the cold memory, to bring rows to the device and to pool them."""
        emulator.emulate_pooled.restype = ctypes.c_int64
        self.cut = emulator.emulate_pooled(
            ctypes.byref(pointers(table)),
            address(ids),
            ctypes.c_int64(len(ids)),
            address(offsets),
            ctypes.c_int64(bags),
            address(weights),
            table.dim,
            list(DTYPES).index(table.dtype.name),
            int(mode == "mean"),
            OUTS.index(out),
            processors,
            ctypes.c_uint64(order),
            (ctypes.c_int64 * 4)(*(staging or Staging())),
            *map(address, (self.pooled, self.found, self.hits, self.cold_bytes)),
        )
        """How many bags several warps shared."""


def questions(seed: int, count: int) -> Tensor:
    """Ids that are there, some of them twice, and some that are not."""
    choice = torch.randint(len(IDS) + len(MISSING), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(IDS + MISSING)[choice]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def assert_pooled(
    got: Pooled, table: SmallTable, ids: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum"
) -> None:
    expected, expected_found = table.pooled_answer(ids, offsets, weights, mode)
    assert torch.equal(got.found, expected_found)
    # A sum's error is measured by what is summed: weights of both signs leave little of it.
    torch.testing.assert_close(got.pooled.to(torch.float64), expected, rtol=1e-5, atol=3e-5)
    if got.hits is None:
        return
    *_, hits = reference.lookup_pooled_tiered(
        ids, offsets, weights, table.storage, table.cold if len(table.cold) else table.storage, table.layout,
        table.dim, table.dtype.name, mode,
    )  # fmt: skip
    assert torch.equal(got.hits, hits)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("name", DTYPES)
def test_bags_of_every_width_are_pooled(emulator: ctypes.CDLL, name: str, mode: str):
    lengths = [0, 1, 3, 40, 0, 71, 5, 1, 1, 1, 150]
    ids, offsets = questions(2, sum(lengths)), offsets_of(lengths)
    weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(3))
    for dim in (1, 6, 8, 16, 33, 80, 128, 132, 264):
        table = small_table(IDS, dim, name)
        given_weights = None if dim % 4 else weights
        got = Pooled(emulator, table, ids, offsets, given_weights, mode)
        assert_pooled(got, table, ids, offsets, given_weights, mode)
        assert got.cut > 0


@settings(max_examples=25, deadline=None)
@given(
    lengths=LENGTHS,
    name=st.sampled_from(list(DTYPES)),
    dim=st.sampled_from([1, 4, 7, 8, 40, 64, 128]),
    mode=st.sampled_from(["sum", "mean"]),
    weighted=st.booleans(),
    tiered=st.booleans(),
    overlaid=st.booleans(),
    processors=st.sampled_from([1, 2, 132]),
    order=ORDERS,
    seed=st.integers(0, 100),
)
def test_bags_of_every_length_over_any_number_of_warps(
    emulator: ctypes.CDLL, lengths, name, dim, mode, weighted, tiered, overlaid, processors, order, seed
):
    rows = [30, len(IDS) - 30]
    gone = MISSING[:2] if overlaid else None
    table = small_table(IDS, dim, name, segment_rows=rows, tiered=tiered, gone=gone, seed=seed % 8)
    ids, offsets = questions(seed, sum(lengths)), offsets_of(lengths)
    weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(seed)) if weighted else None
    if not lengths:
        return  # no bags: the op gives an empty answer without a kernel
    got = Pooled(emulator, table, ids, offsets, weights, mode, processors=processors, order=order)
    assert_pooled(got, table, ids, offsets, weights, mode)


@pytest.mark.parametrize("dim", [4, 16, 128])
def test_a_huge_bag_among_many_of_one(emulator: ctypes.CDLL, dim: int):
    table = small_table(IDS, dim, "float16")
    for lengths in ([1] * 90 + [1500] + [1] * 90, [1500] + [0] * 300, [0] * 70 + [1500], [700, 800]):
        ids, offsets = questions(len(lengths), sum(lengths)), offsets_of(lengths)
        got = Pooled(emulator, table, ids, offsets, None, "mean", processors=4)
        assert_pooled(got, table, ids, offsets, None, "mean")
        assert got.cut == sum(length > 64 for length in lengths)
    again = Pooled(emulator, table, ids, offsets, None, "mean", processors=4)
    assert torch.equal(got.pooled, again.pooled)


def test_bags_of_one_are_lookups(emulator: ctypes.CDLL):
    for name in DTYPES:
        table = small_table(IDS, 24, name)
        ids = questions(3, 200)
        for out in OUTS:
            got = Pooled(emulator, table, ids, torch.arange(201), None, "mean", out)
            expected, found = table.answer(ids, out)
            if table.dtype.quantised:  # scale * value + offset is rounded once, in a lookup twice
                torch.testing.assert_close(got.pooled, expected, rtol=2 * torch.finfo(out).eps, atol=1e-6)
            else:
                assert torch.equal(got.pooled, expected)
            assert torch.equal(got.found, found.to(torch.int64))


def test_outputs_of_lower_precision_are_rounded_once(emulator: ctypes.CDLL):
    table = small_table(IDS, 12, "float32")
    ids, offsets = questions(4, 550), torch.tensor([0, 20, 50, 550])
    whole = Pooled(emulator, table, ids, offsets, None, "mean")
    assert whole.cut == 1
    for out in (torch.float16, torch.bfloat16):
        got = Pooled(emulator, table, ids, offsets, None, "mean", out)
        assert torch.equal(got.pooled, whole.pooled.to(out))


def test_a_missing_id_weighs_nothing(emulator: ctypes.CDLL):
    table = small_table(IDS, 4, "float32")
    ids, weights = torch.tensor([IDS[0], MISSING[0]]), torch.tensor([2.0, torch.inf])
    got = Pooled(emulator, table, ids, torch.tensor([0, 2]), weights, "mean")
    assert torch.equal(got.pooled, 2 * table.vectors[:1])
    assert got.found.tolist() == [1]


def test_what_is_in_one_bag_is_in_no_other(emulator: ctypes.CDLL):
    """Infinite and undefined weights stay where they are, whichever lanes and warps share the work."""
    for dim in (4, 16, 128):
        table = small_table(IDS, dim, "int8")
        lengths = [3, 1, 90, 2, 300, 1, 1, 30]
        ids, offsets = torch.tensor(IDS)[torch.arange(sum(lengths)) % len(IDS)], offsets_of(lengths)
        for bad in range(len(lengths)):
            weights = torch.ones(len(ids))
            weights[offsets[bad] : offsets[bad + 1]] = torch.inf
            got = Pooled(emulator, table, ids, offsets, weights, "sum")
            others = [bag for bag in range(len(lengths)) if bag != bad]
            assert got.pooled[others].isfinite().all(), f"dim {dim}, bag {bad}"
            assert not got.pooled[bad].isfinite().any()


@pytest.mark.parametrize(
    "offsets",
    [
        [1, 2, 3, 3],
        [-5, 2, 3, 3],
        [0, 2, 1, 3],
        [0, 1, 2, 2],
        [0, 1, 2, 4],
        [0, 2**62, 1, 3],
        [0, 2**40, 2**39, 3],
        [0, -(2**62), 3, 3],
        [3, 2, 1, 0],
    ],
)
def test_offsets_that_cannot_be_are_answered_with_nothing_but_nan(emulator: ctypes.CDLL, offsets: list[int]):
    table = small_table(IDS, 4, "float32", segment_rows=[30, len(IDS) - 30], tiered=True)
    for out in OUTS:
        got = Pooled(emulator, table, torch.tensor(IDS[:3]), torch.tensor(offsets), None, "sum", out)
        assert got.pooled.isnan().all()
        assert got.found.tolist() == [-1] * 3
        assert got.hits.tolist() == [0] * 4


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=2, max_size=60),
    wrong=st.lists(st.tuples(st.integers(0, 60), st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 900)), min_size=1),
    processors=st.sampled_from([1, 3, 132]),
    order=ORDERS,
)
def test_whatever_the_offsets_nothing_is_read_or_written_beyond(
    emulator: ctypes.CDLL, lengths, wrong, processors, order
):
    table = small_table(IDS, 8, "float16")
    ids, offsets = questions(1, sum(lengths)), offsets_of(lengths)
    for place, value in wrong:
        offsets[place % len(offsets)] = value
    good = offsets[0] == 0 and offsets[-1] == len(ids) and all(a <= b for a, b in itertools.pairwise(offsets))
    got = Pooled(emulator, table, ids, offsets, processors=processors, order=order)
    if good:
        assert_pooled(got, table, ids, offsets)
    else:
        assert got.pooled.isnan().all()
        assert (got.found == -1).all()


@pytest.mark.parametrize("gone", [None, MISSING[:2]])
def test_an_index_among_the_cold_rows(emulator: ctypes.CDLL, gone: list[int] | None):
    rows = [30, len(IDS) - 30]
    table = small_table(IDS, 8, "int8", segment_rows=rows, tiered=True, index_cold=True, gone=gone)
    ids, offsets = questions(1, 100), offsets_of([0, 3, 60, 37])
    assert_pooled(Pooled(emulator, table, ids, offsets), table, ids, offsets)


def test_the_plan_gives_every_warp_as_much(emulator: ctypes.CDLL):
    def plan(ids: int, bags: int, dim: int, name: str = "float32") -> list[int]:
        numbers = torch.zeros(5, dtype=torch.int64)
        emulator.emulate_pooled_plan(
            ctypes.c_int64(ids), ctypes.c_int64(bags), dim, list(DTYPES).index(name), 132, address(numbers)
        )
        return numbers.tolist()

    warps = 132 * 5 * 4
    for ids, bags in [(0, 1), (1, 1), (1000, 50), (10**6, 10**6), (10**6, 1), (0, 10**7), (2**33, 2**20)]:
        for dim in (1, 128, 130, 512, 2**20):
            items, units, ranges, longest, threads = plan(ids, bags, dim)
            assert (units - 1) * items < ids + bags <= units * items
            assert units * ranges <= max(warps, ranges) or items == 2**30 - 32
            assert units == 1 or items == 32 or (units + 1) * ranges > 0.9 * min(warps, (ids + bags) * ranges)
            assert items <= longest
            assert threads == (32 if units * ranges <= 132 * 5 else 128)
    assert plan(1000, 1000, 128)[0] == 32
    assert plan(10**6, 10**5, 128)[1] > 0.99 * warps
    assert [plan(10, 1, 512, name)[2] for name in DTYPES] == [4, 2, 2, 2, 1]


def test_units_of_the_largest_size_have_all_their_ids(emulator: ctypes.CDLL):
    """Whose numbers within a unit have 32 bits: of a bag that it does not cut, too."""
    emulator.emulate_unit_ids.restype = ctypes.c_int64
    for lengths in ([2**30 - 2, 2**30], [2**31 - 2], [2**30 - 100, 2**30 - 64, 2**30], [0, 2**32]):
        offsets = offsets_of(lengths)
        got = emulator.emulate_unit_ids(address(offsets), ctypes.c_int64(len(lengths)), 2**20, 1)
        assert got == sum(lengths), lengths
