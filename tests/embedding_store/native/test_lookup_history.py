"""The op behind histories against plain PyTorch (reference.py), its registration, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES
from embedding_store.native import ops, reference
from tests.embedding_store.small_table import SmallTable, small_table

OUTS = [torch.float32, torch.float16, torch.bfloat16]


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def tables_of(dtype: str, dim: int, counts: list[int]) -> list[SmallTable]:
    """Tables that share some ids; segments and layouts differ."""
    return [
        small_table(
            [7 * i + number for i in range(rows)],
            dim,
            dtype,
            segment_rows=[rows // 2, rows - rows // 2],
            in_row=number % 2 == 0,
            seed=number % 3,
            gone=[3] if number == 2 else None,
        )
        for number, rows in enumerate(counts)
    ]


def inputs_of(tables: list[SmallTable], numbers: list[int], shape: tuple[int, ...], seed: int) -> dict[str, object]:
    """Random ids and times, each time later than what it sees."""
    generator = torch.Generator().manual_seed(seed)
    as_of = torch.arange(len(numbers)) * 10 - 5
    newest = torch.randint(-1, len(numbers), shape, generator=generator)
    return {
        "ids": torch.randint(-5, 300, shape, generator=generator),
        "timestamps": newest * 10 + torch.randint(0, 9, shape, generator=generator),
        "newest": newest,
        "as_of": as_of,
        "numbers": ints(numbers),
        "storages": [table.storage for table in tables],
        "layouts": [table.layout for table in tables],
        "dim": tables[0].dim,
        "dtype": tables[0].dtype.name,
    }


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)),
    dim=st.sampled_from([1, 5, 16, 33]),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    shape=st.sampled_from([(), (0,), (1,), (2, 0), (2, 5), (150,)]),
    k=st.sampled_from([1, 2, 3, 8, 40]),
    out=st.sampled_from(OUTS),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_history_gives_what_the_reference_gives(dtype, dim, counts, shape, k, out, seed, data):
    tables = tables_of(dtype, dim, counts)
    numbers = data.draw(st.lists(st.integers(-1, len(tables) - 1), max_size=9))  # a table may be of several versions
    inputs = inputs_of(tables, numbers, shape, seed)
    vectors, mask, ages = ops.lookup_history(**inputs, k=k, out=out)
    expected_vectors, expected_mask, expected_ages = reference.lookup_history(**inputs, k=k, out=out)
    assert (vectors.dtype, vectors.shape) == (out, (*shape, k, dim))
    assert torch.equal(vectors, expected_vectors)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(ages, expected_ages)
    for place in range(k):
        version = inputs["newest"] - place
        for number, table in enumerate(tables):
            here = (version >= 0) & (ints([*numbers, -1])[version.clamp(min=-1)] == number)
            assert torch.equal(vectors[..., place, :][here], table.answer(inputs["ids"][here], out)[0])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_history_over_many_threads_and_past_the_caches(dtype: str):
    """Enough ids for several threads and for several parts of a version, and vectors enough to be streamed."""
    tables = tables_of(dtype, 16, [3000, 2000, 2500])
    inputs = inputs_of(tables, [0, 1, 2, 0, -1, 1], (30_000,), 0)
    inputs["ids"] = torch.randint(0, 21_000, (30_000,), generator=torch.Generator().manual_seed(1))
    expected = reference.lookup_history(**inputs, k=4)
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            for got, wanted in zip(ops.lookup_history(**inputs, k=4), expected, strict=True):
                assert torch.equal(got, wanted)
    finally:
        torch.set_num_threads(threads)


def test_a_place_of_a_version_is_what_the_version_alone_gives():
    """As lookup_versions, place by place."""
    tables = tables_of("bfloat16", 5, [300, 200, 250])
    inputs = inputs_of(tables, [2, -1, 0, 1], (4000,), 1)
    vectors, mask, _ = ops.lookup_history(**inputs, k=6)
    same = {name: inputs[name] for name in ("ids", "storages", "layouts", "dim", "dtype")}
    for place in range(6):
        choice = ints([2, -1, 0, 1, *[-1] * 6])[inputs["newest"] - place]
        alone, found = ops.lookup_versions(**same, choice=choice)
        assert torch.equal(vectors[:, place], alone)
        assert torch.equal(mask[:, place], found)


def test_an_age_is_at_most_the_largest_number():
    inputs = inputs_of(tables_of("float32", 4, [3]), [0, 0], (1,), 0)
    inputs |= {"ids": ints([7]), "newest": ints([1]), "as_of": ints([-5, 5]), "timestamps": ints([2**63 - 1])}
    assert ops.lookup_history(**inputs, k=2)[2].tolist() == [[2**63 - 6, 2**63 - 1]]
    assert reference.lookup_history(**inputs, k=2)[2].tolist() == [[2**63 - 6, 2**63 - 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k is 0; use 1 \.\. 4096"),
        ({"k": 4097}, r"k is 4097; use 1 \.\. 4096"),
        ({"ids": torch.zeros(3)}, "ids are not int64"),
        ({"timestamps": torch.zeros(3)}, "timestamps is not int64, one for each id"),
        ({"timestamps": ints([0])}, "timestamps is not int64, one for each id"),
        ({"newest": ints([0])}, "newest is not int64, one for each id"),
        ({"newest": ints([0, 1, 2])}, "newest is 2; use -1 or the number of one of 2 versions"),
        ({"newest": ints([0, -2, 1])}, "newest is -2; use -1"),
        ({"as_of": torch.zeros(2)}, "as_of is not int64, one for each version"),
        ({"numbers": ints([0])}, "numbers is not int64, one for each version"),
        ({"numbers": ints([0, 2])}, "numbers is 2; use -1 or the number of one of 2 tables"),
        ({"numbers": ints([-2, 0])}, "numbers is -2; use -1"),
        ({"storages": [], "layouts": []}, "storages and layouts are not one or more"),
        ({"layouts": []}, "storages and layouts are not one or more"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"dim": 0}, "dim is 0"),
    ],
)
def test_history_refuses(change: dict[str, object], message: str):
    inputs = inputs_of(tables_of("float32", 4, [3, 5]), [0, 1], (3,), 0)
    with pytest.raises((RuntimeError, ValueError), match=message):  # torch versions differ
        ops.lookup_history(**{**inputs, "k": 2, **change})


def test_opcheck_and_compile_of_history():
    inputs = inputs_of(tables_of("float16", 8, [3, 5]), [0, -1, 1], (2, 3), 0)
    arguments = (
        *(inputs[name] for name in ("ids", "timestamps", "newest", "as_of", "numbers", "storages", "layouts")),
        *(4, 8, "float16", torch.float32),
    )
    torch.library.opcheck(torch.ops.embedding_store.lookup_history.default, arguments)
    compiled = torch.compile(ops.lookup_history, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(*arguments), ops.lookup_history(*arguments), strict=True):
        assert torch.equal(got, expected)
