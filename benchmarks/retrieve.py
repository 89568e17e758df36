"""Retrieval: exact top-k beside faiss's flat index, and HNSW's speed at its recall.

    python -m benchmarks.retrieve

Vectors of unit length about some centres over a temperature of 0.1, with a prior after Zipf as the last dimension; all
in this process, each with as many threads as torch has. Exact and flat take turns, a block of users each; `ratio` is
flat's seconds over exact's: above 1 exact is faster.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks.common import in_turn, print_record
from recsys.evaluate.nearest import nearest
from recsys.retrieval import approximate
from recsys.retrieval.manifest import Kind

_NOBODY = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    items: int = 1_000_000
    users: int = 10_000
    """That are answered, in blocks."""
    block: int = 2_000
    """Users that are answered at once; of fewer than a thousand faiss's flat index makes no matrix product."""
    dim: int = 128
    """Of the vectors; the prior is one more."""
    k: int = 100
    centres: int = 1_000
    """That the vectors lie about."""
    kinds: tuple[Kind, ...] = ("hnsw",)
    """Indexes that are measured beside exact and flat."""
    threads: int = 0
    """0: as many as there are cores."""


def main(options: Options) -> None:
    """Measure."""
    if options.threads:
        torch.set_num_threads(options.threads)
    users, items = vectors(options)
    figures: dict[str, float] = {"threads": torch.get_num_threads(), **exact(users, items, options)}
    for kind in options.kinds:
        figures |= indexed(kind, users, items, options)
    sizes = {name: getattr(options, name) for name in ("items", "users", "dim", "k", "centres")}
    print_record("retrieve", {**sizes, **figures})


def vectors(options: Options) -> tuple[Tensor, Tensor]:
    """Queries float32 [U, D + 1] and items float32 [N, D + 1]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(options.centres, options.dim, generator=generator)

    def about(count: int) -> Tensor:
        near = centres[torch.randint(options.centres, (count,), generator=generator)]
        return F.normalize(near + 0.5 * torch.randn(count, options.dim, generator=generator))

    prior = -torch.arange(1.0, options.items + 1).log()[torch.randperm(options.items, generator=generator)]
    items = torch.cat([about(options.items) / 0.1, (prior - prior.min())[:, None]], dim=1)
    return torch.cat([about(options.users), torch.ones(options.users, 1)], dim=1), items


def exact(users: Tensor, items: Tensor, options: Options) -> dict[str, float]:
    """Users a second of exact retrieval and of faiss's flat index."""
    index = approximate.build(items.numpy(), "flat", lambda _: None)
    ways = {
        "exact": lambda block: nearest(block, items, options.k),
        "flat": lambda block: approximate.search(index, "flat", block, options.k, _NOBODY),
    }
    seconds = in_turn(ways, users.split(options.block))
    speeds = {f"{name}_users_per_s": round(min(options.block, len(users)) / each, 1) for name, each in seconds.items()}
    return {**speeds, "ratio": round(seconds["flat"] / seconds["exact"], 3)}


def indexed(kind: Kind, users: Tensor, items: Tensor, options: Options) -> dict[str, float]:
    """Seconds to build an index, users a second, and how much of what is exact it finds."""
    start = time.perf_counter()
    index = approximate.build(items.numpy(), kind, lambda _: None)
    built = time.perf_counter() - start
    start = time.perf_counter()
    found = [approximate.search(index, kind, block, options.k, _NOBODY).rows for block in users.split(options.block)]
    speed = len(users) / (time.perf_counter() - start)
    sample = users[: options.block]
    wanted = nearest(sample, items, options.k).rows
    shares = [len(np.intersect1d(*each)) / options.k for each in zip(found[0], wanted, strict=True)]
    figures = {"build_s": round(built, 1), "users_per_s": round(speed, 1), "recall": round(float(np.mean(shares)), 4)}
    return {f"{kind}_{name}": figure for name, figure in figures.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
