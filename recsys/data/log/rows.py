"""The rows that are learned from: events of the action that makes them, their labels, and negatives beside them."""

from __future__ import annotations

from recsys.config import LogConfig
from recsys.config.log import SESSION
from recsys.data.errors import DataError
from recsys.data.log.engine import Connection, number, quoted
from recsys.dates import span_ms


def done(config: LogConfig, name: str) -> str:
    """SQL that says of a row of `events` whether this action was done there."""
    action = config.actions[name]
    if action.column:
        return f"coalesce({quoted('x_' + action.column)} >= {action.at_least!r}, false)"
    return f"a = {list(config.actions).index(name)}"


def labels(config: LogConfig) -> tuple[str, ...]:
    """Names of the label columns: the rows' own action first, where it is one."""
    follow = tuple(name for name, action in config.actions.items() if not action.makes_rows)
    return (*(() if config.ratio == 0 else (config.row_action,)), *follow)


def make_rows(connection: Connection, config: LogConfig) -> None:
    """Make `chosen`: `e` (row of `events`), `u`, `i`, `t` and the labels of each event that makes a row, by time.

    Raises:
        DataError: no event makes a row.
    """
    row = done(config, config.row_action)
    connection.execute(
        "CREATE TABLE first AS SELECT min(rowid) AS e FROM events WHERE "
        + row
        + (" GROUP BY u, i" if config.actions[config.row_action].once else " GROUP BY rowid")
    )
    columns = []
    for name in labels(config):
        action = config.actions[name]
        if name == config.row_action:
            columns.append(f"1::TINYINT AS {quoted(name)}")
        elif action.column:
            columns.append(f"({done(config, name)})::TINYINT AS {quoted(name)}")
        else:
            table = quoted(f"credited_{name}")
            connection.execute(f"CREATE TABLE {table} AS {_credited(config, name)}")
            columns.append(f"(rowid IN (SELECT e FROM {table}))::TINYINT AS {quoted(name)}")
    connection.execute(
        f"CREATE TABLE chosen AS SELECT rowid AS e, u, i, t, {', '.join(columns)} FROM events "
        "WHERE rowid IN (SELECT e FROM first) ORDER BY e"
    )
    if not number(connection, "SELECT count(*) FROM chosen"):
        raise DataError(
            f"no row is of the action {config.value(config.row_action)!r}, actions.{config.row_action}, which makes "
            "the rows: correct its value, or say of it what it follows and let another make them"
        )


def _credited(config: LogConfig, name: str) -> str:
    """The rows that an action is credited to: each of its events to the latest row, in the session or span."""
    within = config.actions[name].within
    session = within == SESSION
    row = "rowid IN (SELECT e FROM first)"
    near = "true" if session else f"t - row_t < {span_ms(within)}"
    return (
        "SELECT DISTINCT row_e AS e FROM (SELECT t, is_row, "
        "last_value(CASE WHEN is_row THEN e END IGNORE NULLS) OVER past AS row_e, "
        "last_value(CASE WHEN is_row THEN t END IGNORE NULLS) OVER past AS row_t "
        f"FROM (SELECT rowid AS e, *, {row} AS is_row FROM events WHERE ({row} OR {done(config, name)})"
        f"{' AND s IS NOT NULL' if session else ''}) "
        f"WINDOW past AS (PARTITION BY u, i{', s' if session else ''} ORDER BY t, is_row DESC, e "
        "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) "
        f"WHERE NOT is_row AND row_e IS NOT NULL AND {near}"
    )
