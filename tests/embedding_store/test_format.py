"""FORMAT.md is what the code does, and other programs can read the data files."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import embedding_store
from embedding_store import ChecksumError, EmbeddingStore, Series
from embedding_store.documents import FORMAT_VERSION
from embedding_store.dtypes import DTYPES
from embedding_store.files import INDEX_SCHEMA, data_schema
from embedding_store.manifest import Manifest

from .helpers import files, folder, publish

PAGE = (Path(embedding_store.__file__).parent / "FORMAT.md").read_text()
EXAMPLE = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)[0].encode()


def test_the_documented_manifest_is_read_and_written_byte_for_byte():
    manifest = Manifest.decode(EXAMPLE, "FORMAT.md")
    assert (manifest.version, manifest.dtype, len(manifest.data)) == (12, "int8", 2)
    assert manifest.statistics.min_id == -(2**63)
    assert manifest.encode() == EXAMPLE
    with pytest.raises(ChecksumError):
        Manifest.decode(EXAMPLE.replace(b'"rows": 300000', b'"rows": 300001'), "FORMAT.md")


def test_the_page_names_the_version_and_the_layout(series: Series):
    assert PAGE.startswith(f"# The stored format, version {FORMAT_VERSION}\n")
    publish(series, 1, [1])
    series.tag("prod", 1)
    found = {re.sub("[0-9a-f]{32}", "<uuid>", path) for path in files(series)}
    documented = {path.replace("12", "01") for path in re.findall(r"^STORE/<series>/(\S+)", PAGE, flags=re.MULTILINE)}
    assert found == documented


def test_json_files_have_the_documented_keys(series: Series):
    publish(series, 1, [1])
    series.tag("prod", 1)
    common = {"checksum", "format", "format_version"}
    for path, line in [("series.json", "`series.json`: (.*?)\\."), ("tags/prod.json", "`tags/<name>.json`: (.*?)\\.")]:
        documented = set(re.findall(r"`(\w+)`", re.findall(line, PAGE)[0]))
        data = (folder(series) / path).read_bytes()
        assert set(json.loads(data)) == common | documented
        first, _, rest = data.partition(b"\n")  # the rule of the page, without this package's code
        assert first == b'{"checksum": "crc32:%08x",' % zlib.crc32(rest)


@pytest.mark.parametrize("name", DTYPES)
def test_arrow_reads_the_data_files_alone(store: EmbeddingStore, name: str):
    series = store.create("user_ctr", dim=5, dtype=name)
    ids = [7, -3, 2**40]
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    snapshot = publish(series, 1, ids, vectors)
    with pa.OSFile(str(folder(series) / snapshot.manifest.data[0].path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.equals(data_schema(5, DTYPES[name]), check_metadata=True)
    assert table.schema.metadata == {b"embedding_store": b"1", b"dim": b"5", b"dtype": name.encode()}
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


def test_arrow_reads_the_index(series: Series):
    snapshot = publish(series, 1, [7, -3, 5])
    with pa.OSFile(str(folder(series) / snapshot.manifest.index.path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.equals(INDEX_SCHEMA, check_metadata=True)
    assert table.to_pydict() == {"id": [-3, 5, 7], "row": [1, 2, 0]}
