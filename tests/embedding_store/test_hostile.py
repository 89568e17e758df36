"""Stored files that are not what they should be: an error of the right class that names the file, never a crash."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from embedding_store import (
    ChecksumError,
    CorruptStoreError,
    EmbeddingStore,
    FileFormatError,
    FileSizeError,
    InvalidIndexError,
    MissingFileError,
    NewerFormatError,
    Series,
    Snapshot,
)
from embedding_store import files as stored_files
from embedding_store.documents import checksum
from embedding_store.dtypes import DTYPES
from embedding_store.manifest import manifest_path

from .helpers import folder, publish

IDS = list(range(-10, 10))


@pytest.fixture
def snapshot(series: Series) -> Snapshot:
    vectors = torch.randn(len(IDS), 3, generator=torch.Generator().manual_seed(0))
    return publish(series, 1, IDS, vectors, rows_per_file=12)


def path_of(series: Series, snapshot: Snapshot, what: str) -> Path:
    name = {
        "data": snapshot.manifest.data[1].path,
        "index": snapshot.manifest.index.path,
        "manifest": manifest_path(1),
        "series": "series.json",
    }[what]
    return folder(series) / name


def rewrite_manifest(series: Series, change: Callable[[dict], None]) -> Snapshot:
    """The manifest changed and its checksum made right again: what a faulty writer would leave."""
    path = folder(series) / manifest_path(1)
    document = json.loads(path.read_bytes())
    change(document)
    del document["checksum"]
    body = json.dumps(document)[1:].encode()
    path.write_bytes(f'{{"checksum": "{checksum(body)}",\n'.encode() + body)
    return Series(series._storage, series.name).latest()


def rewrite_file(series: Series, snapshot: Snapshot, what: str, table: pa.Table) -> Snapshot:
    """Another Arrow file in the place of `what`, with a manifest that agrees on its size and checksum."""
    path = path_of(series, snapshot, what)
    path.unlink()
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    data = path.read_bytes()

    def change(document: dict) -> None:
        file = document["index"] if what == "index" else document["data"][1]
        file.update(bytes=len(data), checksum=checksum(data))

    return rewrite_manifest(series, change)


def read_arrow(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


@pytest.mark.parametrize("what", ["data", "index"])
@pytest.mark.parametrize("size", [0, 1, 100, -1, -9])
def test_truncated_files(series: Series, snapshot: Snapshot, what: str, size: int):
    path = path_of(series, snapshot, what)
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(FileSizeError, match=f"{path.name}.*(empty|has {len(data[:size])} bytes)") as caught:
        snapshot.load()
    assert caught.value.path == str(path)


@pytest.mark.parametrize("what", ["data", "index"])
def test_missing_and_longer_files(series: Series, snapshot: Snapshot, what: str):
    path = path_of(series, snapshot, what)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileSizeError, match=path.name):
        snapshot.load()
    path.unlink()
    with pytest.raises(MissingFileError, match=f"{path.name}: does not exist"):
        snapshot.load()


def test_wrong_magic(series: Series, snapshot: Snapshot):
    path = path_of(series, snapshot, "data")
    data = path.read_bytes()
    path.write_bytes(b"PARQUET" + data[7:-6] + b"NOPE!!")
    with pytest.raises(FileFormatError, match=rf"{path.name}: is not a readable Arrow IPC file"):
        snapshot.load()


def test_flipped_bits_in_vectors_are_found_by_verify(series: Series, snapshot: Snapshot):
    path = path_of(series, snapshot, "data")
    data = bytearray(path.read_bytes())
    row = stored_files.read_data(series._storage, snapshot.manifest.data[1], 3, DTYPES["float32"])[1].vector[3]
    data[data.find(row.numpy().tobytes())] ^= 1
    path.write_bytes(data)
    snapshot.load()  # does not read the vectors
    for check in (snapshot.verify, lambda: snapshot.load(verify=True)):
        with pytest.raises(ChecksumError, match=path.name):
            check()


@pytest.mark.parametrize("what", ["manifest", "series", "index"])
def test_any_flipped_bit_in_a_small_file_is_found(store: EmbeddingStore, series: Series, snapshot: Snapshot, what: str):
    path = path_of(series, snapshot, what)
    data = path.read_bytes()
    generator = random.Random(what)
    for position in generator.sample(range(len(data)), min(len(data), 150)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptStoreError) as caught:
            store.series("user_ctr").latest().load()
        assert caught.value.path == str(path)


def test_no_damage_to_a_data_file_gives_a_wrong_layout_or_a_crash(series: Series, snapshot: Snapshot):
    """Bytes around the rows (headers, footer) are checked without a checksum."""
    path = path_of(series, snapshot, "data")
    data = path.read_bytes()
    expected = snapshot.load().lookup(torch.tensor(IDS))[0]
    body = data.find(torch.tensor(IDS[12:]).numpy().tobytes())
    frame = [i for i in range(len(data)) if not body <= i < body + 8 * 20]
    generator = random.Random(0)
    errors = []
    for _ in range(400):
        damaged = bytearray(data)
        for position in generator.sample(frame, 2):
            damaged[position] ^= 1 << generator.randrange(8)
        path.unlink()
        path.write_bytes(damaged)
        try:
            got, found = snapshot.load().lookup(torch.tensor(IDS))
        except CorruptStoreError as error:
            errors.append(error)
        else:
            assert found.all()
            assert torch.equal(got, expected)
    assert len(errors) > 100
    assert {error.path for error in errors} == {str(path)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(format_version=2), NewerFormatError, "format_version is 2, this package reads up to 1"),
        (lambda m: m.update(dtype="float8"), NewerFormatError, "dtype is 'float8'"),
        (lambda m: m["index"].update(kind="hash"), NewerFormatError, "index.kind is 'hash'"),
        (lambda m: m.update(format="embedding_store.tag"), FileFormatError, "format is 'embedding_store.tag'"),
        (lambda m: m.update(version=7), FileFormatError, "version is 7, its name says 1"),
        (lambda m: m.update(rows=21), FileFormatError, "rows is 21, but its data files hold 20"),
        (lambda m: m.update(rows="20"), FileFormatError, "rows is '20', expected an integer"),
        (lambda m: m.update(as_of=2**63), FileFormatError, "as_of is 9223372036854775808"),
        (lambda m: m.update(space=""), FileFormatError, "space is ''"),
        (lambda m: m.pop("index"), FileFormatError, "has no key index"),
        (lambda m: m["data"][1].pop("bytes"), FileFormatError, r"has no key data\[1\].bytes"),
        (lambda m: m["data"].append(3), FileFormatError, r"data\[2\] is 3, expected an object"),
        (lambda m: m["statistics"].update(mean=[0.0]), FileFormatError, "statistics.mean has 1 values, dim is 3"),
        (lambda m: m["data"][0].update(path="../../secret"), FileFormatError, "names the file '../../secret'"),
        (lambda m: m["data"][0].update(path="/etc/passwd"), FileFormatError, "names the file '/etc/passwd'"),
    ],
)
def test_manifests_that_cannot_be(series: Series, snapshot: Snapshot, change, error, message: str):
    with pytest.raises(error, match=rf"00000001.json: .*{message}"):
        rewrite_manifest(series, change)


def test_manifests_that_disagree_with_the_files(series: Series, snapshot: Snapshot):
    def swap_rows(document: dict) -> None:
        document["data"][0]["rows"], document["data"][1]["rows"] = 8, 12

    with pytest.raises(FileFormatError, match=r"vectors-00000.arrow: has 12 rows, its manifest says 8"):
        rewrite_manifest(series, swap_rows).load()

    def narrow(document: dict) -> None:
        swap_rows(document)
        document.update(dim=2)
        document["statistics"].update(mean=[0.0, 0.0])

    with pytest.raises(FileFormatError, match=r"vectors-00000.arrow: its columns are .*\[3\].*expected .*\[2\]"):
        rewrite_manifest(series, narrow).load()


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", "[" * 100_000, '{"checksum": 1}'])
def test_json_that_is_none(store: EmbeddingStore, series: Series, snapshot: Snapshot, text: str):
    path_of(series, snapshot, "manifest").write_text(text)
    with pytest.raises(FileFormatError, match=r"00000001.json: "):
        store.series("user_ctr").latest()


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (IDS, [*range(19), 20], r"points to rows 0 .. 20 of 20"),
        (IDS, [*range(19), -1], r"points to rows -1 .. 18 of 20"),
        ([*IDS[:-2], 9, 8], range(20), "not in ascending order"),
        ([*IDS[:-1], 8], range(20), "not in ascending order"),
    ],
)
def test_an_index_that_cannot_be_is_found_by_load(series: Series, snapshot: Snapshot, ids, rows, message: str):
    columns = [pa.array(ids, pa.int64()), pa.array(rows, pa.int64())]
    hostile = rewrite_file(series, snapshot, "index", pa.table(columns, schema=stored_files.INDEX_SCHEMA))
    with pytest.raises(InvalidIndexError, match=f"index.arrow: .*{message}"):
        hostile.load()


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (IDS, [*range(18), 18, 18], "points to a row twice"),
        (IDS, [*range(18), 19, 18], r"leads from id 9 to row 6 of .*vectors-00001.arrow, which is id 8"),
        ([*IDS[:-1], 77], range(20), r"leads from id 77 to row 7 of .*vectors-00001.arrow, which is id 9"),
    ],
)
def test_an_index_that_disagrees_is_found_by_verify(series: Series, snapshot: Snapshot, ids, rows, message: str):
    columns = [pa.array(ids, pa.int64()), pa.array(rows, pa.int64())]
    hostile = rewrite_file(series, snapshot, "index", pa.table(columns, schema=stored_files.INDEX_SCHEMA))
    with pytest.raises(InvalidIndexError, match=f"index.arrow: .*{message}"):
        hostile.verify()


def test_data_files_of_another_make(series: Series, snapshot: Snapshot):
    table = read_arrow(path_of(series, snapshot, "data"))
    wrong = {
        "its columns are vector: .*, id: ": table.select(["vector", "id"]),
        "its columns are .*'int8'.*expected .*'float32'": table.replace_schema_metadata(
            {**table.schema.metadata, b"dtype": b"int8"}
        ),
        "has 7 rows, its manifest says 8": table.slice(0, 7),
        "has 2 record batches": pa.concat_tables([table.slice(0, 4), table.slice(4)]),
    }
    for message, other in wrong.items():
        with pytest.raises(FileFormatError, match=f"vectors-00001.arrow: {message}"):
            rewrite_file(series, snapshot, "data", other).load()


def test_compressed_data_files_are_refused(series: Series, snapshot: Snapshot):
    path = path_of(series, snapshot, "data")
    table = read_arrow(path)
    path.unlink()
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    size = path.stat().st_size
    with pytest.raises(FileFormatError, match=r"compressed, has nulls or is not in its place"):
        rewrite_manifest(series, lambda m: m["data"][1].update(bytes=size)).load()


def test_damage_to_one_version_leaves_the_others(store: EmbeddingStore, series: Series, snapshot: Snapshot):
    publish(series, 2, [1])
    shutil.rmtree(path_of(series, snapshot, "data").parent)
    path_of(series, snapshot, "manifest").write_text("{")
    assert store.series("user_ctr").latest().load().ids().tolist() == [1]
