"""HNSW at equal recall: faiss's index, as `recsys retrieve` builds it, beside usearch's of the same links and widths.

    pip install usearch        # no dependency: without it only faiss is measured, and the record says so
    python -m benchmarks.hnsw --items 300000

The vectors of benchmarks.retrieve. Each index is searched with the least width, of those tried, that finds `recall` of
the exact best; the two take turns, a block of users each; `ratio` is usearch's seconds over faiss's: above 1 ours is
faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import retrieve
from benchmarks.common import in_turn, print_record
from recsys.evaluate.nearest import nearest
from recsys.retrieval import approximate

WIDTHS = (10, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
"""Candidates that are kept while a user is answered, from the least that is tried."""
Search = Callable[[Tensor, int], NDArray[np.int64]]  # (users [U, D + 1], width) -> rows [U, k]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    items: int = 1_000_000
    users: int = 2_000
    """That are answered, in four blocks."""
    dim: int = 128
    """Of the vectors; the prior is one more."""
    k: tuple[int, ...] = (10, 100)
    recall: float = 0.95


def main(options: Options) -> None:
    """Measure."""
    sizes = retrieve.Options(items=options.items, users=options.users, dim=options.dim)
    users, items = retrieve.vectors(sizes)
    figures: dict[str, Any] = {"items": options.items, "dim": options.dim, "threads": torch.get_num_threads()}
    figures |= {"links": approximate.LINKS, "build_width": approximate.BUILD_WIDTH, "recall": options.recall}
    searches = dict[str, Callable[[int], Search]]()
    makers = {"faiss": faiss_index, "usearch": usearch_index if find_spec("usearch") else None}
    for name, make in makers.items():
        if make is None:
            figures[name] = "not installed"
            continue
        start = time.perf_counter(), time.process_time()
        searches[name] = make(items)
        figures[f"{name}_build_s"] = round(time.perf_counter() - start[0], 1)
        figures[f"{name}_build_cpu_s"] = round(time.process_time() - start[1], 1)
    exact = nearest(users, items, max(options.k)).rows.numpy()
    for k in options.k:
        figures |= {f"{name}_at_{k}": value for name, value in measured(searches, users, exact[:, :k], options).items()}
    print_record("hnsw", figures)


def faiss_index(items: Tensor) -> Callable[[int], Search]:
    """By `recsys retrieve`."""
    index, everybody = approximate.build(items.numpy(), "hnsw", lambda _: None), torch.empty(0, dtype=torch.int64)

    def for_k(k: int) -> Search:
        def search(users: Tensor, width: int) -> NDArray[np.int64]:
            return approximate.search(index, "hnsw", users, k, everybody, width=width).rows.numpy()

        return search

    return for_k


def usearch_index(items: Tensor) -> Callable[[int], Search]:
    """With as many threads as torch has."""
    from usearch.index import Index

    threads = torch.get_num_threads()
    widths = {"connectivity": approximate.LINKS, "expansion_add": approximate.BUILD_WIDTH}
    index = Index(ndim=items.shape[1], metric="ip", dtype="f32", **widths)
    index.add(np.arange(len(items)), items.numpy(), threads=threads)

    def for_k(k: int) -> Search:
        def search(users: Tensor, width: int) -> NDArray[np.int64]:
            index.expansion_search = width
            return index.search(users.numpy(), k, threads=threads).keys.astype(np.int64)

        return search

    return for_k


def measured(
    indexes: dict[str, Callable[[int], Search]], users: Tensor, exact: NDArray[np.int64], options: Options
) -> dict[str, float]:
    """Each index's width, recall and users a second at the recall wanted, and the ratio of their seconds."""
    k, figures, ways = exact.shape[1], dict[str, float](), dict[str, Callable[[Tensor], object]]()
    for name, for_k in indexes.items():
        search = for_k(k)
        for width in (each for each in WIDTHS if each >= k):
            found = recall(search(users, width), exact)
            if found >= options.recall:
                break
        figures |= {f"{name}_width": width, f"{name}_recall": round(found, 4)}
        ways[name] = lambda block, search=search, width=width: search(block, width)  # type: ignore[misc]
    blocks = users.split(-(-len(users) // 4))
    seconds = in_turn(ways, blocks, rounds=3)
    figures |= {f"{name}_users_per_s": round(len(blocks[0]) / each, 1) for name, each in seconds.items()}
    if len(seconds) == 2:
        figures["ratio"] = round(seconds["usearch"] / seconds["faiss"], 3)
    return figures


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Mean share of the exact best among those found."""
    return float(np.mean([len(np.intersect1d(*each)) / exact.shape[1] for each in zip(found, exact, strict=True)]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
