"""Two series, what a layer gives of them, and a small model that reads both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedding_store import EmbeddingStore, EntityEmbedding, Snapshot

DIMS = {"user_ctr": 3, "user_cvr": 2}
IDS = torch.tensor([[-5, 7, 1], [2**62, 7, 3]])
"""user_ctr has 7, -5, 2**62; user_cvr has 7 and 1; neither has 3."""
STORED = {"user_ctr": [7, -5, 2**62], "user_cvr": [7, 1]}
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def publish(store: EmbeddingStore, seed: int = 1) -> list[Snapshot]:
    """The next version of both series, with vectors of that seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, ids in STORED.items():
        with store.series(name).write(as_of=seed, space="s") as writer:
            writer.append(torch.tensor(ids), torch.randn(len(ids), DIMS[name], generator=generator))
    return [store.series(name).latest() for name in STORED]


def make_store(path: Path) -> EmbeddingStore:
    store = EmbeddingStore(path)
    for name, dim in DIMS.items():
        store.create(name, dim=dim)
    return store


def expected(snapshots: Sequence[Snapshot], missing: str, ids: Tensor = IDS) -> list[Tensor]:
    """What the layer gives for each series, by way of Table.lookup."""
    results = []
    for snapshot in snapshots:
        vectors, found = snapshot.load().lookup(ids)
        fill = torch.tensor(snapshot.statistics.mean if missing == "mean" else [0.0] * snapshot.dim)
        results.append(torch.where(found[..., None], vectors, fill))
    return results


class Ranker(nn.Module):
    """A small model of two entities."""

    def __init__(self, users: EntityEmbedding, items: EntityEmbedding) -> None:
        super().__init__()
        self.users, self.items = users, items
        self.score = nn.Linear(users.out_dim + items.out_dim, 1)

    def forward(
        self,
        user_ids: Tensor,  # int64 [B]
        item_ids: Tensor,  # int64 [B]
    ) -> Tensor:  # float [B, 1]
        return self.score(torch.cat((self.users(user_ids), self.items(item_ids)), dim=-1).relu())


def make_ranker(store: EmbeddingStore) -> Ranker:
    torch.manual_seed(3)
    users = EntityEmbedding(
        [store.series(name).latest() for name in STORED],
        missing="learned",
        found_feature=True,
        projection=4,
        entity_dropout=0.25,
    )
    return Ranker(users, EntityEmbedding([store.series("user_cvr").latest()], missing="mean"))
