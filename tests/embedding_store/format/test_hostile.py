"""Stored files that are not what they should be: an error of the right class that names the file, never a crash, never
a wrong vector."""

from __future__ import annotations

import random
import shutil
import struct

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedding_store import (
    ChecksumError,
    CorruptStoreError,
    EmbeddingStore,
    FileFormatError,
    FileSizeError,
    MissingFileError,
    NewerFormatError,
    Series,
    Snapshot,
)
from tests.embedding_store.format.forging import (
    FILES,
    IDS,
    path_of,
    rewrite_file,
    rewrite_manifest,
)
from tests.embedding_store.helpers import publish


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("size", [0, 1, 100, -1, -9])
def test_truncated_files(series: Series, snapshot: Snapshot, what: str, size: int):
    path = path_of(series, snapshot, what)
    data = path.read_bytes()[:size]
    if len(data) < path.stat().st_size:
        path.write_bytes(data)
        with pytest.raises(FileSizeError, match=f"{path.name}: .*has {len(data)} bytes") as caught:
            snapshot.load()
        assert caught.value.path == str(path)
    else:
        assert what.endswith("crc")  # four bytes cannot be cut to a hundred


@pytest.mark.parametrize("what", FILES)
def test_missing_and_longer_files(series: Series, snapshot: Snapshot, what: str):
    path = path_of(series, snapshot, what)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileSizeError, match=path.name):
        snapshot.load()
    path.unlink()
    for use in (snapshot.load, snapshot.verify, lambda: [*snapshot.batches()]):
        if use is snapshot.load or "data" in what:
            with pytest.raises(MissingFileError, match=f"{path.name}: does not exist"):
                use()


@pytest.mark.parametrize("what", ["manifest", "series", "index", "index crc", "data", "data crc"])
def test_any_flipped_bit_is_found(store: EmbeddingStore, series: Series, snapshot: Snapshot, what: str):
    path = path_of(series, snapshot, what)
    data = path.read_bytes()
    generator = random.Random(what)
    for position in generator.sample(range(len(data)), min(len(data), 100)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        for use in (lambda s: s.load().lookup(torch.tensor(IDS)), Snapshot.verify, lambda s: s.load(verify=True)):
            with pytest.raises(CorruptStoreError) as caught:
                use(store.series("user_ctr").latest())
            assert caught.value.path == str(path)


def test_flipped_bits_in_a_large_file_never_give_a_wrong_vector(series: Series):
    """Every lookup is right or an error, and blocks that are whole still serve."""
    count = 30_000  # 10 blocks
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    snapshot = publish(series, 1, list(range(count)), vectors)
    path, segment = path_of(series, snapshot, "data"), snapshot.manifest.segments[0]
    data = bytearray(path.read_bytes())
    data[segment.vector + 12 * 20_000] ^= 1
    path.write_bytes(data)
    table, block = snapshot.load(), (segment.vector + 12 * 20_000) // 65536
    blocks = (
        (segment.vector + 12 * torch.arange(count)) // 65536,
        (segment.vector + 12 * torch.arange(count) + 11) // 65536,
    )
    touched = (blocks[0] == block) | (blocks[1] == block)
    whole = (~touched).nonzero().squeeze(1)
    assert torch.equal(table.lookup(whole)[0], vectors[whole])
    for id in (20_000, int(touched.nonzero()[0]), int(touched.nonzero()[-1])):
        with pytest.raises(ChecksumError, match=path.name):
            table.lookup(torch.tensor([1, id]))
    for use in (snapshot.verify, lambda: [*snapshot.batches()]):
        with pytest.raises(ChecksumError, match=path.name):
            use()


def test_a_compaction_does_not_carry_damage_on(series: Series, snapshot: Snapshot):
    with series.write(as_of=1, space="ctr-1", base=1) as writer:
        writer.delete(torch.tensor([IDS[0]]))
    path = path_of(series, snapshot, "data")
    data = bytearray(path.read_bytes())
    data[snapshot.manifest.data[-1].segments[0].vector] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match=path.name):
        series.compact()
    assert series.versions() == [1, 2]


def overlay(document: dict, *, base: int | None = 1, **changes: object) -> None:
    """Give a manifest an overlay of one entry, but for these changes."""
    document.update(base=base, overlay={**document["index"], "entries": 1, "index_entries": 20, **changes})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(format_version=4), NewerFormatError, "format_version is 4, this package reads 3: upgrade"),
        (lambda m: m.update(format_version=1), FileFormatError, "1: written before the format was settled: write it a"),
        (lambda m: m.update(format_version=0), FileFormatError, "format_version is 0"),
        (lambda m: m.update(dtype="float8"), NewerFormatError, "dtype is 'float8'"),
        (lambda m: m.update(ids="uuid"), NewerFormatError, "ids is 'uuid'"),
        (lambda m: m["index"].update(kind="tree"), NewerFormatError, "index.kind is 'tree'"),
        (lambda m: m.update(format="embedding_store.tag"), FileFormatError, "format is 'embedding_store.tag'"),
        (lambda m: m.update(version=7), FileFormatError, "version is 7, its name says 1"),
        (lambda m: m.update(base=1), FileFormatError, "base is 1, version is 1: a base is an earlier version"),
        (lambda m: m.update(rows=21), FileFormatError, "rows is 21, stored_rows is 20, .* hold 20 rows"),
        (lambda m: m.update(rows=19), FileFormatError, "rows is 19, stored_rows is 20, base is None"),
        (lambda m: m.update(stored_rows=19), FileFormatError, "stored_rows is 19, .* hold 20 rows"),
        (lambda m: m.update(rows="20"), FileFormatError, "rows is '20', expected an integer"),
        (lambda m: m.update(as_of=2**63), FileFormatError, "as_of is 9223372036854775808"),
        (lambda m: m.update(space=""), FileFormatError, "space is ''"),
        (lambda m: m.pop("index"), FileFormatError, "has no key index"),
        (lambda m: m.pop("overlay"), FileFormatError, "has no key overlay"),
        (lambda m: m.update(overlay=3), FileFormatError, "overlay is 3, expected an object"),
        (lambda m: m.update(overlay=m["index"]), FileFormatError, "has no key overlay.entries"),
        (lambda m: overlay(m, kind="tree"), NewerFormatError, "overlay.kind is 'tree'"),
        (lambda m: overlay(m, base=None), FileFormatError, "has 1 entries on 20, but rows is 20, base is None"),
        (lambda m: overlay(m, entries=-1), FileFormatError, "overlay.entries is -1"),
        (
            lambda m: overlay(m, index_entries=18),
            FileFormatError,
            "has 1 entries on 18, but rows is 20, base is 1",
        ),
        (lambda m: m.update(deletes=3), FileFormatError, "deletes is 3, expected a list"),
        (lambda m: m.update(deletes=[{**m["index"], "bytes": 8}]), FileFormatError, "names 8 bytes .*, base is None"),
        (lambda m: m.update(folded={"version": 1}), FileFormatError, "has no key folded.files"),
        (lambda m: m.update(folded={"version": 1, "files": 1}), FileFormatError, "folded is version 1, 1 files; versi"),
        (lambda m: m["data"][1].pop("bytes"), FileFormatError, r"has no key data\[1\].bytes"),
        (lambda m: m["data"].append(3), FileFormatError, r"data\[2\] is 3, expected an object"),
        (lambda m: m.update(dim=2**63 - 1), FileFormatError, "dim is 9223372036854775807, vectors have at most 65536"),
        (lambda m: m["statistics"].update(mean_norm=10**400), FileFormatError, "statistics.mean_norm is 1000.*finite"),
        (lambda m: m["data"][0].update(checksum="x" * 10**6), FileFormatError, r"checksum is 'x{76}\.\.\., expected"),
        (lambda m: m["statistics"].update(mean=[0.0]), FileFormatError, "statistics.mean has 1 values, dim is 3"),
        (lambda m: m["data"][0].update(path="../../secret"), FileFormatError, "names the file '../../secret'"),
        (lambda m: m["data"][0].update(path="/etc/passwd"), FileFormatError, "names the file '/etc/passwd'"),
        (lambda m: m["data"][1]["segments"][0].update(vector=3), FileFormatError, "vector starts at 3, expected mult"),
        (lambda m: m["data"][1]["segments"][1].update(id=2**62), FileFormatError, r"segments\[1\].id ends beyond"),
        (lambda m: m["data"][1]["segments"][1].update(id=-8), FileFormatError, "id is -8, expected an integer"),
        (lambda m: m["data"][0]["segments"][0].update(scale=64), FileFormatError, "scale is 64, which float32, int64"),
        (lambda m: m["data"][0]["segments"][0].update(rows=2**40), FileFormatError, "hold 1099511627790 rows"),
        (lambda m: m.update(dtype="int8"), FileFormatError, "scale is None, which int8, int64 cannot have"),
        (lambda m: m.update(ids="text"), FileFormatError, "key is None, which float32, text cannot have"),
    ],
)
def test_manifests_that_cannot_be(series: Series, snapshot: Snapshot, change, error, message: str):
    with pytest.raises(error, match=rf"00000001.json: .*{message}"):
        rewrite_manifest(series, change)


def test_a_manifest_that_points_to_the_wrong_place_in_a_file(series: Series, snapshot: Snapshot):
    def swap(document: dict) -> None:
        first, second = document["data"][0]["segments"]
        first["vector"], second["vector"] = second["vector"], first["vector"]

    hostile = rewrite_manifest(series, swap)
    hostile.load().lookup(
        torch.tensor(IDS)
    )  # it lies within the file: not seen without reading the file's own metadata
    with pytest.raises(FileFormatError, match=r"vectors-00000.arrow: record batch 0: column vector is not at \d+, or"):
        hostile.verify()


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", "[" * 100_000, '{"checksum": 1}'])
def test_json_that_is_none(store: EmbeddingStore, series: Series, snapshot: Snapshot, text: str):
    path_of(series, snapshot, "manifest").write_text(text)
    with pytest.raises(FileFormatError, match=r"00000001.json: "):
        store.series("user_ctr").latest()


def test_data_files_of_another_make(series: Series, snapshot: Snapshot):
    data = path_of(series, snapshot, "data").read_bytes()
    table = pa.ipc.open_file(data).read_all()
    metadata = {**table.schema.metadata, b"dtype": b"int8"}
    wrong = {
        "its columns are id: .*, vector: ": table.select(["id", "vector"]),
        "its columns are .*'int8'.*expected .*'float32'": table.replace_schema_metadata(metadata),
        "record batch 0: has 5 rows, its manifest says 6": table.slice(1),
        "has 1 record batches, its manifest says 2": table.combine_chunks(),
    }
    for message, other in wrong.items():
        hostile = rewrite_file(series, snapshot, "data", arrow_file(other))
        with pytest.raises(FileFormatError, match=f"vectors-00001.arrow: {message}"):
            hostile.verify()


def test_data_files_that_are_compressed_or_no_arrow(series: Series, snapshot: Snapshot):
    data = path_of(series, snapshot, "data").read_bytes()
    table = pa.ipc.open_file(data).read_all()
    # Zeros compress to less than themselves; without them Arrow would store the column as it is.
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(24, np.float32)), type=table.schema.types[0])
    same = table.set_column(0, table.schema.field(0), pa.chunked_array([zeros.slice(0, 6), zeros.slice(6)]))
    for wrong, message in [
        (arrow_file(same, compression="zstd"), "column vector is not at .*, or compressed"),
        (b"PARQUET" + data[7:-6] + b"NOPE!!", "is not a readable Arrow IPC file"),
        (data[:-10] + bytes(10), "is not a readable Arrow IPC file"),
    ]:
        with pytest.raises(FileFormatError, match=f"vectors-00001.arrow: .*{message}"):
            rewrite_file(series, snapshot, "data", wrong).verify()


def arrow_file(table: pa.Table, **options: str) -> bytes:
    """The table as an Arrow file that is long enough for what the manifest says of it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch, custom_metadata={"padding": "." * 5000})
    return sink.getvalue().to_pybytes()


def test_keys_that_cannot_be(store: EmbeddingStore):
    series = store.create("user_text", dim=3, ids="text")
    with series.write(as_of=1, space="s") as writer:
        writer.append(["alpha", "beta", "gamma"], torch.ones(3, 3))
    snapshot = writer.snapshot
    segment = snapshot.manifest.segments[0]
    data = path_of(series, snapshot, "data").read_bytes()
    for place, new, error, message in [
        (segment.key + 8, struct.pack("<q", 2**50), FileFormatError, "keys that end before they start"),
        (segment.key, struct.pack("<q", -1), FileFormatError, "keys that end before they start"),
        (segment.key + 24, struct.pack("<q", 2**50), FileFormatError, "keys that end behind the file"),
        (segment.text, b"\xff", FileFormatError, "keys that are not UTF-8"),
    ]:
        hostile = rewrite_file(series, snapshot, "data", data[:place] + new + data[place + len(new) :])
        with pytest.raises(error, match=f"vectors-00000.arrow: has {message}"):
            list(hostile.batches())


def test_damage_to_one_version_leaves_the_others(store: EmbeddingStore, series: Series, snapshot: Snapshot):
    publish(series, 2, [1])
    shutil.rmtree(path_of(series, snapshot, "data").parent)
    path_of(series, snapshot, "manifest").write_text("{")
    assert store.series("user_ctr").latest().load().ids().tolist() == [1]
