"""Vectors in and out: what is taken, what comes back, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore, InvalidArgumentError, InvalidIdsError, InvalidVectorsError
from embedding_store.cli import transfer
from embedding_store.cli.transfer import VectorFiles, export_parquet, import_vectors


def parquet(path: Path, ids: Any, vectors: Any) -> Path:
    pq.write_table(pa.table({"id": ids, "vector": vectors}), path)
    return path


def fixed(rows: list[list[float]]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32(), len(rows[0])))


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float16())])
def test_parquet_of_every_list_type(store: EmbeddingStore, tmp_path: Path, kind: pa.DataType, monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK", 3)  # more chunks than files
    rows = np.arange(16).reshape(8, 2).tolist()
    values = [np.float16(row) for row in rows] if kind == pa.large_list(pa.float16()) else rows
    files = [
        parquet(tmp_path / f"{part}.parquet", list(range(start, start + 4)), pa.array(values[start : start + 4], kind))
        for part, start in (("a", 0), ("b", 4))
    ]
    source = VectorFiles(files)
    assert (source.dim, source.id_kind, source.rows) == (2, "int64", 8)
    seen: list[tuple[int, int]] = []
    series = store.create("user_x", dim=2)
    snapshot = import_vectors(series, source, as_of=1, space="x-1", progress=lambda *done: seen.append(done))
    vectors, found = snapshot.load().lookup(torch.arange(9))
    assert found.tolist() == [True] * 8 + [False]
    assert vectors[:8].tolist() == rows
    assert seen[-1] == (8, 8)


def test_npy(store: EmbeddingStore, tmp_path: Path):
    vectors = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float16)
    ids = np.arange(1000) - 500
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "ids.npy", ids)
    source = VectorFiles([tmp_path / "vectors.npy"], ids=tmp_path / "ids.npy")
    snapshot = import_vectors(store.create("user_x", dim=3), source, as_of=1, space="x-1")
    assert snapshot.load().lookup(torch.from_numpy(ids))[0].numpy().tolist() == vectors.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4"])
def test_text_ids_go_round(store: EmbeddingStore, tmp_path: Path, dtype: str):
    names, rows = ["anna", "björn", "çelik"], [[1.0, 0.0, 0.5], [-2.0, 1.0, 0.0], [0.0, 0.0, 4.0]]
    source = VectorFiles([parquet(tmp_path / "a.parquet", names, fixed(rows))])
    series = store.create("user_x", dim=3, dtype=dtype, ids=source.id_kind)
    snapshot = import_vectors(series, source, as_of=1, space="x-1")
    export_parquet(snapshot, tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["key"].to_pylist() == names
    expected, _ = snapshot.load().lookup(torch.tensor(found["id"].to_pylist()))
    assert found["vector"].to_pylist() == expected.tolist()


def test_a_folder_that_takes_no_file_is_named(store: EmbeddingStore):
    with store.create("a", dim=2).write(as_of=1, space="s") as writer:
        writer.append(torch.tensor([1]), torch.ones(1, 2))
    with pytest.raises(InvalidArgumentError, match=r"/proc takes no file \(.*\): choose another folder"):
        export_parquet(writer.snapshot, Path("/proc/out.parquet"))


def test_an_empty_snapshot_is_exported(store: EmbeddingStore, tmp_path: Path):
    with store.create("user_x", dim=3).write(as_of=1, space="x-1") as writer:
        pass
    export_parquet(writer.snapshot, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_a_failed_export_leaves_nothing(store: EmbeddingStore, tmp_path: Path):
    series = store.create("user_x", dim=3)
    with series.write(as_of=1, space="x-1") as writer:
        writer.append(torch.arange(10), torch.zeros(10, 3))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_parquet(writer.snapshot, tmp_path / "out.parquet", progress=stop)
    assert not list(tmp_path.glob("*.parquet")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("ids", "vectors", "error", "message"),
    [
        ([1.5], [[1.0]], InvalidArgumentError, "column 'id' is double; ids are integers or strings"),
        ([1], [1.0], InvalidArgumentError, "column 'vector' is double; vectors are lists of floats"),
        ([1], [[1]], InvalidArgumentError, "vectors are lists of floats"),
        ([1, None], [[1.0], [1.0]], InvalidIdsError, "row 1 has no id"),
        ([1, 2], [[1.0], None], InvalidVectorsError, "row 1 has no vector"),
        ([1, 2, 3], [[1.0], [2.0], [1.0, 2.0]], InvalidVectorsError, "row 2 has a vector of another length than 1"),
        ([1, 2], [[1.0, 2.0], [1.0, None]], InvalidVectorsError, "row 1 has a vector with a null in it"),
        (pa.array([1, 2**63], pa.uint64()), [[1.0], [1.0]], InvalidIdsError, "an id beyond int64"),
        ([1], pa.array([[]], pa.list_(pa.float32())), InvalidArgumentError, "the dimension cannot be told"),
    ],
)
def test_what_a_parquet_file_must_not_hold(
    store: EmbeddingStore, tmp_path: Path, ids: Any, vectors: Any, error: type[Exception], message: str
):
    path = parquet(tmp_path / "a.parquet", ids, vectors)

    def attempt() -> None:
        source = VectorFiles([path])
        import_vectors(store.create("user_x", dim=source.dim), source, as_of=1, space="x-1")

    with pytest.raises(error, match=f"a.parquet.*{message}"):
        attempt()
    assert "user_x" not in store.list() or store.series("user_x").versions() == []


def test_files_that_do_not_fit_are_named(store: EmbeddingStore, tmp_path: Path):
    one = parquet(tmp_path / "one.parquet", [1], fixed([[1.0]]))
    two = parquet(tmp_path / "two.parquet", ["a"], fixed([[1.0, 2.0]]))
    npy, flat = tmp_path / "v.npy", tmp_path / "flat.npy"
    np.save(npy, np.zeros((2, 2), np.float32))
    np.save(flat, np.zeros(2, np.float32))
    (tmp_path / "bad.parquet").write_text("no")
    for paths, options, message in [
        ([], {}, "paths is empty"),
        ([one, two], {}, "one.parquet: dim 1, int64 ids; .*two.parquet: dim 2, text ids"),
        ([one], {"id_column": "member"}, "has no column 'member'; its columns: id, vector"),
        ([one], {"ids": npy}, "is not .npy: Parquet files hold their own ids"),
        ([npy], {}, "give one .npy file of vectors and --ids"),
        ([npy], {"ids": flat}, "flat.npy holds float32"),
        ([flat], {"ids": flat}, "save float"),
        ([tmp_path / "bad.parquet"], {}, "is not a readable Parquet file"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            VectorFiles(paths, **options)
    series = store.create("user_x", dim=2)
    with pytest.raises(InvalidArgumentError, match="the files have dim 1, int64 ids, series 'user_x' dim 2"):
        import_vectors(series, VectorFiles([one]), as_of=1, space="x-1")
