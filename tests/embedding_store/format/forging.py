"""Files of a snapshot, forged: another content under a checksum that is right again."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedding_store import (
    Series,
    Snapshot,
)
from embedding_store.format import files as stored_files
from embedding_store.format.documents import checksum
from embedding_store.format.index import SLOT
from embedding_store.format.manifest import manifest_path
from embedding_store.native.mapping import crc32c_blocks
from tests.embedding_store.helpers import folder

IDS = list(range(-10, 10))
FILES = ["data", "data crc", "index", "index crc"]


def path_of(series: Series, snapshot: Snapshot, what: str) -> Path:
    manifest = snapshot.manifest
    overlay = manifest.own_index
    name = {
        "data": manifest.data[-1].path,
        "data crc": manifest.data[-1].crc_path,
        "index": manifest.index.path,
        "index crc": manifest.index.crc_path,
        "overlay": overlay.path,
        "overlay crc": overlay.crc_path,
        "manifest": manifest_path(snapshot.version),
        "series": "series.json",
    }[what]
    return folder(series) / name


def rewrite_manifest(series: Series, change: Callable[[dict], None], version: int = 1) -> Snapshot:
    """The manifest changed and its checksum made right again: what a faulty writer would leave."""
    path = folder(series) / manifest_path(version)
    document = json.loads(path.read_bytes())
    change(document)
    del document["checksum"]
    body = json.dumps(document)[1:].encode()
    path.write_bytes(f'{{"checksum": "{checksum(body)}",\n'.encode() + body)
    return Series(series._storage, series.name).version(version)


def rewrite_file(series: Series, snapshot: Snapshot, what: str, data: bytes) -> Snapshot:
    """Other bytes in the place of a file, with checksums and a manifest that agree with them."""
    crcs = crc32c_blocks(data).astype("<u4").tobytes()
    path_of(series, snapshot, what).write_bytes(data)
    path_of(series, snapshot, f"{what} crc").write_bytes(crcs)

    def change(document: dict) -> None:
        file = document["data"][-1] if what == "data" else document[what]
        file.update(bytes=len(data), checksum=stored_files.checksum(crcs))
        if what == "overlay":
            file["entries"] = struct.unpack("<8s7q", data[:64])[3]

    return rewrite_manifest(series, change, snapshot.version)


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
