"""Carry vectors over to a new space: the rotation that best takes an upstream's old space to that of a cold retrain.

Two trainings from scratch end in spaces that differ by, at the least, a rotation; their vectors must not be averaged.
Orthogonal Procrustes finds the rotation (or reflection) nearest to the truth from entities that have a vector in both;
being orthogonal it keeps every inner product and length of the old space. How well it fits is measured on entities that
were held out, because with few of them any two spaces seem to agree.

Users and items of an upstream share one inner product: fit one rotation on both together and turn both by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from embedding_store import Snapshot

_LEAST_PER_DIMENSION = 4
_HELD_OUT = 5  # every fifth entity
_CHUNK = 65_536


class AlignmentError(ValueError):
    """Vectors that no rotation can be found from: too few shared entities, other shapes, values that are not finite."""


@dataclass(frozen=True, kw_only=True)
class AlignmentQuality:
    """How well the rotated old vectors agree with the new ones, over entities that the fit did not see."""

    shared: int
    """Entities with a vector in both spaces."""
    held_out: int
    """Of them, those that the figures are of; the stored rotation is fitted on all."""
    cosine_before: float
    """Mean cosine between an entity's old and new vector as they are: about 0 for unrelated spaces."""
    cosine_after: float
    """The same with the old one rotated: 1 where the spaces differ by nothing but a rotation."""
    cosine_after_p05: float
    """Its 5 % quantile: how badly the worst are carried over."""

    def as_dict(self) -> dict[str, Any]:
        """As a record stores it."""
        return asdict(self)


def procrustes(
    old: Tensor,  # float [n, D]
    new: Tensor,  # float [n, D]
    *,
    least_shared: int | None = None,
) -> tuple[Tensor, AlignmentQuality]:
    """The orthogonal float32 [D, D] with `old @ rotation` closest to `new` in squares, and how close that is.

    Args:
        old: vectors of the shared entities in the old space.
        new: of the same entities, in the same order, in the new one.
        least_shared: refuse fewer entities; None: 4 * D.

    Raises:
        AlignmentError: too few entities, shapes that differ, or values that are not finite.
    """
    if old.dim() != 2 or old.shape != new.shape:
        raise AlignmentError(f"old is {list(old.shape)}, new is {list(new.shape)}: give [n, D] of the same entities")
    shared, dim = old.shape
    least = _LEAST_PER_DIMENSION * dim if least_shared is None else least_shared
    if shared < max(least, 2):
        raise AlignmentError(
            f"{shared} entities have a vector in both spaces, {max(least, 2)} are needed to align {dim} dimensions: "
            f"embed more of the old entities with the new model, or start the new space without the old one"
        )
    old, new = old.to(torch.float64), new.to(torch.float64)
    if not (old.isfinite().all() and new.isfinite().all()):
        raise AlignmentError("a vector holds a value that is not finite: embed again before aligning")
    held_out = torch.zeros(shared, dtype=torch.bool)
    held_out[torch.randperm(shared, generator=torch.Generator().manual_seed(0))[: max(1, shared // _HELD_OUT)]] = True
    trial = _fit(old[~held_out], new[~held_out])
    after = torch.cosine_similarity(old[held_out] @ trial, new[held_out])
    quality = AlignmentQuality(
        shared=shared,
        held_out=len(after),
        cosine_before=float(torch.cosine_similarity(old[held_out], new[held_out]).mean()),
        cosine_after=float(after.mean()),
        cosine_after_p05=float(after.quantile(0.05)),
    )
    return _fit(old, new).to(torch.float32), quality


def rotated(
    snapshot: Snapshot,
    rotation: Tensor,  # float32 [D, D]
    rows: int = _CHUNK,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of a snapshot in the new space: ids int64 [n] and vectors float32 [n, D], at most `rows` at a time."""
    for batch in snapshot.batches(rows):
        yield batch.ids, batch.vectors @ rotation


def _fit(old: Tensor, new: Tensor) -> Tensor:
    """The orthogonal matrix nearest to the least-squares one, float64 [D, D]."""
    left, _, right = torch.linalg.svd(old.T @ new)
    return left @ right
