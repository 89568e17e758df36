"""The kernels of lookup_versions and locate without a GPU."""

from __future__ import annotations

import ctypes

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

IDS = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1, *range(100, 160)]
MISSING = [5, -7, 2**40, -(2**62)]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("emulate_versions.cpp", tmp_path_factory)


def versions(
    emulator: ctypes.CDLL, tables: list[SmallTable], ids: Tensor, choice: Tensor, out: torch.dtype, order: int = 1
) -> tuple[Tensor, Tensor]:
    vectors = torch.full((len(ids), tables[0].dim), torch.nan, dtype=out)
    found = torch.zeros(len(ids), dtype=torch.bool)
    array = [pointers(table) for table in tables]
    emulator.emulate_versions(
        (type(array[0]) * len(array))(*array),
        ctypes.c_int64(len(array)),
        address(ids),
        address(choice),
        ctypes.c_int64(len(ids)),
        tables[0].dim,
        list(DTYPES).index(tables[0].dtype.name),
        OUTS.index(out),
        2,  # blocks
        ctypes.c_uint64(order),
        address(vectors),
        address(found),
    )
    return vectors, found


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(st.integers(0, len(IDS)), min_size=1, max_size=9),
    count=st.integers(0, 150),
    dim=st.sampled_from([1, 6, 8, 40]),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    load=st.sampled_from([0.6, 1.0]),
    in_row=st.booleans(),
    order=ORDERS,
    seed=st.integers(0, 100),
)
def test_each_id_in_a_table_of_its_own(emulator: ctypes.CDLL, kept, count, dim, name, out, load, in_row, order, seed):
    options = {"load": load, "in_row": in_row}
    tables = [  # some with an overlay, some with a second segment, some empty
        small_table(
            IDS[:rows],
            dim,
            name,
            seed=number % 8,
            gone=MISSING[:2] if number % 3 == 1 else None,
            segment_rows=[rows // 2, rows - rows // 2] if number % 2 else None,
            **options,
        )
        for number, rows in enumerate(kept)
    ]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(IDS + MISSING)[torch.randint(len(IDS) + len(MISSING), (count,), generator=generator)]
    choice = torch.randint(-1, len(tables), (count,), generator=generator)
    got = versions(emulator, tables, ids, choice, out, order)
    storages, layouts = [table.storage for table in tables], [table.layout for table in tables]
    expected = reference.lookup_versions(ids, choice, storages, layouts, dim, name, out)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_no_table_has_another_number(emulator: ctypes.CDLL):
    table = small_table(IDS, 8, "int8")
    choice = torch.tensor([0, -1, 1, -(2**63), 2**63 - 1, 2**32])
    vectors, found = versions(emulator, [table], torch.ones(6, dtype=torch.int64), choice, torch.float32)
    assert found.tolist() == [True, False, False, False, False, False]
    assert not vectors[1:].any()


@pytest.mark.parametrize("ids_per_warp", [4, 8, 16, 32])
def test_locations_are_those_of_the_reference(emulator: ctypes.CDLL, ids_per_warp: int):
    ids = torch.tensor([*IDS, *MISSING, *IDS[::-1]])
    for options in ({}, {"gone": MISSING[:2]}, {"gone": [], "load": 1.0}, {"segment_rows": [9, len(IDS) - 9]}):
        table = small_table(IDS, 4, "float32", seed=3, **options)
        locations = torch.full((len(ids),), -7, dtype=torch.int64)
        emulator.emulate_locate(
            ctypes.byref(pointers(table)),
            address(ids),
            ctypes.c_int64(len(ids)),
            ids_per_warp,
            2,
            ctypes.c_uint64(1),
            address(locations),
        )
        assert torch.equal(locations, reference.locate(ids, table.storage, table.layout))
