"""Layouts on the host as the ops on CUDA check them: a wrong number is named, and what passes leads nowhere outside."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store.dtypes import DTYPES
from tests.embedding_store.native.emulation import COMPILER, IDS, MISSING, OUTS, compiled, questions, refusal
from tests.embedding_store.native.test_emulator_tiered import lookup
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

HUGE = [2**31, 2**40, 2**46, 2**59, 2**62, 2**63 - 1, -(2**63), -1]
SMALL = [0, 1, 2, 3, 4, 5, 8, 12, 16, 24, 56, 60, 63, 64, 72, 256]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compiled("emulate_tiered.cpp", tmp_path_factory)
    library.emulate_lookup_tiered.restype = library.emulate_claim_words.restype = ctypes.c_int64
    return library


def changed(table: SmallTable, changes: dict[int, int]) -> SmallTable:
    layout = table.layout.clone()
    for at, value in changes.items():
        layout[at] = value
    return replace(table, layout=layout)


@pytest.mark.parametrize("name", DTYPES)
def test_tables_as_they_are_made_pass(emulator: ctypes.CDLL, name: str):
    for dim in (1, 3, 8, 33, 128):
        for options in ({}, {"tiered": True}, {"tiered": True, "index_cold": True}, {"in_row": False}):
            for rows in ([30, len(IDS) - 30], [0, len(IDS)], [len(IDS), 0]):
                for gone in (None, MISSING[:2]):
                    table = small_table(IDS, dim, name, segment_rows=rows, gone=gone, **options)
                    assert not refusal(emulator, table)
    assert not refusal(emulator, small_table([], 4, name))
    nothing = small_table([], 4, name, segment_rows=[0, 0], tiered=True)
    assert not refusal(emulator, nothing, tiered=True)
    # Where no row is, no place is wrong: the device's part may be empty.
    assert not refusal(emulator, changed(nothing, {8: 2**40, 12: -8}), tiered=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: -64}, "layout[0] is -64: 23 buckets do not lie there in the"),
        ({0: 2**63 - 64}, "layout[0] is 9223372036854775744: 23 buckets do not lie there in the"),
        ({0: 8}, "at a multiple of 16; give the tensors and the layout of one table"),
        ({1: 0}, "layout[1] is 0 home buckets; use 1 or more"),
        ({1: 24}, "layout[2] is 23 buckets; use 24, the home buckets, or more, below 2^46"),
        ({2: 2**46}, "layout[2] is 70368744177664 buckets; use 23, the home buckets, or more"),
        ({2: 2**40}, "layout[0] is 0: 1099511627776 buckets do not lie there in the"),
        ({4: -1}, "layout[4] is -1 segments; use 0 .. 3"),
        ({4: 2**63 - 1}, "layout[4] is 9223372036854775807 segments; use 0 .. 3"),
        ({4: 1}, "layout has 20 values, not 8 and 4 for each of the 2 segments and overlays that it names"),
        ({6: 0}, "layout has 20 values, not 8 and 4 for each of the 2 segments and overlays that it names"),
        ({5: 12}, "layout[5] is 12 bytes from a row to the next one; use 0, or a multiple of 8"),
        ({5: 2**40}, "layout[8] is "),
        ({8: 2**40}, "layout[8] is 1099511627776: the values of 30 rows of segment 0 do not lie there in the"),
        ({11: 2**62}, ": the values of 4611686018427387904 rows of segment 0 do not lie there"),
        ({11: -1}, "layout[11] is -1 rows of segment 0; use 0 or more"),
        ({9: -1}, "layout[9] is -1: the scales of 30 rows of segment 0 do not lie there"),
        ({10: 2**62}, "layout[10] is 4611686018427387904: the offsets of 30 rows of segment 0 do not lie there"),
        ({9: 0}, "layout[9] is 0; with rows 16 bytes apart use layout[8] - 8"),
        ({10: 0}, "layout[10] is 0; with rows 16 bytes apart use layout[8] - 4"),
        ({12: 4}, "at a multiple of 8; give the tensors and the layout of one table"),
        ({15: 49}, "the values of 49 rows of segment 1 do not lie there in the 768 bytes of cold"),
        ({16: 2**40}, "layout[16] is 1099511627776: 22 buckets do not lie there in the"),
        ({17: 0}, "layout[17] is 0 home buckets; use 1 or more"),
        ({18: 1}, "layout[18] is 1 buckets; use 22, the home buckets, or more"),
    ],
)
def test_a_number_that_leads_outside_is_named(emulator: ctypes.CDLL, changes: dict[int, int], message: str):
    table = small_table(IDS, 5, "int8", segment_rows=[30, len(IDS) - 30], tiered=True, gone=MISSING[:2])
    assert not refusal(emulator, table)
    assert message in refusal(emulator, changed(table, changes))


def test_which_memory_is_meant_is_said(emulator: ctypes.CDLL):
    table = small_table(IDS, 8, "float16", segment_rows=[30, len(IDS) - 30], tiered=True, index_cold=True)
    beyond = changed(table, {0: 2**40})
    assert re.search(r"buckets do not lie there in the \d+ bytes of cold", refusal(emulator, beyond))
    message = "layout[7] is 1: the index lies in the cold part of a tiered table; give that too"
    assert refusal(emulator, table, tiered=False) == message
    without = replace(table, cold=table.cold[:0])
    assert "buckets do not lie there in the 0 bytes of cold" in refusal(emulator, without, tiered=True)
    # Cold rows are looked for in the storage; those of one value each would lie within the index that is there.
    for dim, said in ((1, ""), (64, "rows of segment 1 do not lie there in the")):
        tiers = small_table(range(3000), dim, "float32", segment_rows=[100, 2900], tiered=True)
        assert said in (refused := refusal(emulator, tiers, tiered=False))
        assert bool(said) == bool(refused)
    # What a search alone reads: rows may be anywhere.
    assert not refusal(emulator, changed(table, {8: -1, 15: -1}), rows=False)
    assert "home buckets" in refusal(emulator, changed(table, {1: 0}), rows=False)
    # Both segments in one tensor.
    whole = small_table(IDS, 8, "float16", segment_rows=[30, len(IDS) - 30])
    assert not refusal(emulator, whole)
    assert "bytes of storage" in refusal(emulator, changed(whole, {12: 2**40}))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(DTYPES)),
    dim=st.integers(1, 17) | st.just(32),
    out=st.sampled_from(OUTS),
    in_row=st.booleans(),
    overlaid=st.booleans(),
    index_cold=st.booleans(),
    changes=st.lists(
        st.tuples(st.integers(0, 19), st.sampled_from(SMALL + HUGE), st.booleans()), min_size=1, max_size=3
    ),
)
def test_what_passes_leads_nowhere_outside(
    emulator: ctypes.CDLL, name, dim, out, in_row, overlaid, index_cold, changes
):
    """The emulator ends the process at a read outside of the table's memory, or at an address that is not aligned."""
    options = {"in_row": in_row, "index_cold": index_cold, "gone": MISSING[:2] if overlaid else None}
    table = small_table(IDS, dim, name, segment_rows=[30, len(IDS) - 30], tiered=True, **options)
    numbers = table.layout.tolist()
    limits = (2**63 - 1, -(2**63))
    for at, value, relative in changes:
        at %= len(numbers)
        numbers[at] = max(min(numbers[at] + value, limits[0]), limits[1]) if relative else value
    table = replace(table, layout=torch.tensor(numbers))
    said = refusal(emulator, table)
    if said:
        assert re.match(r"layout(\[\d+\] is -?\d+| has \d+ values)", said)
    else:
        lookup(emulator, table, questions(1, 60), out)
