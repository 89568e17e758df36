"""Snapshots without vectors: a manifest and files of zeros, for tests of what never looks into the files."""

from __future__ import annotations

import uuid

from embedding_store import Series, Snapshot, times
from embedding_store.format.manifest import MANIFESTS, DataFile, IndexFile, Manifest, Segment, Statistics
from embedding_store.history.tombstones import TOMBSTONES
from embedding_store.history.versions import newest
from tests.embedding_store.helpers import age, folder

DATA_BYTES, INDEX_BYTES = 4096, 512


def bare_manifest(
    version: int, *, name: str = "user_ctr", dim: int = 3, schema: int = 1, base: Manifest | None = None
) -> Manifest:
    """A manifest of a data file and an index of its own, beside the data files of `base`."""
    folder = f"data/{uuid.uuid4().hex}"
    segment = Segment(rows=1, vector=0, id=1024, scale=None, offset=None, key=None, text=None)
    own = DataFile(path=f"{folder}/vectors-00000.arrow", bytes=DATA_BYTES, checksum="crc32c:0", segments=(segment,))
    data = (own,) if base is None else (*base.data, own)
    return Manifest(
        series=name,
        version=version,
        schema=schema,
        as_of=version,
        space="ctr-1",
        created=times.now(),
        dim=dim,
        dtype="float32",
        ids="int64",
        base=None if base is None else base.version,
        rows=len(data),
        stored_rows=len(data),
        statistics=Statistics(rows=1, mean_norm=0.0, mean=(0.0,) * dim, min_id=0, max_id=0),
        data=data,
        index=IndexFile(path=f"{folder}/index.hash", bytes=INDEX_BYTES, checksum="crc32c:0", kind="hash"),
    )


def publish_bare(series: Series, *, base: Manifest | None = None) -> Manifest:
    """Put the next version: a data file and an index of its own, beside the data files of `base`."""
    version = newest(series._storage)[1]
    manifest = bare_manifest(version, name=series.name, dim=series.dim, schema=series.schema, base=base)
    for file in (manifest.data[-1], manifest.index):
        for path, size in ((file.path, file.bytes), (file.crc_path, 4)):
            with series._storage.create(path) as sink:
                sink.write(bytes(size))
    MANIFESTS.put(series._storage, version, manifest.fields())
    return manifest


def numbers(snapshots: list[Snapshot]) -> list[int]:
    """Their versions."""
    return [snapshot.version for snapshot in snapshots]


def age_tombstones(series: Series, seconds: float) -> None:
    """Write the tombstones anew, as if they had been put so long ago, and let their files look so."""
    for tombstone in series.expired():
        version = tombstone.manifest.version
        series._storage.delete(TOMBSTONES.path(version))
        why = {"expired": tombstone.expired - int(seconds * 1000), "retracted": tombstone.retracted}
        TOMBSTONES.put(series._storage, version, tombstone.manifest.fields() | why)
    if (folder(series) / "expired").exists():
        age(folder(series) / "expired", seconds)
