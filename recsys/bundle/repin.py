"""Move a bundle to newer versions of the vectors that it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from embedding_store import EmbeddingStore
from recsys.bundle.manifest import BundleError, Manifest, Pin, verify
from recsys.bundle.pins import pin

SAMPLE = 10_000
"""Entities whose vectors have changed, after which no more are compared."""


class Move(NamedTuple):
    """One series' step from the pinned version to the newest one."""

    before: Pin
    after: Pin
    drift: float | None
    """1 - median cosine between both vectors of an entity, of those that changed; None: none did, or the old version is
    gone."""


def repin(folder: Path, *, store: str | Path | None = None, max_drift: float = 0.5) -> list[Move]:
    """Let a bundle read the newest versions of its series; its program stays. One file is replaced, at once.

    Args:
        folder: of the bundle.
        store: the store, where it is not at the place any more that the bundle names; it is noted then.
        max_drift: 1 - median cosine that the vectors of entities that both versions have may have moved by. Where the
            old version is gone nothing can be compared, and nothing is refused.

    Returns:
        what changes, series by series; nothing where the newest versions are pinned already.

    Raises:
        BundleError: no bundle, a changed file, a series that has moved to another space or dimension, or by more than
            `max_drift`: the bundle stays as it was.
        KeyError: a series is gone.
    """
    manifest = Manifest.load(folder)
    verify(folder, manifest)
    opened = EmbeddingStore(store or manifest.store)
    newest = pin(opened, [old.series for old in manifest.pins], manifest.history)
    moves = [
        Move(old, new, _drift(opened, old, new))
        for old, new in zip(manifest.pins, newest, strict=True)
        if _checked(old, new) != old
    ]
    far = [
        f"{move.after.series} by {move.drift:.4f} from version {move.before.version} to {move.after.version}"
        for move in moves
        if move.drift is not None and move.drift > max_drift
    ]
    if far:
        raise BundleError(
            f"vectors have moved by more than 1 - median cosine = {max_drift:.4f}: {'; '.join(far)}. Train the ranker "
            "anew on them (`recsys bundle`), or allow more by --max-drift"
        )
    if moves or opened.location != manifest.store:
        replace(manifest, pins=newest, store=opened.location).save(folder)
    return moves


def _checked(old: Pin, new: Pin) -> Pin:
    if (old.space, old.dim) != (new.space, new.dim):
        raise BundleError(
            f"series {new.series!r} moved from space {old.space!r}, dim {old.dim}, to {new.space!r}, dim {new.dim}: "
            "the ranker cannot read these vectors; train it anew (`recsys bundle`)"
        )
    return new


def _drift(store: EmbeddingStore, old: Pin, new: Pin) -> float | None:
    series, cosines, count = store.series(old.series), list[Tensor](), 0
    if old.version not in series.versions():
        return None
    before = series.version(old.version).load()
    for part in series.version(new.version).batches():
        vectors, found = before.lookup(part.ids)
        changed = found & (vectors != part.vectors).any(dim=1)  # who was absent keeps a vector, and would hide a jump
        cosines.append(F.cosine_similarity(vectors[changed], part.vectors[changed], dim=1))
        count += len(cosines[-1])
        if count >= SAMPLE:
            break
    return 1 - float(torch.cat(cosines).median()) if count else None
