"""The snapshots that a graph's anchors are read from: pinned when its training begins, so that it goes on with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from embedding_store import EmbeddingStore, Snapshot, StoreError
from recsys.atomic import write_json
from recsys.config import GraphConfig
from recsys.data.anchors import Anchors
from recsys.data.errors import DataError
from recsys.data.triples import Graph, Triples
from recsys.mistakes import meant
from recsys.train.distributed import Environment, barrier

PINS = "anchors.json"
"""In the folder of a training: node type -> version of its series."""


def newest_anchors(config: GraphConfig, store: str | Path, as_of: int | None = None) -> dict[str, Snapshot]:
    """The newest snapshots that were not refused of the series that hold a graph's anchors.

    Args:
        config: names them.
        store: the run's, a path or URL.
        as_of: no later ones, ms; None: whatever there is.

    Returns:
        node type -> snapshot.

    Raises:
        DataError: a series is not there, has no such snapshot, or they are not of one space.
    """
    opened, found = EmbeddingStore(store), dict[str, Snapshot]()
    for name, series in config.anchors.items():
        there = opened.list()
        if series not in there:
            raise DataError(
                f"graph.anchors.{name} is {series!r}, which {store} lacks{meant(series, there)}; it has: "
                f"{', '.join(there) or 'nothing'}. Publish it first: put the upstream that does in front of this one"
            )
        try:
            versions = opened.series(series)
            found[name] = versions.latest(refused=False) if as_of is None else versions.as_of(as_of)
        except StoreError as error:
            raise DataError(f"graph.anchors.{name}: {error}") from error
    spaces = {snapshot.space for snapshot in found.values()}
    if len(spaces) > 1:
        told = ", ".join(f"{x.series} in {x.space!r}" for x in found.values())
        raise DataError(
            f"graph.anchors are of {len(spaces)} spaces, {told}: one map brings them to the graph; name series of one "
            "upstream, published together"
        )
    return found


def pin_anchors(
    config: GraphConfig, store: str | Path, folder: Path, environment: Environment, as_of: int | None = None
) -> dict[str, Snapshot]:
    """The same, but those that the training in `folder` began with, if it has. A collective where there are anchors.

    Raises:
        DataError: as `newest_anchors`, or a version that the training began with is gone.
    """
    if not config.anchors:
        return {}
    record = folder / PINS
    if environment.is_main and not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {name: x.version for name, x in newest_anchors(config, store, as_of).items()})
    barrier()
    opened, pinned = EmbeddingStore(store), json.loads(record.read_text())
    try:
        return {name: opened.series(series).version(pinned[name]) for name, series in config.anchors.items()}
    except (StoreError, KeyError) as error:
        raise DataError(
            f"{record} names the anchors that this training began with, which {store} has no longer ({error}): delete "
            f"{folder} to begin again"
        ) from error


def load_anchors(pins: Mapping[str, Snapshot], graph: Graph, links: Triples) -> Anchors:
    """The anchors of these snapshots, for links that have ids yet.

    Raises:
        DataError: a node type and its series have no id in common.
    """
    anchors = Anchors({name: snapshot.load() for name, snapshot in pins.items()}, graph, links)
    for name, ids in anchors.unlinked().items():
        if len(ids) == len(anchors.ids()[name]):
            raise DataError(
                f"graph.anchors.{name}: none of the {len(ids):,} ids of series {pins[name].series!r} is linked as "
                f"{name!r}: name a series of the same ids"
            )
    return anchors
