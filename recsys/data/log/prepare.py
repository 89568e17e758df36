"""The whole way from a raw log to events, stage by stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.atomic import write_json
from recsys.config import LogConfig
from recsys.data.files import replacing_folder
from recsys.data.log.catalogue import write_catalogue
from recsys.data.log.cleaning import Cleaned, clean
from recsys.data.log.columns import columns
from recsys.data.log.engine import Connection, engine, number, one, quoted
from recsys.data.log.features import make_features
from recsys.data.log.negatives import Drawn, add_negatives
from recsys.data.log.reading import read_log
from recsys.data.log.rows import labels, make_rows
from recsys.data.log.splits import NAMES, Splits, split, valid_column
from recsys.data.log.study import write_study
from recsys.data.log.tables import Described, describe_context, join_table
from recsys.data.log.writing import write_events
from recsys.data.schema import Schema
from recsys.progress import Progress

_WORK = ".work"
RECORD = "prepared.json"
"""Name of the file that says what became of the log."""


@dataclass(frozen=True)
class Prepared:
    """What became of a log."""

    cleaned: Cleaned
    repeated: int
    """Rows of an item that its user had a row of before."""
    drawn: Drawn
    splits: Splits
    described: dict[str, Described]
    """Owner -> its features that were columns already."""
    positives: dict[str, tuple[int, int]]
    """Label -> rows where it is 1, and where it exists."""
    catalogue: dict[str, int]
    """Owner -> entities of its table that no event of the upstreams has."""


def prepare_log(config: LogConfig, folder: Path, out: Path) -> Prepared:
    """Write `out` anew: `events/<day>/part-0.parquet`, `schema.toml`, `study.toml` and `prepared.json`; of tables with
    entities that the upstreams' events lack also `users/part-0.parquet` or `items/part-0.parquet`.

    `out` is replaced only when all is written. The same log and config give the same rows in the same order.

    Args:
        config: what is what in the log.
        folder: that its paths are relative to.
        out: folder that is there from an earlier call, or not at all.

    Raises:
        DataError, ConfigError: naming the field or column, the value and the remedy; `out` is then as it was.
    """
    progress = Progress(5)
    with replacing_folder(out) as new:
        work = new / _WORK
        work.mkdir()
        with engine(work, config.log.memory_gb) as connection:
            progress.begin(f"Reading {', '.join(config.log.files)}")
            raw = read_log(connection, config, folder)
            progress.begin("Checking every row")
            cleaned = clean(connection, config, raw, folder)
            described = describe(connection, config, folder)
            found = columns(connection, config, described)
            progress.begin(f"Labels and negatives of {cleaned.events:,} events")
            make_rows(connection, config)
            repeated = number(connection, "SELECT count(*) - count(DISTINCT (u, i)) FROM chosen")
            drawn = add_negatives(connection, config)
            splits = split(connection, config)
            rows = number(connection, "SELECT count(*) FROM rows")
            progress.begin(f"What was known before each of {rows:,} rows")
            make_features(connection, config, work, listed_ids(connection))
            progress.begin(f"Writing {len(splits.parts)} {'days' if splits.by_day else 'splits'} of events")
            write_events(connection, found, splits.parts, new / "events")
            catalogue = write_catalogue(connection, config, found, splits, new)
            positives = {name: _positives(connection, config, name) for name in labels(config)}
        shutil.rmtree(work)
        schema = _with_share(found.schema, config, drawn)
        schema.save(new / "schema.toml")
        prepared = Prepared(cleaned, repeated, drawn, splits, described, positives, catalogue)
        write_study(new / "study.toml", out.name, config, schema, splits, drawn, catalogue)
        write_json(new / RECORD, _record(prepared))
    return prepared


def describe(connection: Connection, config: LogConfig, folder: Path) -> dict[str, Described]:
    """Features that are columns already, of each owner; and of the items since when each is there, and its category."""
    described = {owner: join_table(connection, config, owner, folder) for owner in ("user", "item")}
    described["context"] = describe_context(connection, config)
    connection.execute("CREATE TABLE item_start AS SELECT i, min(t) AS start FROM events GROUP BY i ORDER BY i")
    category = quoted(config.items.category) if config.items and config.items.category else ""
    if category:
        connection.execute(
            f"CREATE TABLE item_category AS SELECT i, dense_rank() OVER (ORDER BY {category}) AS c FROM item_table "
            f"WHERE {category} IS NOT NULL ORDER BY i"
        )
    return described


def listed_ids(connection: Connection) -> NDArray[np.int64]:
    """What stands for each item in the histories: its id, or of a string the hash that readers make of it."""
    ids = connection.execute("SELECT item_id FROM items ORDER BY rowid").fetchnumpy()["item_id"]
    if ids.dtype == np.int64:
        return ids
    from embedding_store import hash_keys  # it brings torch, which only strings need

    return hash_keys(ids.tolist()).numpy()


def _with_share(schema: Schema, config: LogConfig, drawn: Drawn) -> Schema:
    """The schema with the share of all items at hand that the negatives are, of the label that has them."""
    share = min(1.0, drawn.odds_factor)
    labels = (replace(x, kept_negatives=share) if x.name == config.row_action else x for x in schema.labels)
    return replace(schema, labels=tuple(labels)) if drawn.ratio else schema


def _positives(connection: Connection, config: LogConfig, label: str) -> tuple[int, int]:
    valid = valid_column(config, label)
    where = f" WHERE {quoted(valid)} = 1" if valid else ""
    ones, rows = one(connection, f"SELECT sum({quoted(label)}), count(*) FROM rows{where}")
    return int(ones or 0), int(rows)


def _record(prepared: Prepared) -> dict[str, Any]:
    """`prepared.json`."""
    cleaned, drawn, splits = prepared.cleaned, prepared.drawn, prepared.splits
    return {
        **json.loads(json.dumps(asdict(cleaned))),
        "repeated": prepared.repeated,
        "negatives": {**asdict(drawn), "odds_factor": drawn.odds_factor},
        "labels": {name: {"positives": ones, "rows": rows} for name, (ones, rows) in prepared.positives.items()},
        "splits": {
            name: {"rows": splits.rows(name), "first": splits.of[name][0].name, "last": splits.of[name][-1].name}
            for name in NAMES
        },
        "tasks": list(splits.tasks),
        "catalogue": prepared.catalogue,
        "tables": {
            owner: {
                "covered": found.covered,
                "left_out": list(found.left_out),
                "features": {feature.name: feature.kind for feature in found.features},
            }
            for owner, found in prepared.described.items()
        },
    }
