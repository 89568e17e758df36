from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.downstream.retrieval import Index
from recsys.retrieval import approximate
from recsys.study.latency import EXACT, REQUESTS, latencies


@pytest.fixture
def index(tmp_path) -> Index:
    generator = torch.Generator().manual_seed(0)
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=8)
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(torch.arange(300), torch.randn(300, 8, generator=generator))
    prior = -3 + 0.1 * torch.randn(2000, 1, generator=generator)
    vectors = torch.cat([torch.randn(2000, 8, generator=generator), prior], dim=1)
    return Index(torch.arange(2000), vectors, torch.ones(2000, dtype=torch.bool), series.latest().load())


def test_an_index_finds_what_it_searches_for(index: Index) -> None:
    pytest.importorskip("faiss")
    points = latencies(index, torch.arange(250), 20)
    assert [(point.way, point.width) for point in points] == [
        (EXACT, 0),
        ("flat", 0),
        *(("hnsw", width) for width in (16, 32, 64, 128, 256)),
    ]
    exact, flat, *graph = points
    assert (exact.recall, flat.recall) == pytest.approx((1, 1), abs=1e-3)
    assert graph[-1].recall > 0.9
    assert graph[0].recall <= graph[-1].recall
    assert all(point.milliseconds > 0 for point in points)


def test_without_faiss_every_item_is_scored(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    (point,) = latencies(index, torch.arange(3), 20)
    assert (point.way, point.recall) == (EXACT, 1.0)


def test_nobody_asks_or_nothing_is_there(index: Index) -> None:
    assert latencies(index, torch.arange(0), 20) == ()
    empty = replace(index, ids=index.ids[:0], vectors=index.vectors[:0], has_vector=index.has_vector[:0])
    assert latencies(empty, torch.arange(3), 20) == ()


def test_only_some_users_are_asked(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    queries = Index.queries
    monkeypatch.setattr(Index, "queries", lambda self, ids: asked.append(len(ids)) or queries(self, ids))
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    latencies(index, torch.arange(250), 5)
    assert asked == [REQUESTS]
