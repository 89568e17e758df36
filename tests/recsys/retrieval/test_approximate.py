"""How much the indexes of faiss find of what is exact. Data, seeds and one thread: the same every time."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from recsys.evaluate.nearest import nearest
from recsys.retrieval import approximate
from recsys.retrieval.manifest import Kind

ITEMS, DIM, K = 10_000, 16, 50
NOBODY = torch.empty(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Users and items of unit length, about some centres, over a temperature of 0.1, with a prior after Zipf."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, DIM, generator=generator)
    users, items = (
        torch.nn.functional.normalize(
            centres[torch.randint(clusters, (count,), generator=generator)]
            + 0.5 * torch.randn(count, DIM, generator=generator)
        )
        for count in (100, ITEMS)
    )
    prior = -torch.arange(1.0, ITEMS + 1).log()[torch.randperm(ITEMS, generator=generator)]
    return torch.cat([users, torch.ones(100, 1)], dim=1), torch.cat([items / 0.1, prior[:, None]], dim=1)


def recall(kind: Kind, users: torch.Tensor, items: torch.Tensor) -> float:
    steps = list[int]()
    index = approximate.build(items.numpy(), kind, steps.append)
    assert sum(steps) == len(items)
    found = approximate.search(index, kind, users, K, NOBODY).rows
    wanted = nearest(users, items, K).rows
    return float(np.mean([len(np.intersect1d(*each)) / K for each in zip(found, wanted, strict=True)]))


@pytest.mark.parametrize(("kind", "least"), [("flat", 0.999), ("hnsw", 0.97), ("ivfpq", 0.5)])
def test_recall_beside_exact(kind: Kind, least: float) -> None:
    users, items = made(clusters=40)
    items[:, -1] -= items[:, -1].min()
    assert recall(kind, users, items) > least


def test_hnsw_needs_the_prior_to_be_positive() -> None:
    users, items = made(clusters=4000)
    raw = recall("hnsw", users, items)
    items[:, -1] -= items[:, -1].min()
    assert recall("hnsw", users, items) > max(0.97, raw + 0.2)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_rows_that_are_left_out_are_not_found(kind: Kind) -> None:
    users, items = made(clusters=40)
    items[:, -1] -= items[:, -1].min()
    index = approximate.build(items.numpy(), kind, lambda _: None)
    first = approximate.search(index, kind, users, K, NOBODY).rows[:, :5].unique()
    rest = approximate.search(index, kind, users, K, first)
    assert not torch.isin(rest.rows, first).any()
    assert (rest.scores[:, 0] > float("-inf")).all()
    assert (rest.scores.diff(dim=1) <= 0).all()
