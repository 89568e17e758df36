"""Snapshots without vectors: a manifest and files of zeros, for tests of what never looks into the files."""

from __future__ import annotations

import uuid

import pytest

from embedding_store import Series, Snapshot, times
from embedding_store.format.manifest import DataFile, IndexFile, Manifest, Segment, Statistics, manifest_path
from embedding_store.history.tombstones import put_tombstone, tombstone_path
from tests.embedding_store.helpers import age, folder

DATA_BYTES, INDEX_BYTES = 4096, 512


def publish_bare(series: Series, *, base: Manifest | None = None) -> Manifest:
    """Put the next version: a data file and an index of its own, beside the data files of `base`."""
    folder, version = f"data/{uuid.uuid4().hex}", max(series.versions(), default=0) + 1
    segment = Segment(rows=1, vector=0, id=1024, scale=None, offset=None, key=None, text=None)
    own = DataFile(path=f"{folder}/vectors-00000.arrow", bytes=DATA_BYTES, checksum="crc32c:0", segments=(segment,))
    index = IndexFile(path=f"{folder}/index.hash", bytes=INDEX_BYTES, checksum="crc32c:0", kind="hash")
    data = (own,) if base is None else (*base.data, own)
    manifest = Manifest(
        series=series.name,
        version=version,
        schema=series.schema,
        as_of=version,
        space="ctr-1",
        created=times.now(),
        dim=series.dim,
        dtype=series.dtype,
        ids=series.ids,
        base=None if base is None else base.version,
        rows=len(data),
        stored_rows=len(data),
        statistics=Statistics(rows=1, mean_norm=0.0, mean=(0.0,) * series.dim, min_id=0, max_id=0),
        data=data,
        index=index,
    )
    for file in (own, index):
        for path, size in ((file.path, file.bytes), (file.crc_path, 4)):
            with series._storage.create(path) as sink:
                sink.write(bytes(size))
    series._storage.put_new(manifest_path(version), manifest.encode())
    return manifest


def numbers(snapshots: list[Snapshot]) -> list[int]:
    """Their versions."""
    return [snapshot.version for snapshot in snapshots]


def age_tombstones(series: Series, seconds: float) -> None:
    """Write the tombstones anew, as if they had been put so long ago, and let their files look so."""
    for tombstone in series.expired():
        version = tombstone.manifest.version
        series._storage.delete(tombstone_path(version))
        with pytest.MonkeyPatch.context() as clock:
            clock.setattr(times, "now", lambda at=tombstone.expired - int(seconds * 1000): at)
            put_tombstone(series._storage, tombstone.manifest)
    if (folder(series) / "expired").exists():
        age(folder(series) / "expired", seconds)
