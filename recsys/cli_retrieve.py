"""The subcommands of retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

# Rooms are imported inside the functions, as in cli.py.


def index(
    *,
    store: str,
    upstream: str,
    out: Path,
    kind: Literal["flat", "hnsw", "ivfpq"] = "hnsw",
    version: int | None = None,
    temperature: float | None = None,
    weight: float = 1.0,
) -> None:
    """Build an index of an upstream's items, u.v / temperature + weight * prior, for `recsys retrieve`.

    Needs the extra `retrieval`. Given again, it does nothing where the index is there.

    Args:
        store: The store to read, say runs/mine/store or s3://bucket/prefix.
        upstream: Whose vectors: series user_NAME, item_NAME and, where it is there, item_NAME.prior.
        out: Folder of the index.
        kind: hnsw: fast, and nearly exact; flat: exact; ivfpq: rounded vectors, a sixteenth of the memory.
        version: Of the vectors; left out: the newest that users and items have.
        temperature: The upstream's loss.temperature; left out: that key's default.
        weight: Of the newest prior; 0: none.
    """
    from recsys.retrieval.command import index as build

    build(store, upstream, out, kind, version, temperature, weight)


def retrieve(
    *,
    store: str,
    upstream: str,
    users: Path,
    k: int,
    out: Path,
    user_id: str = "user_id",
    index: Path | None = None,
    exact: bool = False,
    version: int | None = None,
    temperature: float | None = None,
    weight: float | None = None,
) -> None:
    """Retrieve the k best items for each user of a Parquet file: lists item_id and score, best first.

    A user without a vector has `found` false, and gets the items of the greatest prior; without a prior an empty list.

    Args:
        store: The store to read, say runs/mine/store or s3://bucket/prefix.
        upstream: Whose vectors, as for `recsys index`.
        users: Parquet file with a column of user ids.
        k: How many items.
        out: Parquet file that is written.
        user_id: Name of the column of user ids.
        index: Folder of an index; left out: every item is scored.
        exact: Score every item of the index's versions, to see what the index misses.
        version: Of the vectors; left out: the index's, or the newest that users and items have.
        temperature: Without an index: the upstream's loss.temperature; left out: that key's default.
        weight: Without an index: of the newest prior, 1 if left out; 0: none.
    """
    from recsys.retrieval.command import retrieve as answer

    answer(
        store,
        upstream,
        users,
        k,
        out,
        user_id=user_id,
        index=index,
        exact=exact,
        version=version,
        temperature=temperature,
        weight=weight,
    )


def towers(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    data: Path,
    store: str,
    out: Path,
    ranks: int = 2,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Train a two-tower retrieval model that reads the store's vectors, and publish its own there, as user_NAME and
    item_NAME for `recsys index` and `recsys retrieve`.

    Stopped, it goes on from its last checkpoint when the same command is given again.

    Args:
        config: The model's TOML config (`recsys config towers`).
        data: Folder that the config's paths are relative to.
        store: The store to read and to write, say runs/mine/store or s3://bucket/prefix.
        out: Folder of the work.
        ranks: Processes that train it together.
        set_: Change one value of the config, `path=value`; may be repeated.
    """
    from recsys.checks import check_towers
    from recsys.jobs import warm_up

    settings = check_towers(config, data, store, set_)
    warm_up()
    from recsys.towers import make_towers

    make_towers(settings, data, store, out, ranks)
