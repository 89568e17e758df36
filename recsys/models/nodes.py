"""Which id of which node type owns which row: the vocabulary of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.batch import Batch
from recsys.data.convert import table_rows
from recsys.data.triples import Graph, Ints, Triples
from recsys.models.vocabulary import OwnedRows

PUBLISHED = ("user", "item")
"""The node types that have series: those of a batch's users and items."""


class NodeVocabulary(nn.Module):
    """The owners of the rows of each node type's table. Part of a model, and of its checkpoints.

    Empty at first: every id reads the unknown row, the last.

    Args:
        graph: node types and the rows of their tables.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.types = graph.types
        self.tables = nn.ModuleDict({name: OwnedRows(rows) for name, rows in zip(graph.types, graph.rows, strict=True)})

    def admit(self, seen: Mapping[str, Ints]) -> None:
        """Give the new ones among the ids of each node type rows that nobody owns; those there keep theirs.

        Args:
            seen: node type -> int64 [N], in any order; the same on every rank.
        """
        for name, table in self._tables():
            if name in seen:
                table.admit(seen[name])

    def without_row(self, seen: Mapping[str, Ints]) -> dict[str, float]:
        """Node type -> share of these different ids that have no row of their own."""
        return {
            name: float(np.mean(self.find(name, ids) == self._table(name).unknown)) if len(ids) else 0.0
            for name, ids in seen.items()
        }

    def entities(self) -> tuple[Ints, ...]:
        """The rows that some id owns, of each node type, ascending."""
        return tuple(np.flatnonzero(table.get_extra_state().numpy()) for _, table in self._tables())

    def known(self, name: str, ids: Tensor) -> Tensor:  # int64 [N] -> bool [N]
        """Which ids of a node type have a row of their own."""
        return torch.from_numpy(self.find(name, ids.numpy()) != self._table(name).unknown)

    def find(self, name: str, ids: Ints) -> Ints:
        """The rows of ids of a node type, int64 [N] both."""
        table = self._table(name)
        return table.find(ids, table_rows(ids, table.unknown))

    def locate(self, graph: Graph, links: Triples) -> tuple[Graph, Triples]:
        """A graph and its links with rows where they have ids."""
        ends = (links.heads.copy(), links.tails.copy())
        for side, end in enumerate(ends):
            types = graph.ends[links.relations, side]
            for number, name in enumerate(graph.types):
                mine = types == number
                end[mine] = self.find(name, end[mine])
        return replace(graph, entities=self.entities()), replace(links, heads=ends[0], tails=ends[1])

    def resolve(self, batch: Batch) -> Batch:
        """A batch of events, or of entities' own rows, whose `sparse` has nothing but the rows of its users and items.

        Every node type is a key of it, as in a batch of links: in a sharded model the first batch settles for good
        which keys a collection of tables is given. Node types other than PUBLISHED are empty.
        """
        found = {name: self.find(name, ids.numpy()) for name, ids in self._ids(batch) if name in self.types}
        lengths = [np.full(len(batch), int(name in found), np.int32) for name in self.types]
        sparse = KeyedJaggedTensor(
            keys=list(self.types),
            values=torch.from_numpy(
                np.concatenate([np.empty(0, np.int64), *(found[x] for x in self.types if x in found)])
            ),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )
        return replace(batch, sparse=sparse)

    def state(self) -> dict[str, Tensor]:
        """Node type -> who owns each row of its table, int16 [rows]."""
        return {name: table.get_extra_state() for name, table in self._tables()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        for name, table in self._tables():
            table.set_extra_state(state[name])

    def _table(self, name: str) -> OwnedRows:
        table = self.tables[name]
        assert isinstance(table, OwnedRows)
        return table

    def _tables(self) -> Iterator[tuple[str, OwnedRows]]:
        for name, table in self.tables.items():
            assert isinstance(table, OwnedRows)
            yield name, table

    @staticmethod
    def _ids(batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield from zip(PUBLISHED, (batch.user_ids, batch.item_ids), strict=True)
