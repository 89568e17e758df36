"""A graph whose links are known: entities of three types in clusters, linked where the clusters say so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.data.triples import Graph, Triples

CLUSTERS = 4
COUNTS = {"user": 40, "item": 48, "author": 8}
RELATIONS = (("likes", "user", "item"), ("made_by", "item", "author"), ("avoids", "user", "author"))
"""Name, head, tail. The last one leads to the next cluster, round and round; the others to the same."""


def planted_graph() -> Graph:
    """The tables have three rows that no entity has, in front."""
    types = tuple(COUNTS)
    return Graph(
        types=types,
        rows=tuple(count + 3 for count in COUNTS.values()),
        entities=tuple(np.arange(3, count + 3) for count in COUNTS.values()),
        relations=tuple(name for name, _, _ in RELATIONS),
        ends=np.array([[types.index(head), types.index(tail)] for _, head, tail in RELATIONS]),
    )


def planted_links(share: float, seed: int = 0, *, round_and_round: bool = True) -> tuple[Triples, Triples]:
    """This share of all true links, shuffled, and the rest of them. Not `round_and_round`: every relation leads to the
    same cluster. Translations cannot do otherwise: steps that lead from each of four places to the next are 0."""
    parts = []
    for number, (_, head, tail) in enumerate(RELATIONS):
        heads, tails = (x.ravel() for x in np.meshgrid(np.arange(COUNTS[head]), np.arange(COUNTS[tail])))
        ahead = int(round_and_round and number == 2)
        true = (heads + ahead) % CLUSTERS == tails % CLUSTERS
        parts.append(links(heads[true] + 3, np.full(true.sum(), number), tails[true] + 3))
    every = Triples.join(parts)
    order = np.random.default_rng(seed).permutation(len(every))
    cut = int(share * len(every))
    return every.take(order[:cut]), every.take(order[cut:])


def links(heads: NDArray, relations: NDArray, tails: NDArray) -> Triples:
    """Links that weigh 1."""
    return Triples(
        heads.astype(np.int64), relations.astype(np.int64), tails.astype(np.int64), np.ones(len(heads), "f4")
    )
