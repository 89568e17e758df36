"""The links of RippleNet's knowledge graph of films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from recsys.data.errors import DataError

PERSON = ("director", "star", "writer")
"""Relations whose tails are of one node type: a film's writer may have directed another."""
RELATIONS = ("country", "director", "genre", "language", "rating", "star", "writer")

Ints = NDArray[np.int64]


def read_graph(folder: Path) -> tuple[dict[int, int], dict[str, tuple[Ints, Ints]]]:
    """MovieLens id -> entity, and each relation's heads and tails [n], sorted.

    Raises:
        DataError: a relation that is none of `RELATIONS`, or one of them without a link.
    """
    pairs = _read(folder / "item_index2entity_id.txt", {"film": pa.int64(), "entity": pa.int64()})
    links = _read(folder / "kg.txt", {"head": pa.int64(), "relation": pa.string(), "tail": pa.int64()})
    names = np.array([name.removeprefix("film.film.") for name in links["relation"].to_pylist()])
    if set(names) != set(RELATIONS):
        raise DataError(f"{folder / 'kg.txt'} has the relations {sorted(set(names))}; it needs {list(RELATIONS)}")
    ends = np.stack([links["head"].to_numpy(), links["tail"].to_numpy()])
    triples = {}
    for name in RELATIONS:
        heads, tails = np.unique(ends[:, names == name], axis=1)
        triples[name] = heads, tails
    return dict(zip(pairs["film"].to_pylist(), pairs["entity"].to_pylist(), strict=True)), triples


def _read(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """A file of columns without a header, separated by tabs."""
    try:
        return csv.read_csv(
            path,
            csv.ReadOptions(column_names=list(columns)),
            csv.ParseOptions(delimiter="\t"),
            csv.ConvertOptions(column_types=columns),
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not RippleNet's ({', '.join(columns)}): {error}") from error


def shuffled(triples: dict[str, tuple[Ints, Ints]]) -> dict[str, tuple[Ints, Ints]]:
    """As many links, of which each end has as many as before, but to others at random."""
    rng = np.random.default_rng(0)
    return {name: (heads, rng.permutation(tails)) for name, (heads, tails) in triples.items()}


def attributes_of(films: list[int], triples: dict[str, tuple[Ints, Ints]]) -> pa.Table:
    """A row a film: its id, and of each relation the list of its tails."""
    ids = np.array(films)
    columns = {"item_id": pa.array(ids)}
    for name, (heads, tails) in triples.items():
        starts, ends = (np.searchsorted(heads, ids, side=side) for side in ("left", "right"))
        columns[name] = pa.array([tails[start:end] for start, end in zip(starts, ends, strict=True)])
    return pa.table(columns)
