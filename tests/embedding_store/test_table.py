"""Lookup: any int64 id, any shape, every dtype, one data file or many."""

from __future__ import annotations

import itertools
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import EmbeddingStore, InvalidIdsError, Series
from embedding_store.dtypes import DTYPES, decode, encode
from embedding_store.reference import lookup

from .helpers import publish

INT64 = st.integers(-(2**63), 2**63 - 1)
EXTREMES = [-(2**63), -(2**63) + 1, -(2**31) - 1, -1, 0, 1, 2**31, 2**32 + 7, 2**63 - 2, 2**63 - 1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@settings(max_examples=150, deadline=None)
@given(
    stored=st.lists(INT64, unique=True, max_size=20),
    others=st.lists(INT64, max_size=8),
    files=st.integers(1, 4),
    name=st.sampled_from(list(DTYPES)),
    data=st.data(),
)
def test_reference_agrees_with_a_dict(stored, others, files, name, data):
    dtype, dim = DTYPES[name], 3
    vectors = torch.randn(len(stored), dim, generator=torch.Generator().manual_seed(len(stored)))
    encoded = encode(vectors, dtype)
    expected = dict(zip(stored, decode(encoded, dim, dtype), strict=True))
    cuts = [len(stored) * i // files for i in range(files + 1)]
    segments = [encoded.slice(a, b) for a, b in itertools.pairwise(cuts) if b > a]
    index_ids, index_rows = torch.tensor(stored, dtype=torch.int64).sort()
    asked = data.draw(st.lists(st.sampled_from(stored + others), max_size=30)) if stored + others else []
    got, found = lookup(torch.tensor(asked, dtype=torch.int64), index_ids, index_rows, segments, dim, dtype)
    assert found.tolist() == [id in expected for id in asked]
    assert got.shape == (len(asked), dim)
    for vector, id in zip(got, asked, strict=True):
        assert torch.equal(vector, expected.get(id, torch.zeros(dim)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("rows_per_file", [None, 3])
def test_stored_vectors_come_back(store: EmbeddingStore, name: str, rows_per_file: int | None, device: str):
    series = store.create(f"user_{name}", dim=5, dtype=name)
    vectors = torch.randn(len(EXTREMES), 5, generator=torch.Generator().manual_seed(1))
    snapshot = publish(series, 1, EXTREMES[::-1], vectors.flip(0), rows_per_file=rows_per_file)
    assert len(snapshot.manifest.data) == (1 if rows_per_file is None else 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about read-only memory
        table = snapshot.load(device, verify=True)
        got, found = table.lookup(torch.tensor(EXTREMES, device=device))
    assert table.device.type == got.device.type == found.device.type == device
    assert got.dtype == torch.float32
    assert bool(found.all())
    expected = decode(encode(vectors, DTYPES[name]), 5, DTYPES[name])
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0 if device == "cpu" else 1e-6)
    assert len(table) == len(EXTREMES)
    assert table.ids().tolist() == EXTREMES


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
        (torch.tensor([1], dtype=torch.int32), r"ids are torch.int32: give an int64 tensor"),
        (torch.tensor([1.0]), r"ids are torch.float32"),
        ([1, 2], r"ids are list"),
        (torch.tensor([1], device="meta"), r"ids are on meta, the table is on cpu"),
    ],
)
def test_wrong_ids_are_refused(series: Series, ids, message: str):
    table = publish(series, 1, [1]).load()
    with pytest.raises(InvalidIdsError, match=message):
        table.lookup(ids)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_table_keeps_no_file_open_and_gives_its_memory_back(series: Series):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{folder}/")

    snapshot = publish(series, 1, list(range(50)), rows_per_file=1)
    folder = Path(series._storage.locate("data")).resolve()
    descriptors = len(os.listdir("/proc/self/fd"))
    table = snapshot.load()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert mapped() == 51
    assert table.lookup(torch.arange(50))[0][:, 0].tolist() == list(range(50))
    del table
    assert mapped() == 0


def test_a_loaded_table_outlives_newer_versions_and_its_own_files(series: Series, tmp_path: Path):
    table = publish(series, 1, [1, 2, 3]).load()
    publish(series, 2, [1], torch.full((1, 3), 9.0))
    shutil.rmtree(tmp_path / "store")
    vectors, found = table.lookup(torch.tensor([3, 1]))
    assert found.all()
    assert vectors[:, 0].tolist() == [2, 0]
    assert table.snapshot.version == 1
