"""The kernel of lookup_history without a GPU."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES
from embedding_store.native import ops, reference
from tests.embedding_store.native.emulation import COMPILER, ORDERS, OUTS, address, compiled, pointers
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

IDS = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1, *range(100, 130)]
MISSING = [5, -7, 2**40, -(2**62)]
LEAST, MOST = -(2**63), 2**63 - 1


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("emulate_versions.cpp", tmp_path_factory)


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def history(
    emulator: ctypes.CDLL, tables: list[SmallTable], inputs: dict[str, Tensor], k: int, out: torch.dtype, order: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel writes over results that hold something else."""
    count, dim = len(inputs["ids"]), tables[0].dim
    vectors = torch.full((count, k, dim), torch.nan, dtype=out)
    mask, ages = torch.ones(count, k, dtype=torch.bool), torch.full((count, k), -7)
    array = [pointers(table) for table in tables]
    emulator.emulate_history(
        (type(array[0]) * len(array))(*array),
        ctypes.c_int64(len(array)),
        *(address(inputs[name]) for name in ("ids", "timestamps", "newest")),
        ctypes.c_int64(count),
        *(address(inputs[name]) for name in ("as_of", "numbers")),
        ctypes.c_int64(len(inputs["as_of"])),
        k,
        dim,
        list(DTYPES).index(tables[0].dtype.name),
        OUTS.index(out),
        2,  # blocks
        ctypes.c_uint64(order),
        *map(address, (vectors, mask, ages)),
    )
    return vectors, mask, ages


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(st.integers(0, len(IDS)), min_size=1, max_size=5),
    count=st.integers(0, 60),
    k=st.sampled_from([1, 2, 3, 7, 32, 40]),
    dim=st.sampled_from([1, 6, 8, 40]),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    in_row=st.booleans(),
    order=ORDERS,
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_each_id_in_its_versions(emulator: ctypes.CDLL, kept, count, k, dim, name, out, in_row, order, seed, data):
    tables = [  # some with an overlay, some with a second segment, some empty
        small_table(
            IDS[:rows],
            dim,
            name,
            seed=number % 8,
            in_row=in_row,
            gone=MISSING[:2] if number % 3 == 1 else None,
            segment_rows=[rows // 2, rows - rows // 2] if number % 2 else None,
        )
        for number, rows in enumerate(kept)
    ]
    numbers = data.draw(st.lists(st.integers(-1, len(tables) - 1), max_size=9))  # a table may be of several versions
    generator = torch.Generator().manual_seed(seed)
    newest = torch.randint(-1, len(numbers), (count,), generator=generator)
    inputs = {
        "ids": ints(IDS + MISSING)[torch.randint(len(IDS) + len(MISSING), (count,), generator=generator)],
        "timestamps": newest * 10 + torch.randint(0, 9, (count,), generator=generator),
        "newest": newest,
        "as_of": torch.arange(len(numbers)) * 10 - 5,
        "numbers": ints(numbers),
    }
    got = history(emulator, tables, inputs, k, out, order)
    storages, layouts = [table.storage for table in tables], [table.layout for table in tables]
    arguments = (*inputs.values(), storages, layouts, k, dim, name, out)
    for one, expected, on_cpu in zip(
        got, reference.lookup_history(*arguments), ops.lookup_history(*arguments), strict=True
    ):
        assert torch.equal(one, expected)
        assert torch.equal(one, on_cpu)


@settings(max_examples=60, deadline=None)
@given(
    time=st.one_of(st.sampled_from([LEAST, LEAST + 1, -1, 0, 1, MOST - 1, MOST]), st.integers(LEAST, MOST)),
    since=st.lists(st.integers(LEAST, MOST), min_size=1, max_size=3).map(sorted),
)
def test_an_age_is_at_most_the_largest_number(emulator: ctypes.CDLL, time: int, since: list[int]):
    table = small_table([7], 4, "float32")
    inputs = {name: ints([value]) for name, value in (("ids", 7), ("timestamps", time), ("newest", len(since) - 1))}
    inputs |= {"as_of": ints(since), "numbers": ints([0] * len(since))}
    _, mask, ages = history(emulator, [table], inputs, len(since), torch.float32)
    assert mask.all()
    on_cpu = ops.lookup_history(*inputs.values(), [table.storage], [table.layout], len(since), 4, "float32")[2]
    assert torch.equal(ages, on_cpu)
    for age, start in zip(ages[0].tolist(), reversed(since), strict=True):
        if time >= start:
            assert age == min(time - start, MOST)


def test_no_version_and_no_table_have_another_number(emulator: ctypes.CDLL):
    table = small_table(IDS, 8, "int8")
    newest = ints([0, 1, 2, 3, 4, -1, LEAST, MOST, 2**32])
    inputs = {"ids": torch.ones(9, dtype=torch.int64), "timestamps": torch.full((9,), 50), "newest": newest}
    inputs |= {"as_of": ints([0, 10, 20, 30]), "numbers": ints([0, 1, 0, 2**32])}
    vectors, mask, ages = history(emulator, [table], inputs, 2, torch.float32)
    assert mask[:4].tolist() == [[True, False], [False, True], [True, False], [False, True]]
    assert ages[:4].tolist() == [[50, 0], [0, 50], [30, 0], [0, 30]]
    assert not mask[4:].any()
    assert not ages[4:].any()
    assert not vectors[~mask].any()
    assert torch.equal(vectors[mask], table.answer(torch.ones(4, dtype=torch.int64))[0])


def test_an_id_that_a_version_has_not_leaves_its_place_empty(emulator: ctypes.CDLL):
    """And the largest k: places without a version cost no read of a table."""
    tables = [small_table([1], 3, "float16"), small_table([2], 3, "float16")]
    inputs = {"ids": ints([1, 2]), "timestamps": ints([7, 7]), "newest": ints([1, 1])}
    inputs |= {"as_of": ints([0, 5]), "numbers": ints([0, 1])}
    vectors, mask, ages = history(emulator, tables, inputs, 4096, torch.float32)
    assert mask.nonzero().tolist() == [[0, 1], [1, 0]]
    assert (int(ages[0, 1]), int(ages[1, 0]), int(ages.sum())) == (7, 2, 9)
    assert torch.equal(vectors[0, 1], tables[0].vectors[0])
    assert torch.equal(vectors[1, 0], tables[1].vectors[0])
    assert not vectors[~mask].any()
