"""Build an index of an upstream's items, and leave it as files beside the store, or anywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from embedding_store import EmbeddingStore
from recsys.atomic import new_folder
from recsys.retrieval import approximate
from recsys.retrieval.manifest import IDS, INDEX, Kind, Manifest, RetrievalError
from recsys.retrieval.pair import Pair, newest_pair, withdrawn_now
from recsys.retrieval.retriever import TEMPERATURE
from recsys.sealed import fingerprint


def build_index(
    store: str | Path,
    upstream: str,
    out: str | Path,
    *,
    kind: Kind = "hnsw",
    version: int | None = None,
    temperature: float = TEMPERATURE,
    weight: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, items: None,
) -> Manifest:
    """Build an index of the items of one version, whole or not at all; nothing where it is there already.

    Args:
        store: path or URL of the store.
        upstream: whose series are read, see `open_exact`.
        out: folder of the index.
        kind: flat scores every item, hnsw a few of a graph, ivfpq a few lists of vectors of a byte for four values.
        version, temperature, weight: see `open_exact`.
        progress: is told how many items are done, and of how many.

    Returns:
        what the index is of.

    Raises:
        RetrievalError: no such series or version, too few items for the kind, no faiss, or `out` holds something else.
        VersionSkewError: users and items of the version do not belong together.
    """
    folder, opened = Path(out), EmbeddingStore(store)
    pair = newest_pair(opened, upstream, version=version, temperature=temperature, weight=weight)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        return _built_before(folder, pair, kind)
    approximate.check_installed()
    index = pair.load(withdrawn_now(opened, upstream))
    approximate.check_kind(kind, len(index.ids))
    (vectors, base), done = approximate.lifted(index.vectors.numpy()), 0

    def advance(items: int) -> None:
        nonlocal done
        done += items
        progress(done, len(vectors))

    with new_folder(folder) as unfinished:
        approximate.save(approximate.build(vectors, kind, advance), unfinished / INDEX)
        np.save(unfinished / IDS, index.ids.numpy(), allow_pickle=False)
        manifest = Manifest(
            **_facts(pair, kind),
            as_of=pair.items.as_of,
            dim=pair.items.dim,
            base=base,
            items=len(vectors),
            store=opened.location,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={name: fingerprint(unfinished / name) for name in (INDEX, IDS)},
        )
        manifest.save(unfinished)
    return manifest


def _facts(pair: Pair, kind: Kind) -> dict[str, Any]:
    """What two indexes are the same by."""
    return {
        "upstream": pair.upstream,
        "series": pair.items.series,
        "version": pair.items.version,
        "space": pair.items.space,
        "temperature": pair.temperature,
        "weight": pair.weight,
        "prior_version": 0 if pair.prior is None else pair.prior.version,
        "kind": kind,
    }


def _built_before(folder: Path, pair: Pair, kind: Kind) -> Manifest:
    manifest = Manifest.load(folder)
    for name, wanted in _facts(pair, kind).items():
        if getattr(manifest, name) != wanted:
            raise RetrievalError(
                f"--out is {folder}, an index of {name} {getattr(manifest, name)!r}, and {wanted!r} is asked for: "
                "choose another --out, or delete it"
            )
    manifest.verify(folder)
    return manifest
