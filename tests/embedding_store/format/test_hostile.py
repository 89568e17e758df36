"""Stored files that are not what they should be: an error of the right class that names the file, never a crash, never
a wrong vector."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

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
    InvalidIndexError,
    MissingFileError,
    NewerFormatError,
    Series,
    Snapshot,
)
from embedding_store.format import files as stored_files
from embedding_store.format.documents import checksum
from embedding_store.format.index import SLOT
from embedding_store.format.manifest import manifest_path
from embedding_store.native.mapping import crc32c_blocks
from embedding_store.write import batches
from tests.embedding_store.helpers import folder, publish

IDS = list(range(-10, 10))
FILES = ["data", "data crc", "index", "index crc"]


@pytest.fixture
def snapshot(series: Series, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """Segments of 6, 6 and then 6, 2 rows in two files."""
    monkeypatch.setattr(batches, "FILE_BYTES", 12 * 20)
    vectors = torch.randn(len(IDS), 3, generator=torch.Generator().manual_seed(0))
    return publish(series, 1, IDS, vectors, rows_per_batch=6)


def path_of(series: Series, snapshot: Snapshot, what: str) -> Path:
    manifest = snapshot.manifest
    name = {
        "data": manifest.data[-1].path,
        "data crc": manifest.data[-1].crc_path,
        "index": manifest.index.path,
        "index crc": manifest.index.crc_path,
        "manifest": manifest_path(snapshot.version),
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


def rewrite_file(series: Series, snapshot: Snapshot, what: str, data: bytes) -> Snapshot:
    """Other bytes in the place of a file, with checksums and a manifest that agree with them."""
    crcs = crc32c_blocks(data).astype("<u4").tobytes()
    path_of(series, snapshot, what).write_bytes(data)
    path_of(series, snapshot, f"{what} crc").write_bytes(crcs)

    def change(document: dict) -> None:
        file = document["index"] if what == "index" else document["data"][-1]
        file.update(bytes=len(data), checksum=stored_files.checksum(crcs))

    return rewrite_manifest(series, change)


def rewrite_header(series: Series, snapshot: Snapshot, field: int, value: object) -> Snapshot:
    data = path_of(series, snapshot, "index").read_bytes()
    numbers = list(struct.unpack("<8s7q", data[:64]))
    numbers[field] = value
    return rewrite_file(series, snapshot, "index", struct.pack("<8s7q", *numbers) + data[64:])


def rewrite_slots(series: Series, snapshot: Snapshot, change: Callable[[np.ndarray], None]) -> Snapshot:
    """`change` gets the index's slots as (id, location)."""
    data = path_of(series, snapshot, "index").read_bytes()
    slots = np.frombuffer(data[64:], SLOT).copy()
    change(slots)
    return rewrite_file(series, snapshot, "index", data[:64] + slots.tobytes())


def used(slots: np.ndarray) -> np.ndarray:
    """Positions of slots with an entry."""
    return np.flatnonzero(slots["location"] != 2**64 - 1)


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(format_version=3), NewerFormatError, "format_version is 3, this package reads 2: upgrade"),
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


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        (0, b"ESINDEX3", FileFormatError, "starts with b'ESINDEX3', an index starts with b'ESINDEX2'"),
        (1, 0, InvalidIndexError, "0 home buckets"),
        (1, -1, InvalidIndexError, "-1 home buckets"),
        (1, 2**62, InvalidIndexError, "home buckets"),
        (2, 2**57, InvalidIndexError, "in all, but the file has"),
        (2, 1, InvalidIndexError, "in all, but the file has"),
        (3, 19, InvalidIndexError, "says 19 entries, its manifest 20 rows"),
        (4, 33, InvalidIndexError, "max_probe is 33"),
        (4, -1, InvalidIndexError, "max_probe is -1"),
        (5, 8, InvalidIndexError, "seed 8"),
        (5, -1, InvalidIndexError, "seed -1"),
        (6, 1, InvalidIndexError, "reserved numbers"),
    ],
)
def test_a_lying_header(series: Series, snapshot: Snapshot, field: int, value: object, error, message: str):
    hostile = rewrite_header(series, snapshot, field, value)
    with pytest.raises(error, match=f"index.hash: .*{message}"):
        hostile.load()


def test_an_index_that_is_too_short_for_a_header(series: Series, snapshot: Snapshot):
    with pytest.raises(FileFormatError, match=r"index.hash: starts with"):
        rewrite_file(series, snapshot, "index", b"ESINDEX2" + bytes(20)).load()


@pytest.mark.parametrize(("field", "value"), [(1, 1), (4, 7), (5, 3)])
def test_a_header_that_leads_searches_elsewhere(series: Series, snapshot: Snapshot, field: int, value: int):
    """Fewer home buckets, another max_probe, another seed: ids may be missing, but have no wrong vector."""
    expected = snapshot.load().lookup(torch.tensor(IDS))[0]
    hostile = rewrite_header(series, snapshot, field, value)
    vectors, found = hostile.load().lookup(torch.tensor(IDS))
    assert torch.equal(vectors, torch.where(found[:, None], expected, 0.0))
    with pytest.raises(InvalidIndexError, match=r"index.hash: (its entries are not in their places|has 20 entries)"):
        hostile.verify()


@pytest.mark.parametrize("location", [4 << 40, 2**63 - 1, 2**64 - 2, (3 << 40) | 2, 6, (1 << 40) - 1, 2**40 + 2**39])
def test_an_index_that_points_past_its_rows(series: Series, snapshot: Snapshot, location: int):
    hit: list[int] = []

    def change(slots: np.ndarray) -> None:
        position = used(slots)[5]
        hit.append(int(slots["id"][position]))
        slots["location"][position] = location

    hostile = rewrite_slots(series, snapshot, change)
    others = torch.tensor([id for id in IDS if id != hit[0]])
    table = hostile.load()
    assert bool(table.lookup(others)[1].all())
    with pytest.raises(InvalidIndexError, match=r"index.hash: "):
        table.lookup(torch.tensor(IDS))
    with pytest.raises(InvalidIndexError, match=r"index.hash: points to row \d+ of segment \d+, which does not exist"):
        hostile.verify()


def test_an_index_without_empty_slots_ends_every_search(series: Series, snapshot: Snapshot):
    def change(slots: np.ndarray) -> None:
        empty = slots["location"] == 2**64 - 1
        slots["id"][empty] = -(2**62) - np.arange(int(empty.sum()))
        slots["location"][empty] = 0

    hostile = rewrite_slots(series, snapshot, change)
    _, found = hostile.load().lookup(torch.cat([torch.tensor(IDS), torch.arange(1000, 3000)]))
    assert found.tolist() == [True] * 20 + [False] * 2000
    with pytest.raises(InvalidIndexError, match=r"index.hash: "):
        hostile.verify()


def reverse(slots: np.ndarray, places: np.ndarray) -> None:
    slots["location"][places] = slots["location"][places][::-1]


def repeat_location(slots: np.ndarray, places: np.ndarray) -> None:
    slots["location"][places[0]] = slots["location"][places[1]]


def repeat_id(slots: np.ndarray, places: np.ndarray) -> None:
    slots["id"][places[0]] = slots["id"][places[1]]


def exchange(slots: np.ndarray, places: np.ndarray) -> None:
    slots[places[[0, 1]]] = slots[places[[1, 0]]]


def remove(slots: np.ndarray, places: np.ndarray) -> None:
    slots["location"][places[0]] = 2**64 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reverse, r"leads from id -?\d+ to row \d of segment \d in data/\w+/vectors-0000\d.arrow, which is id -?\d+"),
        (repeat_location, "points to a row twice"),
        (repeat_id, "not in their places"),
        (exchange, "not in their places"),
        (remove, "has 19 entries, its header is .*entries=20|not in their places"),
    ],
)
def test_an_index_that_disagrees_is_found_by_verify(series: Series, snapshot: Snapshot, change, message: str):
    hostile = rewrite_slots(series, snapshot, lambda slots: change(slots, used(slots)))
    with pytest.raises(InvalidIndexError, match=f"index.hash: .*{message}"):
        hostile.verify()


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
