"""What the CPU's ops refuse: arguments, layouts that lead outside, indexes that point past the rows."""

from __future__ import annotations

import pytest
import torch

from embedding_store.native import ops
from tests.embedding_store.small_table import small_table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([1], dtype=torch.int32)}, "ids are not int64"),
        ({"storage": torch.zeros(4)}, "storage is not a contiguous uint8 tensor"),
        ({"layout": torch.zeros(3, dtype=torch.int64)}, "layout is not a contiguous int64 tensor"),
        ({"dim": 0}, "dim is 0"),
        ({"dtype": "float64"}, "dtype is 'float64'; use one of"),
        ({"out": torch.int8}, "out is none of"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str):
    table = small_table([1], 3, "float32")
    arguments = {
        "ids": torch.tensor([1]),
        "storage": table.storage,
        "layout": table.layout,
        "dim": 3,
        "dtype": "float32",
        "out": torch.float32,
    }
    with pytest.raises(ValueError, match=message):
        ops.lookup(**{**arguments, **change})


@pytest.mark.parametrize(
    ("offsets", "mode", "message"),
    [
        ([0, 2], "sum", "offsets do not rise from 0 to the number of ids, 3"),
        ([1, 3], "sum", "offsets do not rise"),
        ([0, 3, 2, 3], "sum", "offsets do not rise"),
        ([0], "sum", "offsets do not rise"),
        ([], "sum", r"offsets are not int64 \[bags \+ 1\]"),
        ([0, 3], "max", "mode is 'max'; use sum or mean"),
    ],
)
def test_wrong_bags_are_refused(offsets: list[int], mode: str, message: str):
    table = small_table([1], 3, "float32")
    bags = torch.tensor(offsets, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        ops.lookup_pooled(torch.tensor([1, 2, 1]), bags, None, table.storage, table.layout, 3, "float32", mode)
    where = (table.storage, table.storage[:0], table.layout, 3, "float32", mode)
    with pytest.raises(ValueError, match=message):
        ops.lookup_pooled_tiered(torch.tensor([1, 2, 1]), bags, None, *where)


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [-5, 2**40, 1, 3], [9, 9, 9, 9]])
def test_the_gradient_of_what_a_gpu_refused_is_undefined_too(offsets: list[int]):
    """A GPU's answer to such offsets, which the CPU refuses: nothing may be read beyond the bags."""
    refused = torch.full((3,), -1)
    gradient = ops._gradient(torch.ones(3, 4), torch.ones(5, 4), torch.tensor(offsets), refused, "mean")
    assert gradient.isnan().all()


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 2**40),  # buckets beyond the end
        (0, -64),
        (0, 4),  # not at a multiple of 8
        (1, 0),  # no home bucket
        (1, 2**40),  # more home buckets than buckets
        (2, 2**62),
        (8, 2**40),  # vectors beyond the end
        (8, -4),
        (9, 2**62),  # scales beyond the end
        (11, 2**62),  # rows
        (11, -1),
    ],
)
def test_a_layout_that_leads_outside_is_refused(position: int, value: int):
    table = small_table([1, 2], 3, "int8")
    layout = table.layout.clone()
    layout[position] = value
    with pytest.raises(RuntimeError, match="InvalidIndexError: the index in memory: "):
        ops.lookup(torch.tensor([1]), table.storage, layout, 3, "int8")


def test_a_segment_is_looked_at_when_a_location_leads_there():
    """Not all of them at each call, of which a table may have thousands."""
    table = small_table(range(100), 3, "int8", segment_rows=[1] * 100)
    layout = table.layout.clone()
    layout[8 + 4 * 70] = 2**40
    ids = torch.tensor([id for id in range(100) if id != 70])
    vectors, found = ops.lookup(ids, table.storage, layout, 3, "int8")
    assert bool(found.all())
    assert torch.equal(vectors, table.answer(ids, torch.float32)[0])
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"InvalidIndexError: .*segment 70 lies outside"):
            ops.lookup(torch.tensor([1, 70]), table.storage, layout, 3, "int8")


@pytest.mark.parametrize("location", [1 << 40, 2, (1 << 40) - 1, (1 << 63) - 1, -2])
def test_an_index_that_points_past_its_rows_is_an_error(location: int):
    table = small_table([1, 2], 3, "float32")
    slots = table.storage[: int(table.layout[2]) * 64].view(torch.int64).view(-1, 2)
    slots[(slots[:, 0] == 2) & (slots[:, 1] != -1), 1] = location
    arguments = (table.storage, table.layout, 3, "float32")
    with pytest.raises(RuntimeError, match=r"InvalidIndexError.*leads from id 2 to segment \d+ row \d+"):
        ops.lookup(torch.tensor([1, 2]), *arguments)
    with pytest.raises(RuntimeError, match="leads from id 2"):
        ops.lookup_pooled(torch.tensor([2]), torch.tensor([0, 1]), None, *arguments)
    assert ops.lookup(torch.tensor([1, 3]), *arguments)[1].tolist() == [True, False]


def test_an_overlay_that_points_past_the_rows_is_an_error():
    table = small_table([1, 2, 3], 3, "float32", gone=[7])
    start, _, total, _ = table.layout[-4:].tolist()
    slots = table.storage[start : start + total * 64].view(torch.int64).view(-1, 2)
    slots[(slots[:, 0] == 2) & (slots[:, 1] != -1), 1] = 5
    arguments = (table.storage, table.layout, 3, "float32")
    with pytest.raises(RuntimeError, match=r"InvalidIndexError.*leads from id 2 to segment 0 row 5"):
        ops.lookup(torch.tensor([1, 2]), *arguments)
    assert ops.lookup(torch.tensor([1, 3, 7]), *arguments)[1].tolist() == [True, True, False]


@pytest.mark.parametrize(("position", "value"), [(-4, -64), (-4, 2**40), (-4, 1), (-3, 0), (-2, 2**40), (-3, 2**62)])
def test_an_overlay_outside_of_the_storage_is_refused(position: int, value: int):
    table = small_table([1, 2], 3, "int8", gone=[7])
    layout = table.layout.clone()
    layout[position] = value
    with pytest.raises(RuntimeError, match="InvalidIndexError: the index in memory: its buckets lie outside"):
        ops.lookup(torch.tensor([1]), table.storage, layout, 3, "int8")
    with pytest.raises(ValueError, match="room for fewer segments than it names"):
        ops.lookup(torch.tensor([1]), table.storage, table.layout[:-4], 3, "int8")


def test_a_full_index_ends_a_search():
    """No empty slot anywhere: a hostile file, or a load of one."""
    table = small_table(range(8), 3, "float32", load=1.0)
    layout = table.layout.clone()
    assert not ops.lookup(torch.arange(100, 200), table.storage, layout, 3, "float32")[1].any()
