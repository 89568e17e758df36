"""FORMAT.md is what the code does, and other programs can read the data files."""

from __future__ import annotations

import itertools
import json
import re
import struct
import zlib
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch

import embedding_store
from embedding_store import ChecksumError, EmbeddingStore, Series, Snapshot
from embedding_store.dtypes import DTYPES
from embedding_store.format.documents import FORMAT_VERSION
from embedding_store.format.manifest import Manifest
from tests.embedding_store.helpers import files, folder, publish

PAGE = (Path(embedding_store.__file__).parent / "FORMAT.md").read_text()
EXAMPLE = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)[0].encode()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]


def plain_crc32c(data: bytes) -> int:
    """CRC-32C bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def data_path(series: Series, snapshot: Snapshot) -> Path:
    return folder(series) / snapshot.manifest.data[0].path


def test_the_documented_manifest_is_read_and_written_byte_for_byte():
    manifest = Manifest.decode(EXAMPLE, "FORMAT.md")
    assert (manifest.version, manifest.base, manifest.dtype, len(manifest.data)) == (12, 11, "int8", 2)
    assert [segment.rows for segment in manifest.segments] == [1000000, 200000, 3000]
    assert manifest.statistics.min_id == -(2**63)
    assert manifest.encode() == EXAMPLE
    with pytest.raises(ChecksumError):
        Manifest.decode(EXAMPLE.replace(b'"rows": 1201000', b'"rows": 1201001'), "FORMAT.md")


def test_the_page_names_the_version_and_the_layout(series: Series):
    assert PAGE.startswith(f"# The stored format, version {FORMAT_VERSION}\n")
    publish(series, 1, [1])
    newer = series.evolve(dim=2)
    publish(newer, 1, [1])
    for version in (1, 2, 2):
        newer.tag("prod", version)
    publish(newer, 1, [1])
    newer.expire(keep_last=1, dry_run=False)
    newer.refuse(3, ["norms"])
    with newer.write(as_of=1, space="ctr-1", base=3) as writer:
        writer.append(torch.tensor([2]), torch.ones(1, 2))
        writer.delete(torch.tensor([1]))
    found = {re.sub("[0-9a-f]{32}", "<uuid>", path) for path in files(series)}
    documented = set(re.findall(r"^STORE/<series>/(\S+)", PAGE, flags=re.MULTILINE))
    kinds = [{re.sub(r"\d{8}", "#", path) for path in paths} for paths in (found, documented)]
    assert kinds[0] == kinds[1]


def test_json_files_have_the_documented_keys(series: Series):
    publish(series, 1, [1])
    publish(series, 1, [1])
    series.evolve(dim=2)
    series.tag("prod", 2)
    series.expire(keep_last=1, dry_run=False)
    series.refuse(2, ["norms"])
    common, manifest = {"checksum", "format", "format_version"}, set(json.loads(EXAMPLE))
    for path, line, more in [
        ("series.json", "`series.json`: (.*?)\\.", set()),
        ("schemas/00000002.json", "Schemas: (.*?)\\.", set()),
        ("tags/00000001.json", "Tags: (.*?)\\.", set()),
        ("refused/00000002.json", "Refusals: (.*?)\\.", set()),
        ("manifests/00000002.json", "(?!)", manifest),
        ("expired/00000001.json", "Tombstones: a manifest's keys, (.*?)\\.", manifest),
    ]:
        documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(line, PAGE)))) | more
        data = (folder(series) / path).read_bytes()
        assert set(json.loads(data)) == common | documented, path
        first, _, rest = data.partition(b"\n")  # the rule of the page, without this package's code
        assert first == b'{"checksum": "crc32:%08x",' % zlib.crc32(rest)


def test_checksums_are_the_documented_ones(series: Series):
    snapshot = publish(series, 1, list(range(4000)), rows_per_batch=1500)
    for file in snapshot.manifest.files:
        data, crcs = ((folder(series) / path).read_bytes() for path in (file.path, file.crc_path))
        assert len(data) == file.bytes
        assert file.checksum == f"crc32c:{plain_crc32c(crcs):08x}"
        blocks = [data[start : start + 65536] for start in range(0, len(data), 65536)]
        assert list(struct.unpack(f"<{len(blocks)}I", crcs)) == [plain_crc32c(block) for block in blocks]


@pytest.mark.parametrize("rows_per_batch", [None, 2])
@pytest.mark.parametrize("ids", ["int64", "text"])
@pytest.mark.parametrize("name", DTYPES)
def test_columns_are_where_the_manifest_says(store: EmbeddingStore, name: str, ids: str, rows_per_batch: int | None):
    series, dim, dtype = store.create("items", dim=5, dtype=name, ids=ids), 5, DTYPES[name]
    keys = ["a", "", "ü", "long " * 20, "e"]
    vectors = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    with series.write(as_of=1, space="s", rows_per_batch=rows_per_batch) as writer:
        writer.append(keys if ids == "text" else torch.tensor([7, -3, 2**40, 0, 1]), vectors)
    snapshot = writer.snapshot
    data = data_path(series, snapshot).read_bytes()
    table = pyarrow.ipc.open_file(data).read_all()
    assert table.schema.metadata == {b"embedding_store": b"2", b"dim": b"5", b"dtype": name.encode()}
    names = ["vector", "id", *(["scale", "offset"] if dtype.quantised else []), *(["key"] if ids == "text" else [])]
    assert table.column_names == names
    row, stored = 0, np.stack(table["vector"].to_numpy(zero_copy_only=False))
    for segment in snapshot.manifest.segments:
        assert segment.vector % 64 == 0
        rows = slice(row, row + segment.rows)
        count = segment.rows * dtype.width(dim)
        assert np.array_equal(np.frombuffer(data, stored.dtype, count, segment.vector), stored[rows].ravel())
        for column, kind in (("id", np.int64), ("scale", np.float32), ("offset", np.float32)):
            place = getattr(segment, column)
            assert (place is None) == (column not in names)
            if place is not None:
                expected = table[column].to_numpy()[rows]
                assert np.array_equal(np.frombuffer(data, kind, segment.rows, place), expected)
        if ids == "text":
            ends = np.frombuffer(data, np.int64, segment.rows + 1, segment.key)
            text = [data[segment.text + a : segment.text + b].decode() for a, b in itertools.pairwise(ends)]
            assert text == keys[rows]
        row += segment.rows
    assert row == 5


@pytest.mark.parametrize("name", DTYPES)
def test_arrow_reads_the_values_as_documented(store: EmbeddingStore, name: str):
    series = store.create("user_ctr", dim=5, dtype=name)
    ids = [7, -3, 2**40]
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    snapshot = publish(series, 1, ids, vectors)
    table = pyarrow.ipc.open_file(data_path(series, snapshot).read_bytes()).read_all()
    assert table["id"].to_pylist() == ids
    stored = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    if name == "bfloat16":
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    elif name == "int4":
        values = np.stack([stored & 15, stored >> 4], axis=2).reshape(3, -1)[:, :5].astype(np.float32)
    else:
        values = stored.astype(np.float32)
    if "scale" in table.column_names:
        values = values * table["scale"].to_numpy()[:, None] + table["offset"].to_numpy()[:, None]
    got, _ = snapshot.load().lookup(torch.tensor(ids))
    np.testing.assert_allclose(values, got.numpy(), rtol=1e-6, atol=1e-6)


def test_polars_pandas_and_duckdb_read_the_data_files_as_the_page_shows(series: Series):
    ids, vectors = [3, -1, 2**40, 8], torch.arange(12.0).reshape(4, 3)
    path = str(data_path(series, publish(series, 1, ids, vectors, rows_per_batch=3)))
    in_polars, in_pandas, arrow, in_duckdb = CODE.strip().splitlines()
    names = {"path": path, "polars": polars, "pandas": pandas, "pyarrow": pyarrow, "duckdb": duckdb}
    frame = eval(in_polars, names)
    assert frame["id"].to_list() == ids
    assert frame["vector"].to_list() == vectors.tolist()
    pandas_frame = eval(in_pandas, names)
    assert pandas_frame["id"].tolist() == ids
    assert np.stack(pandas_frame["vector"]).tolist() == vectors.tolist()
    exec(arrow, names)
    expected = sorted(zip(ids, vectors.sum(1).tolist(), strict=True))
    assert eval(f"{in_duckdb}.fetchall()", names) == expected


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_polars_reads_text_series_of_other_dtypes(store: EmbeddingStore, name: str):
    series = store.create("user_text", dim=3, dtype=name, ids="text")
    with series.write(as_of=1, space="s", rows_per_batch=2) as writer:
        writer.append(["a", "b", "c"], torch.ones(3, 3))
    frame = polars.read_ipc(data_path(series, writer.snapshot))
    assert frame["key"].to_list() == ["a", "b", "c"]
    assert frame["vector"].to_list() == [[1, 1, 1] if name == "float16" else [0, 0, 0]] * 3
