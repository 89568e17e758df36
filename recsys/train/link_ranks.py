"""How well links are found: each true tail among all entities that could be it, each true head likewise, filtered.

Filtered (Bordes et al. 2013): other answers that are known to be true count neither for nor against. Ties count by
their mean rank: among equals the true one is in the middle, so that a model that scores all the same gets no credit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.triples import Graph, Triples
from recsys.train.heartbeat import beat

Ints = NDArray[np.int64]
QUERIES = 1024
"""Links of a relation that are ranked at a time, at most."""


class Scorer(Protocol):
    """Scores of all entities that could be the other end."""

    def __call__(self, relation: int, known: Tensor, *, backwards: bool) -> Tensor:
        """Of the entities of the tails' node type, in the graph's order, float [n, E]; `backwards` of the heads'.

        Args:
            relation: of all n links.
            known: int64 [n], rows of their heads, or of their tails; on the CPU.
            backwards: whether heads are asked for.
        """


@dataclass(frozen=True)
class LinkRanks:
    """Filtered ranks of N links, 1 is best; halves where others tie."""

    tails: NDArray[np.float64]
    """[N], of the tail among all that it could be."""
    heads: NDArray[np.float64]
    """[N]"""

    @property
    def both(self) -> NDArray[np.float64]:
        """[2 N]"""
        return np.concatenate((self.tails, self.heads))

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, heads and tails; NaN without links."""
        return float((1 / self.both).mean()) if len(self.tails) else float("nan")

    def hits(self, most: int) -> float:
        """Share of ranks up to `most`; NaN without links."""
        return float((self.both <= most).mean()) if len(self.tails) else float("nan")

    def record(self) -> dict[str, float]:
        """MRR and Hits@1, 3, 10, by the names they are known by."""
        return {"mrr": self.mrr, **{f"hits@{most}": self.hits(most) for most in (1, 3, 10)}}


class KnownLinks:
    """All links that are known to be true, by what is asked.

    Args:
        triples: of every part, those that are ranked too; in any order, any number of times.
        graph: what they are links of.
    """

    def __init__(self, triples: Triples, graph: Graph) -> None:
        self._rows = max(graph.rows, default=0)
        self._keys, self._answers = [], []
        for known, answer in ((triples.heads, triples.tails), (triples.tails, triples.heads)):
            keys = triples.relations.astype(np.int64) * self._rows + known
            order = np.argsort(keys, kind="stable")
            self._keys.append(keys[order])
            self._answers.append(answer[order])

    def answers(self, relation: int, known: Ints, *, backwards: bool) -> tuple[Ints, Ints]:
        """Every true answer to n questions: the number of the question and the row of the entity, int64 [K] each."""
        keys, wanted = self._keys[backwards], relation * self._rows + known
        first, end = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")
        counts = end - first
        question = np.repeat(np.arange(len(known)), counts)
        at = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        return question, self._answers[backwards][at]


def rank_links(score: Scorer, triples: Triples, known: KnownLinks, graph: Graph) -> LinkRanks:
    """Rank both ends of these links among all entities of their node type.

    Memory: the scores of at most QUERIES links.

    Args:
        score: as `Scorer` says.
        triples: the links.
        known: what is left out, but for the link itself.
        graph: what they are links of.

    Raises:
        ValueError: a score is NaN, or a link's end is not among the graph's entities.
    """
    ranks = np.zeros((2, len(triples)))
    for relation, links in _by_relation(triples):
        ends = (triples.heads[links], triples.tails[links])
        for backwards in (False, True):
            here, there = ends[backwards], ends[not backwards]
            entities = graph.entities[graph.ends[relation, int(not backwards)]]
            scores = score(relation, torch.from_numpy(here), backwards=backwards)
            question, answer = known.answers(relation, here, backwards=backwards)
            columns = (_columns(entities, there), _columns(entities, answer))
            truth, hidden = (torch.from_numpy(x).to(scores.device) for x in columns)
            asked = torch.from_numpy(question).to(scores.device)
            ranks[int(backwards), links] = mean_ranks(scores, truth, asked, hidden).cpu().numpy()
            beat()
    return LinkRanks(*ranks)


def mean_ranks(
    scores: Tensor,  # float [n, E], changed in place
    truth: Tensor,  # int64 [n], the column of the true answer
    asked: Tensor,  # int64 [K], the row of an answer that is known
    hidden: Tensor,  # int64 [K], its column
) -> Tensor:  # float64 [n]
    """The rank of the true answer among those that are not known to be true, the mean one of those that tie with it.

    Raises:
        ValueError: a score is NaN.
    """
    if scores.numel() and bool(scores.amax().isnan()):
        raise ValueError("a score is NaN: lower the learning rates of the model that is evaluated")
    true = scores.gather(1, truth.unsqueeze(1))  # [n, 1]
    scores[asked, hidden] = float("-inf")
    scores.scatter_(1, truth.unsqueeze(1), true)
    above, beside = (scores > true).sum(1), (scores >= true).sum(1)  # itself is beside itself
    return (above + beside + 1).double() / 2


def _by_relation(triples: Triples) -> Iterator[tuple[int, Ints]]:
    """Each relation, and the numbers of at most QUERIES of its links."""
    order = np.argsort(triples.relations, kind="stable")
    relations, first = np.unique(triples.relations[order], return_index=True)
    for relation, links in zip(relations.tolist(), np.split(order, first[1:]), strict=False):
        for begin in range(0, len(links), QUERIES):
            yield relation, links[begin : begin + QUERIES]


def _columns(entities: Ints, rows: Ints) -> Ints:
    """Where rows are among the entities, which ascend."""
    at = np.searchsorted(entities, rows)
    found = (at < len(entities)) & (entities[np.minimum(at, len(entities) - 1)] == rows)
    if not found.all():
        raise ValueError(f"row {rows[~found][0]} is not among the graph's entities; let it have the rows of every link")
    return at
