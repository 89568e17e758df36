"""The CPU's ops against plain PyTorch (reference.py) and against what was stored, and their registrations."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES, decode, encode
from embedding_store.native import ops, reference
from embedding_store.native.library import library
from tests.embedding_store.small_table import SmallTable, small_table

LEVELS = ["baseline", "avx2", "avx512"]
INT64 = st.integers(-(2**63), 2**63 - 1)
EXTREMES = [-(2**63), -(2**63) + 1, -(2**31) - 1, -1, 0, 1, 2**31, 2**32 + 7, 2**63 - 2, 2**63 - 1]
OUTS = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def same_bits(got: Tensor, expected: Tensor) -> bool:
    """Also the sign of zeros. One bit pattern is as good as another for NaN, but there are none."""
    kind = {4: torch.int32, 2: torch.int16}[got.itemsize]
    return got.dtype == expected.dtype and torch.equal(got.view(kind), expected.view(kind))


@pytest.fixture(params=range(3), ids=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each set of instructions that this processor has."""
    use = library().embedding_store_use_level
    if use(request.param) != request.param:
        pytest.skip(f"this processor has no {LEVELS[request.param]}")
    yield request.param
    use(len(LEVELS))


def asked(data: st.DataObject, table: SmallTable, others: Sequence[int]) -> Tensor:
    known = st.sampled_from([*table.ids.tolist(), *others, 0])
    return torch.tensor(data.draw(st.lists(known, max_size=150)), dtype=torch.int64)


@settings(max_examples=200, deadline=None)
@given(
    stored=st.lists(INT64 | st.sampled_from(EXTREMES), unique=True, max_size=80),
    others=st.lists(INT64, max_size=8),
    dim=st.integers(1, 70) | st.just(128),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    load=st.sampled_from([0.3, 0.6, 1.0]),
    in_row=st.booleans(),
    overlaid=st.booleans(),
    data=st.data(),
)
def test_lookup_gives_the_bits_of_the_reference(stored, others, dim, name, out, load, in_row, overlaid, data):
    cut = data.draw(st.integers(0, len(stored)))
    options = {"in_row": in_row, "load": load, "seed": data.draw(st.integers(0, 7))}
    gone = sorted(set(others) - set(stored)) if overlaid else None
    table = small_table(stored, dim, name, segment_rows=[cut, len(stored) - cut], gone=gone, **options)
    ids = asked(data, table, others)
    arguments = (ids, table.storage, table.layout, dim, name, out)
    vectors, found = ops.lookup(*arguments)
    expected, expected_found = reference.lookup(*arguments)
    assert torch.equal(found, expected_found)
    assert same_bits(vectors, expected)
    answer, answer_found = table.answer(ids, out)  # the reference itself
    assert torch.equal(found, answer_found)
    assert same_bits(expected, answer)
    for module in (ops, reference):
        locations = module.locate(ids, table.storage, table.layout)
        rows = {id: row if row < cut else 1 << 40 | (row - cut) for row, id in enumerate(stored)}
        assert locations.tolist() == [rows.get(id, -1) for id in ids.tolist()]


@settings(max_examples=120, deadline=None)
@given(
    stored=st.lists(INT64, unique=True, max_size=40),
    others=st.lists(INT64, max_size=8),
    dim=st.integers(1, 40),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    mode=st.sampled_from(["sum", "mean"]),
    weighted=st.booleans(),
    overlaid=st.booleans(),
    data=st.data(),
)
def test_pooled_values_and_gradients_are_those_of_the_reference(
    stored, others, dim, name, out, mode, weighted, overlaid, data
):
    table = small_table(stored, dim, name, gone=sorted(set(others) - set(stored)) if overlaid else None)
    ids = asked(data, table, others)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    offsets = torch.tensor([0, *cuts, len(ids)])
    drawn = torch.randn(len(ids), generator=torch.Generator().manual_seed(1)) if weighted else None
    results = []
    for module in (ops, reference):
        weights = None if drawn is None else drawn.clone().requires_grad_()
        pooled, found = module.lookup_pooled(ids, offsets, weights, table.storage, table.layout, dim, name, mode, out)
        if weights is not None:
            (pooled * torch.arange(1, dim + 1)).sum().backward()
        results.append((pooled.detach(), found, None if weights is None else weights.grad))
    (pooled, found, gradient), (expected, expected_found, expected_gradient) = results
    assert torch.equal(found, expected_found)
    assert pooled.dtype == out
    torch.testing.assert_close(pooled, expected, rtol=TOLERANCE[out], atol=TOLERANCE[out])
    if weighted:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-3)
    answer, answer_found = table.pooled_answer(ids, offsets, drawn, mode)
    assert torch.equal(found, answer_found)
    torch.testing.assert_close(expected.double(), answer, rtol=TOLERANCE[out], atol=TOLERANCE[out])


@settings(max_examples=60, deadline=None)
@given(
    stored=st.lists(INT64, unique=True, max_size=40),
    name=st.sampled_from(list(DTYPES)),
    mode=st.sampled_from(["sum", "mean"]),
    weighted=st.booleans(),
    index_cold=st.booleans(),
    data=st.data(),
)
def test_tiers_are_pooled_as_one_table_and_counted(stored, name, mode, weighted, index_cold, data):
    cut = data.draw(st.integers(0, len(stored)))
    rows = [cut, len(stored) - cut]
    table = small_table(stored, 5, name, segment_rows=rows, tiered=True, index_cold=index_cold)
    ids = asked(data, table, [7, -7])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    offsets = torch.tensor([0, *cuts, len(ids)])
    drawn = torch.randn(len(ids), generator=torch.Generator().manual_seed(1)) if weighted else None
    gradients, counters = [], torch.zeros(4, dtype=torch.int64)
    reference.lookup_tiered(ids, table.storage, table.cold, table.layout, 5, name, torch.float32, counters)
    for module in (ops, reference):
        weights = None if drawn is None else drawn.clone().requires_grad_()
        where = (table.storage, table.cold, table.layout, 5, name, mode)
        pooled, found, hits = module.lookup_pooled_tiered(ids, offsets, weights, *where)
        answer, answer_found = table.pooled_answer(ids, offsets, drawn, mode)
        assert torch.equal(found, answer_found)
        assert torch.equal(hits, counters)
        torch.testing.assert_close(pooled.detach().double(), answer, rtol=1e-5, atol=1e-5)
        if weights is not None:
            (pooled * torch.arange(1, 6)).sum().backward()
            gradients.append(weights.grad)
    if weighted:
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    stored=st.lists(INT64, unique=True, max_size=40),
    others=st.lists(INT64, max_size=8),
    name=st.sampled_from(list(DTYPES)),
    overlaid=st.booleans(),
    index_cold=st.booleans(),
    data=st.data(),
)
def test_tiered_lookup_reads_both_places_and_counts(stored, others, name, overlaid, index_cold, data):
    cut = data.draw(st.integers(0, len(stored)))
    gone = sorted(set(others) - set(stored)) if overlaid else None
    rows = [cut, len(stored) - cut]
    table = small_table(stored, 5, name, segment_rows=rows, tiered=True, index_cold=index_cold, gone=gone)
    ids = asked(data, table, others)
    results = []
    for module in (ops, reference):
        counters = torch.tensor([10, 20, 30, 40])
        vectors, found = module.lookup_tiered(
            ids, table.storage, table.cold, table.layout, 5, name, torch.float32, counters
        )
        results.append((vectors, found, counters))
    for (vectors, found, counters), (expected, expected_found) in itertools.product(results, [table.answer(ids)]):
        assert torch.equal(found, expected_found)
        assert same_bits(vectors, expected)
        hot = set(stored[:cut])
        hits = sum(id in hot for id in ids.tolist())
        missing = int((~found).sum())
        cold = len(ids) - hits - missing
        assert counters.tolist() == [10 + hits, 20 + cold, 30 + missing, 40 + cold]
        index = table.cold if index_cold else table.storage
        assert torch.equal(ops.locate(ids, index, table.layout), reference.locate(ids, index, table.layout))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("dim", [1, 15, 16, 17, 32, 47, 64, 128])
def test_every_set_of_instructions_gives_the_same(name: str, dim: int, level: int):
    table = small_table(range(50), dim, name)
    ids = torch.arange(60)
    for out in OUTS:
        vectors, _ = ops.lookup(ids, table.storage, table.layout, dim, name, out)
        assert same_bits(vectors, table.answer(ids, out)[0])
    weights = torch.linspace(-1, 1, 60)
    offsets = torch.tensor([0, 7, 7, 60])
    for mode in ("sum", "mean"):
        pooled, _ = ops.lookup_pooled(ids, offsets, weights, table.storage, table.layout, dim, name, mode)
        expected, _ = table.pooled_answer(ids, offsets, weights, mode)
        torch.testing.assert_close(pooled.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1, 1), (3, 4)])
def test_any_shape(shape: tuple[int, ...]):
    table = small_table([7, -7], 3, "float32")
    ids = torch.full(shape, -7)
    vectors, found = ops.lookup(ids, table.storage, table.layout, 3, "float32")
    assert (vectors.shape, found.shape) == ((*shape, 3), shape)
    assert bool(found.all())
    assert bool((vectors == table.vectors[1]).all())


def test_strided_ids_and_results_of_their_own():
    table = small_table([7, -7, 2**40], 3, "float32")
    vectors, found = ops.lookup(torch.tensor([[7, 0], [-7, 0]])[:, 0], table.storage, table.layout, 3, "float32")
    assert bool(found.all())
    vectors.fill_(99)
    again, _ = ops.lookup(torch.tensor([7]), table.storage, table.layout, 3, "float32")
    assert torch.equal(again[0], table.vectors[0])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("count", "dim"), [(40_000, 128), (3_000, 131)])
def test_many_ids_with_threads(name: str, count: int, dim: int, level: int):
    """Beyond the sizes at which output goes past the caches, asks for huge pages, and is shared between threads."""
    table = small_table(range(0, 4000, 2), dim, name)
    ids = torch.randint(-50, 4050, (count,), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for out in OUTS:
            vectors, found = ops.lookup(ids, table.storage, table.layout, dim, name, out)
            expected, expected_found = reference.lookup(ids, table.storage, table.layout, dim, name, out)
            assert torch.equal(found, expected_found)
            assert same_bits(vectors, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("out", OUTS)
def test_conversions_of_every_magnitude(name: str, out: torch.dtype, level: int):
    """Subnormal numbers, numbers that round up to the next power of two, and those that become infinite."""
    kind = DTYPES[name]
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    values = torch.cat([bits, bits + 0x7FFF, bits + 0x8000, bits + 0x8001, bits + 0x1000, bits + 0x0FFF])
    values = values.view(torch.float32)
    values = values[values.abs() <= kind.limit][: 96 * 1024].contiguous()
    dim = 64
    values = values[: len(values) // dim * dim].view(-1, dim)
    ids = torch.arange(len(values))
    table = small_table(ids.tolist(), dim, name)
    stored = encode(values, kind).vector
    start = int(table.layout[8])
    table.storage[start : start + stored.nbytes] = stored.view(torch.uint8).flatten()
    vectors, _ = ops.lookup(ids, table.storage, table.layout, dim, name, out)
    assert same_bits(vectors, decode(encode(values, kind), dim, kind).to(out))


def test_every_op_passes_opcheck():
    table = small_table([1, 2, 3], 5, "int8")
    ids, offsets = torch.tensor([1, 9, 3]), torch.tensor([0, 2, 3])
    arguments = (table.storage, table.layout, 5, "int8")
    checks = [
        (torch.ops.embedding_store.lookup, (ids, *arguments, torch.float16)),
        (torch.ops.embedding_store.lookup, (ids.view(1, 3), *arguments, torch.float32)),
        (torch.ops.embedding_store.lookup_pooled, (ids, offsets, None, *arguments, "mean", torch.float32)),
        (
            torch.ops.embedding_store.lookup_pooled,
            (ids, offsets, torch.rand(3, requires_grad=True), *arguments, "sum", torch.float32),
        ),
    ]
    tiered = small_table([1, 2, 3], 5, "int8", segment_rows=[1, 2], tiered=True)
    counters = torch.zeros(4, dtype=torch.int64)
    where = (tiered.storage, tiered.cold, tiered.layout, 5, "int8", torch.float32, counters)
    checks.append((torch.ops.embedding_store.lookup_tiered, (ids, *where)))
    for weights in (None, torch.rand(3, requires_grad=True)):
        arguments = (ids, offsets, weights, *where[:5], "mean", torch.float16)
        checks.append((torch.ops.embedding_store.lookup_pooled_tiered, arguments))
    checks.append((torch.ops.embedding_store.locate, (ids, table.storage, table.layout)))
    for op, inputs in checks:
        outcome = torch.library.opcheck(op.default, inputs)
        assert set(outcome.values()) == {"SUCCESS"}, (op, outcome)


@pytest.mark.parametrize(
    ("name", "dim", "row"), [("float32", 64, 2**31 + 3), ("int8", 16, 2**32 + 5), ("int4", 3, 2**33)]
)
def test_rows_beyond_32_bits(tmp_path: Path, name: str, dim: int, row: int):
    """A sparse file of up to 550 GB, in which the last row is all that was ever written."""
    small = small_table([77], dim, name, in_row=False)
    buckets = small.storage[: int(small.layout[2]) * 64].clone()
    slots = buckets.view(torch.int64).view(-1, 2)
    slots[slots[:, 1] == 0, 1] = row
    starts = [4096]
    for width in (DTYPES[name].width(dim) * DTYPES[name].torch_dtype.itemsize, 4, 4):
        starts.append((starts[-1] + (row + 1) * width + 4095) // 4096 * 4096)
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, starts[-1])
    storage = torch.from_file(str(path), shared=True, size=starts[-1], dtype=torch.uint8)
    storage[: len(buckets)] = buckets
    columns = [encode(small.vectors, DTYPES[name]).vector[0].view(torch.uint8)]
    if DTYPES[name].quantised:
        columns += [column.view(torch.uint8) for column in (torch.tensor([0.5]), torch.tensor([-1.0]))]
    for start, column in zip(starts, columns, strict=False):
        at = start + row * len(column)
        storage[at : at + len(column)] = column
    layout = small.layout.clone()
    layout[8:] = torch.tensor([*starts[:3], row + 1] if DTYPES[name].quantised else [starts[0], -1, -1, row + 1])
    ids = torch.tensor([77, 78])
    vectors, found = ops.lookup(ids, storage, layout, dim, name)
    assert found.tolist() == [True, False]
    assert bool((vectors[0] != 0).any())
    assert same_bits(vectors, reference.lookup(ids, storage, layout, dim, name)[0])
