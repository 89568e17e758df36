"""Recall against latency: what a request of one user takes, answered exactly and by an index of each kind.

Measured on the items and users of the last test day, one user after the other, as a service asks. Recall is the share
of the exact k items that are found. Without faiss there is the exact search alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.downstream.retrieval import Index
from recsys.evaluate.nearest import exact_top_k, nearest
from recsys.retrieval import approximate
from recsys.retrieval.manifest import Kind

REQUESTS = 200
"""Users that are asked for, at most."""
ITEMS = 200_000
"""Of more items no index is built for a report: it would take minutes."""
WIDTHS = (16, 32, 64, 128, 256)
"""Of HNSW's search."""
EXACT = "every item"
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivfpq")
_CLOSE = 1e-4
"""Relative difference of scores that are summed in another order."""
_NO_ROWS = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Point:
    """One way to answer."""

    way: str
    """EXACT, or the kind of an index."""
    width: int
    """Of HNSW's search; 0 of other ways."""
    milliseconds: float
    """Median over the requests."""
    recall: float


def latencies(
    index: Index,
    user_ids: Tensor,  # int64 [U]
    k: int,
) -> tuple[Point, ...]:
    """Measure every way with the first of these users; none without users or items."""
    queries = index.queries(user_ids[:REQUESTS])[0]
    if not len(queries) or not len(index.ids):
        return ()
    least = nearest(queries, index.vectors, k).scores[:, -1]
    return tuple(
        Point(way, width, *_measure(answer, queries, index.vectors, least, k)) for way, width, answer in _ways(index, k)
    )


def _ways(index: Index, k: int) -> Iterator[tuple[str, int, Callable[[Tensor], Tensor]]]:
    """Way, width, and how it answers queries [1, D] with rows [1, K]."""
    yield EXACT, 0, lambda query: exact_top_k(query, index.vectors, k)
    if not approximate.is_installed() or len(index.ids) > ITEMS:
        return
    items, _ = approximate.lifted(index.vectors.numpy())
    for kind in KINDS:
        if kind == "ivfpq" and len(items) < approximate.LEAST_ITEMS:
            continue
        built = approximate.build(items, kind, lambda _: None)
        for width in WIDTHS if kind == "hnsw" else (0,):
            yield kind, width, _searching(built, kind, k, width)


def _searching(built: object, kind: Kind, k: int, width: int) -> Callable[[Tensor], Tensor]:
    return lambda query: approximate.search(built, kind, query, k, _NO_ROWS, width=width).rows


def _measure(
    answer: Callable[[Tensor], Tensor],
    queries: Tensor,  # float32 [U, D]
    vectors: Tensor,  # float32 [N, D]
    least: Tensor,  # float32 [U], the score of the last item of each exact answer: of equal ones any may be found
    k: int,
) -> tuple[float, float]:
    """Median milliseconds, recall."""
    answer(queries[:1])  # what is set up once is no part of a request
    seconds, found = [], 0
    for query, bar in zip(queries.split(1), least, strict=True):
        start = time.perf_counter()
        rows = answer(query)[0]
        seconds.append(time.perf_counter() - start)
        scores = vectors[rows[rows >= 0]] @ query[0]
        found += int((scores >= bar - _CLOSE * bar.abs()).sum())
    return 1e3 * float(np.median(seconds)), found / (len(queries) * min(k, len(vectors)))
