"""Links as arrays of triples (head, relation, tail), and the files of the usual benchmarks of knowledge graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.errors import DataError
from recsys.data.hashing import splitmix64

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Graph:
    """Node types and relations."""

    types: tuple[str, ...]
    """T node types."""
    rows: tuple[int, ...]
    """Rows of their tables that ids may own. Behind them is one more, which the others share: the unknown row."""
    entities: tuple[Ints, ...]
    """The rows that are entities, ascending, int64 [E] each: negatives are drawn from them, and links ranked among
    them. Ids, where a graph has been read and no vocabulary has given them rows yet."""
    relations: tuple[str, ...]
    """Names of R relations."""
    ends: Ints
    """int64 [R, 2]: the node types of heads and tails, by number."""

    @property
    def sizes(self) -> dict[str, int]:
        """Node type -> rows of its table."""
        return dict(zip(self.types, self.rows, strict=True))


@dataclass(frozen=True)
class Triples:
    """N links. Heads and tails are rows of the tables of their node types."""

    heads: Ints
    relations: Ints
    tails: Ints
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.heads)

    def take(self, chosen: Ints | NDArray[np.bool_]) -> Triples:
        """Some of them, by number or by mask."""
        return Triples(self.heads[chosen], self.relations[chosen], self.tails[chosen], self.weights[chosen])

    def owned(self, graph: Graph) -> NDArray[np.bool_]:
        """Which links have two ends with a row of their own, not the unknown one of their table."""
        ends, types = np.stack((self.heads, self.tails)), graph.ends[self.relations].T
        own: NDArray[np.bool_] = ends < np.array(graph.rows)[types]
        return own[0] & own[1]

    def by_relation(self) -> Triples:
        """Sorted by relation, otherwise in the order they have."""
        return self.take(np.argsort(self.relations, kind="stable"))

    def share(self, rank: int, world_size: int) -> Triples:
        """Every `world_size`-th link of each relation, from number `rank` on."""
        order = np.argsort(self.relations, kind="stable")
        counts = np.bincount(self.relations[order]) if len(order) else np.zeros(0, np.int64)
        number = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.take(np.sort(order[number % world_size == rank]))

    @staticmethod
    def join(parts: Sequence[Triples]) -> Triples:
        """All of them, one part after the other."""
        return Triples(
            np.concatenate([part.heads for part in parts]),
            np.concatenate([part.relations for part in parts]),
            np.concatenate([part.tails for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def hold_out(self, share: float) -> tuple[Triples, Triples]:
        """The links to train on, and about this share of them to judge a model by. Which these are is a function of
        head, relation and tail alone: the same on every rank and after a restart."""
        draws = splitmix64(self.heads.view(np.uint64) ^ np.uint64(1))
        for each in (self.relations, self.tails):
            draws = splitmix64(draws ^ each.view(np.uint64))
        held = draws < np.uint64(share * 2**64)
        return self.take(~held), self.take(held)

    def distinct(self) -> Triples:
        """Each link once, with the sum of its weights, sorted by relation, head and tail."""
        order = np.lexsort((self.tails, self.heads, self.relations))
        links = self.take(order)
        new = np.ones(len(order), bool)
        for each in (links.heads, links.relations, links.tails):
            new[1:] &= each[1:] == each[:-1]
        new[1:] = ~new[1:]
        first = np.flatnonzero(new)
        weights = np.add.reduceat(links.weights, first) if len(first) else links.weights
        return replace(links.take(first), weights=weights)


def read_openke(folder: Path, parts: Sequence[str] = ("train", "valid", "test")) -> tuple[Graph, list[Triples]]:
    """The triples of a benchmark whose entities are of one type: `<part>2id.txt`, a line with their number, then a line
    `head relation tail` each, integers from 0 on, apart by tabs or spaces.

    Note that the project's files have the relation in the middle, where OpenKE's own have it last.

    Args:
        folder: where the files lie.
        parts: which of them to read.

    Returns:
        the graph of all parts, and the triples of each.

    Raises:
        DataError: a file is missing, its first line is not the number of its triples, a line is not three integers, or
            one of them is negative.
    """
    found = [_read_part(folder / f"{part}2id.txt") for part in parts]
    entities = 1 + max(int(each[:, [0, 2]].max(initial=-1)) for each in found)
    relations = 1 + max(int(each[:, 1].max(initial=-1)) for each in found)
    graph = Graph(
        types=("entity",),
        rows=(entities,),
        entities=(np.arange(entities),),
        relations=tuple(f"relation_{number}" for number in range(relations)),
        ends=np.zeros((relations, 2), np.int64),
    )
    columns = [each.T.copy() for each in found]
    return graph, [Triples(each[0], each[1], each[2], np.ones(each.shape[1], np.float32)) for each in columns]


def _read_part(path: Path) -> Ints:
    """The triples of a file, int64 [N, 3]."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the folder that holds the triples") from error
    first = lines[0].strip() if lines else ""
    if not first.isdecimal() or int(first) != len(lines) - 1:
        raise DataError(
            f"{path}: the first line is {first!r}, but {max(0, len(lines) - 1)} lines follow; it is to be their "
            "number: see whether the file was cut off"
        )
    try:
        rows = np.array([line.split() for line in lines[1:]], np.int64).reshape(len(lines) - 1, 3)
    except (ValueError, OverflowError) as error:
        number = next(at for at, line in enumerate(lines[1:], 2) if not _is_triple(line))
        raise DataError(
            f"{path}: line {number} is {lines[number - 1]!r}; give three integers: head, relation, tail"
        ) from error
    for column, name in enumerate(("head", "relation", "tail")):
        bad = np.flatnonzero(rows[:, column] < 0)
        if len(bad):
            raise DataError(
                f"{path}: line {bad[0] + 2} has {name} {rows[bad[0], column]}; they are numbered from 0 on, so none is "
                "negative: correct the line"
            )
    return rows


def _is_triple(line: str) -> bool:
    parts = line.split()
    return len(parts) == 3 and all(part.lstrip("-").isdecimal() and abs(int(part)) < 2**63 for part in parts)
