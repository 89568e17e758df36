"""The series `relation_<upstream>`: what the relations of a graph make of an entity's vector, for rankers that attend
to it. A view of a vector h by relation r is `h A_r + b_r`: `h M_r + r` of a TransR."""

from __future__ import annotations

import torch
from torch import Tensor

from embedding_store import EmbeddingStore, Series, Snapshot
from recsys.models.graph import GraphModel


def relation_series(store: EmbeddingStore, upstream: str, dim: int) -> Series:
    """The series of an upstream, made if it is not there; `dim`: D, the width of views."""
    return store.create(f"relation_{upstream}", dim=dim, dtype="float32", exist_ok=True)


def publish_relations(series: Series, model: GraphModel, as_of: int, space: str) -> Snapshot:
    """Write what the relations are now. Id r (d + 1) + i is row i of A_r, the last of a relation's rows b_r.

    Raises:
        StoreError: the store refuses it.
    """
    matrices, offsets = model.links.views()
    rows = torch.cat((matrices, offsets.unsqueeze(1)), 1).flatten(0, 1).cpu()  # [R (d + 1), D]
    with series.write(as_of=as_of, space=space) as writer:
        writer.append(torch.arange(len(rows)), rows)
    return writer.snapshot


def read_relations(snapshot: Snapshot, dim: int) -> tuple[Tensor, Tensor]:  # float32 [R, d, D] and [R, D]
    """What was published, `dim` being d, the width of the entities' vectors."""
    table = snapshot.load()
    rows, _ = table.lookup(torch.arange(snapshot.rows))
    views = rows.unflatten(0, (-1, dim + 1))
    return views[:, :dim].clone(), views[:, dim].clone()
