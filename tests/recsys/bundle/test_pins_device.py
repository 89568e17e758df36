"""What a bundle reads of its pinned versions, on the CPU and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.bundle.pins import PinnedFeatures, pin
from recsys.config.ranker import POOLINGS
from recsys.data.batch import Batch
from recsys.data.stream import EventStream
from tests.recsys.downstream.test_features import SCHEMA, fill, publish, write_events

NAMES = ["user_ctr", "item_ctr"]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    write_events(tmp_path / "a.parquet")
    (one,) = EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=40)
    return one


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """Two versions of users and of items, of the same times."""
    made = EmbeddingStore(tmp_path / "store")
    fill(made)
    publish(made.series("item_ctr"), 200, {-1: [7.0, 8.0, 9.0]})
    return made


def test_the_newest_version_of_a_history_is_open_once(store: EmbeddingStore) -> None:
    read = PinnedFeatures(store, pin(store, NAMES, 2), 2, "mean", torch.device("cpu"))
    read.check()
    for versions, (table, _), opened in zip(read._histories, read._tables, read._opened, strict=True):
        assert [snapshot.version for snapshot in versions.snapshots] == [1, 2]
        assert opened.get(versions.snapshots[-1]) is table


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pooling", POOLINGS)
def test_cuda_gives_what_the_cpu_gives(store: EmbeddingStore, batch: Batch, pooling: str) -> None:
    pins, answers = pin(store, NAMES, 2), []
    for device in ("cpu", "cuda:0"):
        read = PinnedFeatures(store, pins, 2, pooling, torch.device(device))
        read.check()
        answers.append(read(batch))
    assert answers[1].vectors.device == answers[1].found.device == answers[1].feed.device == torch.device("cuda:0")
    assert torch.equal(answers[0].found, answers[1].found.cpu())
    torch.testing.assert_close(answers[0].vectors, answers[1].vectors.cpu(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(answers[0].feed, answers[1].feed.cpu(), rtol=1e-6, atol=1e-6)
