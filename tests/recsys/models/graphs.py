"""A graph whose links are known: entities of three types in clusters, linked where the clusters say so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.data.triples import Graph, Triples

CLUSTERS = 4
COUNTS = {"user": 40, "item": 48, "author": 8}
RELATIONS = (("likes", "user", "item", 0), ("made_by", "item", "author", 0), ("avoids", "user", "author", 1))
"""Name, head, tail, and by how many clusters the tail's is ahead of the head's."""


def planted_graph() -> Graph:
    """The tables have three rows that no entity has, in front."""
    types = tuple(COUNTS)
    return Graph(
        types=types,
        rows=tuple(count + 3 for count in COUNTS.values()),
        entities=tuple(np.arange(3, count + 3) for count in COUNTS.values()),
        relations=tuple(name for name, *_ in RELATIONS),
        ends=np.array([[types.index(head), types.index(tail)] for _, head, tail, _ in RELATIONS]),
    )


def planted_links(share: float, seed: int = 0) -> tuple[Triples, Triples]:
    """This share of all true links, shuffled, and the rest of them."""
    parts = []
    for number, (_, head, tail, ahead) in enumerate(RELATIONS):
        heads, tails = (x.ravel() for x in np.meshgrid(np.arange(COUNTS[head]), np.arange(COUNTS[tail])))
        true = (heads + ahead) % CLUSTERS == tails % CLUSTERS
        parts.append(links(heads[true] + 3, np.full(true.sum(), number), tails[true] + 3))
    every = Triples.join(parts)
    order = np.random.default_rng(seed).permutation(len(every))
    cut = int(share * len(every))
    return every.take(order[:cut]), every.take(order[cut:])


def links(heads: NDArray, relations: NDArray, tails: NDArray) -> Triples:
    """Links that weigh 1."""
    return Triples(heads.astype(np.int64), relations.astype(np.int64), tails.astype(np.int64), np.ones(len(heads), "f4"))
