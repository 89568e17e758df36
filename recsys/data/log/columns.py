"""What an event is made of: each column, the table that it is read of, and the schema that says what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recsys.config import ConfigError, LogConfig
from recsys.data.log.engine import Connection, number
from recsys.data.log.features import counters, histories
from recsys.data.log.rows import labels
from recsys.data.log.splits import valid_column
from recsys.data.log.tables import Described, table_rows
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import HOUR_MS

COMPUTED = (
    Feature(name="item_age_hours", owner="item", kind="dense"),
    Feature(name="hour", owner="context", kind="id", rows=24),
    Feature(name="weekday", owner="context", kind="id", rows=7),
)
"""Features that are made of a row's time alone, and of the time of its item's first event."""
_LISTED_ROWS, _LISTED_MOST = 16, 1_000_000
"""Rows of a history's table for each item, so many that few share one; of many items fewer, down to two."""

Places = list[tuple[Feature, tuple[str, str]]]


@dataclass(frozen=True)
class Columns:
    """The columns of the events."""

    of: dict[str, tuple[str, str]]
    """Column -> table of the engine and its column there; of all but the time, the labels and what is computed."""
    labels: tuple[str, ...]
    outcomes: tuple[str, ...]
    """Columns that are null where nothing happened."""
    happened: str
    """The label that is 1 where something happened; empty: everywhere."""
    offset: int
    """ms that local time is ahead of UTC."""
    schema: Schema

    def tables(self) -> dict[str, list[str]]:
        """Table -> the columns that are read of it."""
        found: dict[str, list[str]] = {"item_start": ["start"]}
        for table, column in self.of.values():
            found.setdefault(table, []).append(column)
        return found


def columns(connection: Connection, config: LogConfig, described: dict[str, Described]) -> Columns:
    """Every column of the events.

    Args:
        connection: the engine, with `users` and `items`.
        config: what is asked for.
        described: owner -> its features that are columns already.

    Raises:
        ConfigError: two columns of one name.
    """
    users, items = (number(connection, f"SELECT count(*) FROM {table}") for table in ("users", "items"))
    facts: dict[str, Places] = {
        owner: [(feature, (table, prefix + feature.name)) for feature in described[owner].features]
        for owner, table, prefix in (
            ("user", "user_table", ""),
            ("item", "item_table", ""),
            ("context", "events", "x_"),
        )
    }
    found: Places = [
        (Feature(name="user_id", owner="user", kind="id", rows=table_rows(users)), ("users", "user_id")),
        *_lists(config, items),
        *_dense("of_user", "user", [name for name, *_ in counters(config, "user")]),
        *facts["user"],
        (Feature(name="item_id", owner="item", kind="id", rows=table_rows(items)), ("items", "item_id")),
        *_dense("of_item", "item", [name for name, *_ in counters(config, "item")]),
        *(_dense("of_item", "item", ["item_price"]) if config.log.price else []),
        *facts["item"],
    ]
    if config.items and config.items.category:
        found += _dense("of_category", "item", [name for name, *_ in counters(config, "category")])
        pairs = [name for name, *_ in counters(config, "user_category", spans=False)]
        found += _dense("of_pair", "interaction", pairs)
    found += facts["context"]
    times = {f"last_{name}_time": ("of_user", f"last_{name}_time") for name in histories(config)}
    outcomes = tuple(name for name in ("price", "quantity") if getattr(config.log, name))
    features = (*(feature for feature, _ in found), *COMPUTED)
    _check_names(["timestamp", *(feature.name for feature in features), *times, *labels(config), *outcomes])
    return Columns(
        of={feature.name: place for feature, place in found} | times | {name: ("events", name) for name in outcomes},
        labels=labels(config),
        outcomes=outcomes,
        happened="" if config.ratio == 0 else config.row_action,
        offset=round(config.log.utc_offset_hours * HOUR_MS),
        schema=Schema(
            features=features,
            labels=tuple(Label(name=name, valid=valid_column(config, name)) for name in labels(config)),
            outcomes=outcomes,
        ),
    )


def _lists(config: LogConfig, items: int) -> Places:
    rows = max(table_rows(items), min(_LISTED_ROWS * items, _LISTED_MOST))
    return [
        (
            Feature(
                name=f"last_{name}",
                owner="user",
                kind="sequence",
                rows=rows,
                table="history_item",
                max_length=config.features.last,
                time=f"last_{name}_time",
            ),
            ("of_user", f"last_{name}"),
        )
        for name in histories(config)
    ]


def _dense(table: str, owner: str, names: Sequence[str]) -> Places:
    return [(Feature(name=name, owner=owner, kind="dense"), (table, name)) for name in names]


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"the events would have two columns {', '.join(map(repr, twice))}: rename the action in [actions], or "
            "leave the column out of log.context, users.features or items.features, or rename it in the files"
        )
