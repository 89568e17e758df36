"""Links that the columns of Parquet files are: relations as a config declares them, read into triples of ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config.graph import RelationConfig
from recsys.data.columns import NULL, NUMBER
from recsys.data.ends import End, check_links
from recsys.data.errors import DataError
from recsys.data.footers import open_file
from recsys.data.sizes import room_for
from recsys.data.strings import ColumnReader
from recsys.data.triples import Graph, Ints, Triples
from recsys.mistakes import collecting, tell

_ROWS = 65_536
"""Rows that are read at once."""


def read_links(
    relations: Sequence[RelationConfig], data: Path, events: Sequence[str] = (), rows: Mapping[str, int] | None = None
) -> tuple[Graph, Triples]:
    """The links of all relations, each once, with its relation's weight times how often it is there.

    Heads and tails are ids here, of which strings are the 64-bit hash (`recsys.data.strings`), and so are the graph's
    `entities`; the rows of its tables are what so many ids need. `NodeVocabulary.locate` gives ids their rows.

    Memory: 32 bytes for every link that is read, twice over while they are sorted.

    Args:
        relations: what to read, in the order of their numbers.
        data: folder that the files lie below.
        events: patterns of the files of relations that name none.
        rows: node type -> rows of its table, where a training before counted them, see `Graph.sizes`.

    Raises:
        DataError: a sentence for each thing that is wrong: no relation, files that are not there or cannot be read, a
            column that is missing or holds no ids, two ends that are lists, a node type whose ids are integers here and
            strings there, a `where` that is not 0 or 1, a relation without a link.
    """
    parts, (files, ends) = list[Triples](), check_links(relations, data, events)
    with collecting() as mistakes:
        for number, relation in enumerate(relations):
            parts.append(_read_relation(number, relation, [(x, *ends[relation.name, x]) for x in files[relation.name]]))
    if mistakes:
        raise DataError(*mistakes)
    links = Triples.join(parts)
    return _graph(relations, links, rows or {}), links


def declared(relations: Sequence[RelationConfig], rows: Mapping[str, int]) -> Graph:
    """The graph that relations declare, without entities: all that a model needs which is to be loaded.

    Args:
        relations: in the order of their numbers.
        rows: node type -> rows of its table, as `Graph.sizes` of the graph that was trained on has them.
    """
    types = tuple(dict.fromkeys(end.type for each in relations for end in (each.head, each.tail)))
    return Graph(
        types=types,
        rows=tuple(rows[name] for name in types),
        entities=tuple(np.empty(0, np.int64) for _ in types),
        relations=tuple(each.name for each in relations),
        ends=np.array([[types.index(each.head.type), types.index(each.tail.type)] for each in relations]),
    )


def _graph(relations: Sequence[RelationConfig], links: Triples, rows: Mapping[str, int]) -> Graph:
    """The graph of these links; `rows`: of node types that have a table already."""
    names = dict.fromkeys(end.type for each in relations for end in (each.head, each.tail))
    graph = declared(relations, {name: rows.get(name, 0) for name in names})
    heads, tails = graph.ends[links.relations].T
    entities = tuple(
        np.unique(np.concatenate((links.heads[heads == number], links.tails[tails == number])))
        for number in range(len(graph.types))
    )
    counted = tuple(known or room_for(ids) for known, ids in zip(graph.rows, entities, strict=True))
    return replace(graph, entities=entities, rows=counted)


def _read_relation(number: int, relation: RelationConfig, files: Sequence[tuple[Path, End, End]]) -> Triples:
    """Every link of a relation once, weighted."""
    pairs = [pair for file, head, tail in files for pair in _read_file(relation, file, head, tail)]
    heads, tails = (np.concatenate([pair[side] for pair in pairs] or [np.empty(0, np.int64)]) for side in (0, 1))
    if not len(heads):
        why = f", and where {relation.where!r} is 1" if relation.where else ""
        tell(
            DataError(
                f"relation {relation.name!r} has no link in {len(files)} files: there is no row where both "
                f"{relation.head.column!r} and {relation.tail.column!r} have an id{why}. Correct its columns or its "
                "files, or leave it out"
            )
        )
    weights = np.full(len(heads), relation.weight, np.float32)
    return Triples(heads, np.full(len(heads), number), tails, weights).distinct()


def _read_file(relation: RelationConfig, file: Path, head: End, tail: End) -> Iterator[tuple[Ints, Ints]]:
    """Heads and tails of the links in a file, some rows at a time."""
    if NULL in (head.element, tail.element):
        return
    readers = {end.column: ColumnReader(end.kind) for end in (head, tail)}
    columns = list(dict.fromkeys([*readers, *([relation.where] if relation.where else [])]))
    try:
        for piece in open_file(file).iter_batches(batch_size=_ROWS, columns=columns):
            heads, tails = (readers[end.column].read(piece.column(end.column)) for end in (head, tail))
            chosen = _chosen(piece.column(relation.where), relation, file) if relation.where else None
            yield _pairs(heads, tails, chosen)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({error}); write it again, or leave it out") from error


def _chosen(column: pa.Array, relation: RelationConfig, file: Path) -> np.ndarray:
    """Where a column of 0 and 1 is 1, bool [n]; null is 0."""
    values = column.cast(NUMBER, safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    strange = values[(values != 0) & (values != 1)]
    if len(strange):
        raise DataError(
            f"{file}: column {relation.where!r} has the value {strange[0]:g}; it is `where` of relation "
            f"{relation.name!r} and takes 0 and 1. Give the relation a column of these"
        )
    return values == 1


def _pairs(heads: pa.Array, tails: pa.Array, chosen: np.ndarray | None) -> tuple[Ints, Ints]:
    """Both ends of every link in these rows, int64 [K] each. One of the two may be lists."""
    if pa.types.is_list(heads.type):
        found, known = _pairs(tails, heads, chosen)
        return known, found
    there = heads.is_valid().to_numpy(zero_copy_only=False)
    if chosen is not None:
        there &= chosen
    known = heads.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_list(tails.type):
        rows, others = pc.list_parent_indices(tails), pc.list_flatten(tails)
    else:
        rows, others = pa.array(np.arange(len(tails))), tails
    row = rows.filter(others.is_valid()).to_numpy(zero_copy_only=False)
    found = others.drop_null().to_numpy(zero_copy_only=False)
    kept = there[row]
    return known[row[kept]], found[kept]
