"""Anchors: the vectors that another space has for the entities of a graph, drawn for each step of its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding_store import Table
from recsys.data.triples import Graph, Ints, Triples


@dataclass(frozen=True)
class Drawn:
    """K entities that have anchors."""

    rows: list[Ints]
    """Of each node type, in the graph's order: K of all of them together."""
    vectors: Tensor  # float32 [K, A]
    degrees: NDArray[np.float32]  # [K]


@dataclass(frozen=True)
class _Known:
    """The entities of a node type that have anchors."""

    ids: Ints  # [E], ascending
    degrees: Ints  # [E], how many links each has
    linked: NDArray[np.bool_]  # [E], whether it is one of the graph's entities
    table: Table


class Anchors:
    """Which entities have anchors, and how many links each of them has.

    Args:
        tables: node type -> the other space's vectors.
        graph: what the links are of, with ids where a vocabulary will have rows.
        links: those that are trained on.
    """

    def __init__(self, tables: Mapping[str, Table], graph: Graph, links: Triples) -> None:
        self.dim = next((table.dim for table in tables.values()), 0)
        """A, the width of anchors; 0 where there are none."""
        self._known = {name: _known(name, table, graph, links) for name, table in tables.items()}
        self._rows: dict[str, Ints] = {}

    def ids(self) -> dict[str, Ints]:
        """Node type -> the ids that have anchors, int64 [E], ascending."""
        return {name: known.ids for name, known in self._known.items()}

    def unlinked(self) -> dict[str, Ints]:
        """Node type -> those of them that are none of the graph's entities."""
        return {name: known.ids[~known.linked] for name, known in self._known.items()}

    def locate(self, graph: Graph, find: Callable[[str, Ints], Ints]) -> Graph:
        """Give ids their rows: those without one are not drawn.

        Args:
            graph: with rows for entities.
            find: node type and ids -> rows; the last row of a type's table + 1 where an id has none.

        Returns:
            the graph without the entities that it has from here alone: as negatives they would be pushed away by all
            links, and pulled by none.
        """
        entities = list(graph.entities)
        for name, known in self._known.items():
            number = graph.types.index(name)
            rows = find(name, known.ids)
            here = rows < graph.rows[number]
            found = _Known(known.ids[here], known.degrees[here], known.linked[here], known.table)
            self._known[name], self._rows[name] = found, rows[here]
            entities[number] = np.setdiff1d(entities[number], self._rows[name][~found.linked])
        return replace(graph, entities=tuple(entities))

    def draw(self, graph: Graph, random: np.random.Generator, count: int) -> Drawn:
        """As many entities of each node type that has anchors, uniformly; `locate` has been called."""
        rows = [np.empty(0, np.int64) for _ in graph.types]
        vectors, degrees = [torch.empty(0, self.dim)], [np.empty(0, np.float32)]
        for number, name in enumerate(graph.types):
            known = self._known.get(name)
            if known is None or not len(known.ids):
                continue
            chosen = random.integers(len(known.ids), size=count)
            rows[number] = self._rows[name][chosen]
            vectors.append(known.table.lookup(torch.from_numpy(known.ids[chosen]))[0].float())
            degrees.append(known.degrees[chosen].astype(np.float32))
        return Drawn(rows, torch.cat(vectors), np.concatenate(degrees))


def nothing_drawn(graph: Graph) -> Drawn:
    """Where there are no anchors."""
    return Drawn([np.empty(0, np.int64) for _ in graph.types], torch.empty(0, 0), np.empty(0, np.float32))


def _known(name: str, table: Table, graph: Graph, links: Triples) -> _Known:
    """Count the links of a type's ids. Self-links count twice, as both of their ends do."""
    number = graph.types.index(name)
    ids = np.sort(table.ids().numpy())
    degrees = np.zeros(len(ids), np.int64)
    for side, ends in enumerate((links.heads, links.tails)):
        mine = ends[graph.ends[links.relations, side] == number]
        at = np.searchsorted(ids, mine)
        found = at < len(ids)
        found[found] = ids[at[found]] == mine[found]
        degrees += np.bincount(at[found], minlength=len(ids))
    return _Known(ids, degrees, np.isin(ids, graph.entities[number]), table)
