"""Lookup: any int64 id, any shape, every dtype, one data file or many."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from embedding_store import ChecksumError, EmbeddingStore, InvalidArgumentError, InvalidIdsError, Series
from tests.embedding_store.helpers import publish

EXTREMES = [-(2**63), -(2**63) + 1, -(2**31) - 1, -1, 0, 1, 2**31, 2**32 + 7, 2**63 - 2, 2**63 - 1]


def test_shapes_duplicates_and_misses(series: Series):
    table = publish(series, 1, [7, -7, 2**40]).load()
    got, found = table.lookup(torch.tensor([[7, 8, 7], [2**40, -7, 0]]))
    assert got.shape == (2, 3, 3)
    assert found.tolist() == [[True, False, True], [True, True, False]]
    assert got[..., 0].tolist() == [[0, 0, 0], [2, 1, 0]]
    assert torch.equal(got[0, 1], torch.zeros(3))
    for shape in [(), (0,), (2, 0, 3), (1, 1, 1)]:
        got, found = table.lookup(torch.full(shape, -7, dtype=torch.int64))
        assert (got.shape, found.shape) == ((*shape, 3), shape)
        assert bool(found.all())
        assert bool((got == 1).all())
    strided = torch.tensor([[7, 0], [-7, 0], [2**40, 0]])[:, 0]
    assert table.lookup(strided)[1].all()


def test_a_fork_finds_no_mutex_of_torch_in_what_a_lookup_is_given(series: Series):
    """Torch keeps one with every view; held by another thread, it would stay held in a child for ever."""
    table = publish(series, 1, [1, 2]).load()
    assert not table.storage._is_view()
    assert not table.layout._is_view()


def test_results_share_no_memory_with_the_file(series: Series):
    table = publish(series, 1, [1, 2]).load()
    table.lookup(torch.tensor([2]))[0].fill_(99)
    table.ids().fill_(99)
    got, found = table.lookup(torch.tensor([1, 2]))
    assert got[:, 0].tolist() == [0, 1]
    assert found.tolist() == [True, True]


def test_an_empty_snapshot_finds_nothing(series: Series):
    with series.write(as_of=1, space="ctr-1"):
        pass
    snapshot = series.latest()
    assert (snapshot.rows, snapshot.statistics.min_id, snapshot.statistics.mean) == (0, None, (0.0, 0.0, 0.0))
    vectors, found = snapshot.load(verify=True).lookup(torch.tensor(EXTREMES))
    assert not found.any()
    assert not vectors.any()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([1.0]), r"ids are torch.float32"),
        ([1, 2], r"ids are list: give an int64 tensor, or a NumPy"),
        (np.array([1.0]), r"ids are float64: give integers"),
        (np.array(["a"]), r"ids are text: use lookup_keys"),
        (pd.Series([1, None]), r"ids have 1 nulls: leave them out"),
        (pd.Series(["a"]), r"ids are text: use lookup_keys"),
        (pl.Series(["a"]), r"ids are text: .* lookup\(hash_keys\(keys\)\)"),
        (pl.Series([1, None]), r"ids have 1 nulls"),
        (pa.array(["a"]).dictionary_encode(), r"ids are text"),
        (pa.array([1.5]), r"ids are float64: give integers"),
        (pa.array([[1]]), r"ids are list<item: int64>: give integers"),
        (torch.tensor([1], device="meta"), r"ids are on meta, the table is on cpu"),
    ],
)
def test_wrong_ids_are_refused(series: Series, ids, message: str):
    table = publish(series, 1, [1]).load()
    with pytest.raises(InvalidIdsError, match=message):
        table.lookup(ids)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda ids: torch.tensor(ids, dtype=torch.int32), torch.Tensor),
        (lambda ids: torch.tensor(ids, dtype=torch.int8), torch.Tensor),
        (lambda ids: np.array(ids, np.int32), np.ndarray),
        (lambda ids: np.array(ids).astype(">i8")[::1], np.ndarray),
        (lambda ids: np.array(ids, np.int64).view(np.uint64), np.ndarray),
        (lambda ids: pd.Series(ids, dtype="int32"), np.ndarray),
        (lambda ids: pd.Series(ids, dtype="Int64"), np.ndarray),
        (lambda ids: pd.Index(ids), np.ndarray),
        (lambda ids: pl.Series(ids, dtype=pl.Int32), np.ndarray),
        (lambda ids: pa.array(ids, pa.int32()), pa.Array),
        (lambda ids: pa.chunked_array([ids[:1], ids[1:]], pa.int64()), pa.Array),
    ],
)
def test_ids_of_other_kinds_are_answered_in_kind(series: Series, make: Callable[[list[int]], Any], kind: type):
    table, ids = publish(series, 1, [1, -7]).load(), [-7, 2, 1, 1]
    wanted, there = table.lookup(torch.tensor(ids))
    vectors, found = table.lookup(make(ids), torch.float16)
    assert isinstance(vectors, kind)
    assert isinstance(found, kind)
    plain = [x.tolist() if hasattr(x, "tolist") else x.to_pylist() for x in (vectors, found)]
    assert plain == [wanted.half().tolist(), there.tolist()]


def test_shapes_of_numpy_ids_stay_and_it_has_no_bfloat16(series: Series):
    table = publish(series, 1, [1, 2]).load()
    vectors, found = table.lookup(np.array([[1], [3]]))
    assert (vectors.shape, found.tolist()) == ((2, 1, table.dim), [[True], [False]])
    with pytest.raises(InvalidIdsError, match="have no bfloat16: ask for float32"):
        table.lookup(np.array([1]), torch.bfloat16)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_table_keeps_no_file_open_and_gives_its_memory_back(series: Series):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{folder}/")

    snapshot = publish(series, 1, [0])
    for id in range(1, 8):  # a delta brings a data file of its own
        snapshot = publish(series, 1, [id], torch.full((1, 3), float(id)), base=snapshot)
    folder = Path(series._storage.locate("data")).resolve()
    descriptors = len(os.listdir("/proc/self/fd"))
    table = snapshot.load()
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # fewer where those of other tests have gone meanwhile
    assert mapped() == 10  # with index and overlay
    assert table.lookup(torch.arange(8))[0][:, 0].tolist() == list(range(8))
    del table
    assert mapped() == 0


@pytest.mark.parametrize("out", [torch.float32, torch.float16, torch.bfloat16])
def test_the_type_of_the_output_is_the_callers_choice(series: Series, out: torch.dtype):
    table = publish(series, 1, [1, 2]).load()
    vectors, _ = table.lookup(torch.tensor([2, 9]), out)
    assert vectors.dtype == out
    assert vectors.tolist() == [[1.0] * 3, [0.0] * 3]
    pooled, found = table.lookup_pooled(torch.tensor([2, 2, 9]), torch.tensor([0, 3]), out_dtype=out)
    assert (pooled.dtype, pooled.tolist(), found.tolist()) == (out, [[2.0] * 3], [2])
    with pytest.raises(InvalidArgumentError, match=r"out_dtype is torch\.float64; use one of torch\.float32"):
        table.lookup(torch.tensor([1]), torch.float64)


def test_bags_are_pooled_over_the_ids_that_are_found(series: Series):
    table = publish(series, 1, [10, 11, 12, 13]).load()  # every vector holds its row number
    ids, offsets = torch.tensor([11, 99, 13, 99, 12]), torch.tensor([0, 3, 3, 4, 5])
    pooled, found = table.lookup_pooled(ids, offsets)
    assert pooled[:, 0].tolist() == [4.0, 0.0, 0.0, 2.0]
    assert found.tolist() == [2, 0, 0, 1]
    weights = torch.tensor([1.0, torch.inf, 0.5, 1.0, -2.0], requires_grad=True)
    pooled, found = table.lookup_pooled(ids, offsets, weights, mode="mean")
    assert pooled[:, 0].tolist() == [1.25, 0.0, 0.0, -4.0]
    pooled.sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [1.5, 0.0, 4.5, 0.0, 6.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": torch.tensor([[1]])}, InvalidIdsError, r"ids have shape \(1, 1\): give \[N\]"),
        ({"mode": "max"}, InvalidArgumentError, "mode is 'max'; use 'sum' or 'mean'"),
        (
            {"offsets": torch.tensor([0, 2])},
            InvalidArgumentError,
            r"offsets\[1\] is 2: offsets must rise from 0 to the number of ids, 1: say cat",
        ),
        ({"offsets": torch.tensor([0, 2, 1])}, InvalidArgumentError, r"offsets\[2\] is 1: offsets must rise"),
        ({"offsets": torch.tensor([-1, 1])}, InvalidArgumentError, r"offsets\[0\] is -1: offsets must rise"),
        ({"offsets": [0, 1]}, InvalidArgumentError, r"offsets are a list: give int64 \[bags \+ 1\]"),
        ({"offsets": torch.tensor([0.0, 1.0])}, InvalidArgumentError, r"offsets are torch\.float32 \(2,\)"),
        ({"weights": torch.ones(2)}, InvalidArgumentError, r"weights are torch\.float32 \(2,\): give float32 \(1,\)"),
        ({"weights": torch.ones(1).double()}, InvalidArgumentError, r"weights are torch\.float64"),
        ({"weights": [1.0]}, InvalidArgumentError, r"weights are a list: give float32 \(1,\)"),
        (
            {"weights": torch.ones(1, device="meta")},
            InvalidArgumentError,
            "weights are on meta, the ids on cpu: move one of them",
        ),
    ],
)
def test_wrong_bags_are_refused(series: Series, change: dict, error: type[Exception], message: str):
    table = publish(series, 1, [1]).load()
    arguments = {"ids": torch.tensor([1]), "offsets": torch.tensor([0, 1])}
    with pytest.raises(error, match=message):
        table.lookup_pooled(**{**arguments, **change})


def test_lookup_by_text(store: EmbeddingStore, series: Series):
    text = store.create("item_text", dim=2, ids="text")
    with text.write(as_of=1, space="ctr-1") as writer:
        writer.append(["Bär", "b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    vectors, found = text.latest().load().lookup_keys(["b", "c", "Bär"])
    assert found.tolist() == [True, False, True]
    assert vectors.tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]
    with pytest.raises(InvalidArgumentError, match=r"ids of series 'user_ctr' are int64, not text: use lookup"):
        publish(series, 1, [1]).load().lookup_keys(["b"])


def test_a_changed_byte_is_an_error_that_names_the_file(series: Series):
    snapshot = publish(series, 1, list(range(100)))
    file = snapshot.manifest.data[0]
    path = Path(series._storage.locate(file.path))
    data = bytearray(path.read_bytes())
    data[file.segments[0].vector + 7] ^= 1
    path.write_bytes(data)
    table = snapshot.load()
    for look in (
        lambda: table.lookup(torch.tensor([5])),
        lambda: table.lookup_pooled(torch.tensor([5]), torch.tensor([0, 1])),
    ):
        with pytest.raises(
            ChecksumError, match=r"vectors-00000\.arrow: bytes 0 \.\. \d+ are not those that were written"
        ):
            look()
    assert not table.lookup(torch.tensor([100]))[1].any()  # nothing of the changed file is needed
    with pytest.raises(ChecksumError):
        snapshot.load(verify=True)


def test_a_loaded_table_outlives_newer_versions_and_its_own_files(series: Series, tmp_path: Path):
    table = publish(series, 1, [1, 2, 3]).load()
    publish(series, 2, [1], torch.full((1, 3), 9.0))
    shutil.rmtree(tmp_path / "store")
    vectors, found = table.lookup(torch.tensor([3, 1]))
    assert found.all()
    assert vectors[:, 0].tolist() == [2, 0]
    assert table.manifest.version == 1
