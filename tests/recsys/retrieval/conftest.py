"""A small store that can be retrieved from, with a reference in NumPy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.prior import WITHDRAWN

USERS, ITEMS, DIM = 30, 300, 8
TEMPERATURE = 0.5
Publish = Callable[..., None]


def publish(
    store: Path, *, users: int = USERS, items: int = ITEMS, prior: bool = True, space: str = "ctr-1", as_of: int = 1000
) -> None:
    """Another version of `user_ctr`, ids from 0, and `item_ctr`, ids from -1 downwards; of unit length."""
    for seed, owner, ids in ((1, "user", torch.arange(users)), (2, "item", -torch.arange(items) - 1)):
        series = EmbeddingStore(store).create(f"{owner}_ctr", dim=DIM, exist_ok=True)
        with series.write(as_of=as_of, space=space) as writer:
            writer.append(ids, vectors(seed, len(ids)))
    if prior:
        publish_prior(store, as_of=as_of)


def vectors(seed: int, count: int) -> torch.Tensor:
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn)


def publish_prior(store: Path, *, withdrawn: tuple[int, ...] = (), as_of: int = 1000) -> None:
    """Of the items, and of one without a vector, -5000."""
    ids = torch.cat([-torch.arange(ITEMS) - 1, torch.tensor([-5000])])
    values = -torch.linspace(1, 9, len(ids))
    values[torch.isin(ids, torch.tensor(withdrawn))] = WITHDRAWN
    series = EmbeddingStore(store).create("item_ctr.prior", dim=1, exist_ok=True)
    with series.write(as_of=as_of, space="log-share") as writer:
        writer.append(ids, values[:, None])


def reference(users: list[int], k: int, *, weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the best k for some users of the store that `publish` makes, by sorting all."""
    every, items = vectors(1, USERS).numpy(), vectors(2, ITEMS).numpy()
    ids, prior = -np.arange(ITEMS) - 1, -np.linspace(1, 9, ITEMS + 1)
    products = np.stack([every[user] @ items.T if user < USERS else np.zeros(ITEMS) for user in users])
    if weight:
        ids, products = np.append(ids, -5000), np.column_stack([products, products.mean(axis=1)])
        scores = products / TEMPERATURE + weight * prior
    else:
        scores = products / TEMPERATURE
    order = np.argsort(-scores, axis=1)[:, :k]
    return ids[order], np.take_along_axis(scores, order, axis=1)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    publish(tmp_path / "store")
    return tmp_path / "store"
