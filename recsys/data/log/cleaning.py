"""From `raw` to `events`: rows that cannot be read are named and left out, duplicates dropped, ids numbered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys.config import LogConfig
from recsys.data.errors import DataError
from recsys.data.log.engine import Connection, literal, number, quoted
from recsys.data.log.reading import Raw
from recsys.data.log.values import Value, read_amount, read_id, read_time
from recsys.data.quarantine import allowed

NAMED = 100
"""Bad rows that are kept by name."""
_KINDS = 5
"""Kinds of bad rows, and values of an action, that a message lists."""


@dataclass(frozen=True)
class BadKind:
    """Rows that are bad for one reason."""

    column: str
    """Of the files; empty: the line as a whole."""
    problem: str
    """What is wrong, and the remedy."""
    rows: int


@dataclass(frozen=True)
class Cleaned:
    """What became of the rows of the files."""

    read: int
    """Rows that the files have, lines that are no rows included."""
    bad: tuple[BadKind, ...]
    """The most frequent first."""
    named: tuple[tuple[str, int, str, str, str], ...]
    """File, row (counted from 0), column, value and problem of the first bad rows."""
    ignored: int
    """Rows of actions that the config ignores."""
    duplicates: int
    """Rows that were there before, the same in every column that is read."""
    events: int
    """Rows that are left."""
    users: int
    items: int
    times: str
    """How times were read."""


def clean(connection: Connection, config: LogConfig, raw: Raw, folder: Path) -> Cleaned:
    """Make `users`, `items` and `events`, and drop `raw`.

    `users` has `user_id` and `items` `item_id`, sorted, so that `rowid` is the number that stands for each from here.
    `events` has, in the order of time, `u`, `i`, `t` (ms), `a` (place among the config's actions), and where they are
    named `s` (session, hashed), `price`, `quantity` and the columns `x_`.

    Raises:
        DataError: more bad rows than `max_bad_rows` lets pass, an action column that the config says nothing of, or no
            row at all.
    """
    log = config.log
    ids = {
        role: read_id(
            connection, quoted(role), raw.types[role], text=raw.text, name=getattr(log, role), bad=log.max_bad_rows
        )
        for role in ("user", "item")
    }
    values: dict[str, Value] = {**ids, "time": read_time(connection, raw.types["time"], log, text=raw.text)}
    for role in ("quantity", "price"):
        if role in raw.types:
            values[role] = read_amount(role, raw.types[role])
    for action in config.actions.values():
        if action.column:
            column = f"x_{action.column}"
            values[column] = read_amount(quoted(column), raw.types[column], least=None)
    if log.action:
        values["action"] = _action(config)
    ignored = f"action::VARCHAR IN ({', '.join(map(literal, log.ignore))})" if log.ignore else "false"
    _check(connection, values, ignored)
    read, bad, named = _judge(connection, config, folder)
    _keep(connection, values, raw, ignored)
    events, kept = number(connection, "SELECT count(*) FROM events"), number(connection, "SELECT count(*) FROM good")
    connection.execute("DROP TABLE good")
    if not events:
        raise DataError(
            f"no row of {', '.join(log.files)} is left: of {read:,} rows {sum(kind.rows for kind in bad):,} are bad "
            "and the others ignored; correct log.files or actions"
        )
    return Cleaned(
        read=read,
        bad=bad,
        named=named,
        ignored=read - kept - sum(kind.rows for kind in bad),
        duplicates=kept - events,
        events=events,
        users=number(connection, "SELECT count(*) FROM users"),
        items=number(connection, "SELECT count(*) FROM items"),
        times=values["time"].note,
    )


def _action(config: LogConfig) -> Value:
    branches = [
        f"WHEN {literal(config.value(name))} THEN {place}"
        for place, name in enumerate(config.actions)
        if not config.actions[name].column
    ]
    sql = f"CASE action::VARCHAR {' '.join(branches)} END"
    problem = "this action is not declared: name it in [actions], or in log.ignore"
    return Value(sql, f"WHEN {sql} IS NULL THEN {literal(problem)}")


def _check(connection: Connection, values: Mapping[str, Value], ignored: str) -> None:
    """Make `bad`: number in `raw`, role, value and problem of each row that cannot be read, by the first problem."""
    problems = {role: f"CASE {value.problems} END" for role, value in values.items()}
    found = ", ".join(f"{problem} AS {quoted('p_' + role)}" for role, problem in problems.items())
    roles = " ".join(f"WHEN {quoted('p_' + role)} IS NOT NULL THEN {literal(role)}" for role in problems)
    shown = " ".join(f"WHEN {quoted('p_' + role)} IS NOT NULL THEN {quoted(role)}::VARCHAR" for role in problems)
    first = ", ".join(quoted("p_" + role) for role in problems)
    connection.execute(
        f"CREATE TABLE bad AS SELECT n, filename, CASE {roles} END AS role, CASE {shown} END AS value, "
        f"coalesce({first}) AS problem FROM (SELECT rowid AS n, *, {found} FROM raw WHERE NOT coalesce({ignored}, "
        f"false)) WHERE coalesce({first}) IS NOT NULL"
    )


def _judge(
    connection: Connection, config: LogConfig, folder: Path
) -> tuple[int, tuple[BadKind, ...], tuple[tuple[str, int, str, str, str], ...]]:
    """Rows of the files, and the bad ones among them. Raises DataError where they are too many."""
    files = {
        name: [first, rows]
        for name, first, rows in connection.execute(
            "SELECT filename, min(rowid), count(*) FROM raw GROUP BY filename ORDER BY 2"
        ).fetchall()
    }
    broken = connection.execute("SELECT file_path, line, error_message FROM broken ORDER BY 1, 2").fetchall()
    for name, _, _ in broken:
        files.setdefault(name, [0, 0])[1] += 1
    kinds = [
        BadKind(_column(config, role), problem, rows)
        for role, problem, rows in connection.execute(
            "SELECT role, problem, count(*) FROM bad GROUP BY ALL ORDER BY 3 DESC, 1, 2"
        ).fetchall()
    ]
    rows = connection.execute(f"SELECT filename, n, role, value, problem FROM bad ORDER BY n LIMIT {NAMED}").fetchall()
    named = [
        (_below(name, folder), n - files[name][0], _column(config, role), str(value), problem)
        for name, n, role, value, problem in rows
    ]
    if broken:
        problem = "the line is no row of this file: correct it, or drop it"
        kinds.append(BadKind("", problem, len(broken)))
        lines = [(_below(name, folder), line, "", " ".join(why.split()), problem) for name, line, why in broken]
        named = [*named, *lines][:NAMED]
    read = sum(rows for _, rows in files.values())
    count, limit = sum(kind.rows for kind in kinds), 0
    if read:
        limit = allowed(config.log.max_bad_rows, [rows for _, rows in files.values() if rows])
    if count > limit:
        raise DataError(_refusal(connection, config, named[0], kinds, read, limit))
    return read, tuple(kinds), tuple(named)


def _refusal(
    connection: Connection,
    config: LogConfig,
    first: tuple[str, int, str, str, str],
    kinds: list[BadKind],
    read: int,
    limit: int,
) -> str:
    file, row, column, value, problem = first
    where = f"{file}: column {column!r}, row {row}: {value!r}: {problem}" if column else f"{file}, line {row}: {value}"
    listed = "; ".join(
        f"{kind.rows:,} x {kind.column or 'a line'}: {kind.problem.split(':')[0]}" for kind in kinds[:_KINDS]
    )
    actions = connection.execute(
        f"SELECT value, count(*) FROM bad WHERE role = 'action' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_KINDS}"
    ).fetchall()
    strays = f" Undeclared are {', '.join(f'{name} ({rows:,})' for name, rows in actions)}." if actions else ""
    return (
        f"{where}. {sum(kind.rows for kind in kinds):,} of {read:,} rows cannot be used ({listed}), max_bad_rows = "
        f"{config.log.max_bad_rows:g} lets {limit:,} pass.{strays} Correct them, or raise log.max_bad_rows to leave "
        "them out"
    )


def _keep(connection: Connection, values: Mapping[str, Value], raw: Raw, ignored: str) -> None:
    """Make `good`, the rows that can be read, then `users`, `items` and `events` of them without duplicates."""
    columns = [
        f"{values['user'].sql} AS user_id",
        f"{values['item'].sql} AS item_id",
        f"{values['time'].sql} AS t",
        f"({values['action'].sql if 'action' in values else '0'})::UTINYINT AS a",
        *(["hash(nullif(session::VARCHAR, '')) AS s"] if "session" in raw.types else []),
        *(f"{values[role].sql} AS {role}" for role in ("price", "quantity") if role in values),
    ]
    if "session" in raw.types:
        columns[4] = "CASE WHEN nullif(session::VARCHAR, '') IS NOT NULL THEN hash(session::VARCHAR) END AS s"
    for name, kind in raw.types.items():
        if name.startswith("x_"):
            column = quoted(name)
            sql = values[name].sql if name in values else f"nullif({column}, '')" if kind == "VARCHAR" else column
            columns.append(f"{sql} AS {column}")
    connection.execute(
        f"CREATE TABLE good AS SELECT {', '.join(columns)}, rowid AS n FROM raw WHERE NOT coalesce({ignored}, false) "
        "AND rowid NOT IN (SELECT n FROM bad)"
    )
    connection.execute("DROP TABLE raw")
    connection.execute("CREATE TABLE distinct_rows AS SELECT * EXCLUDE (n), min(n) AS n FROM good GROUP BY ALL")
    for table, column in (("users", "user_id"), ("items", "item_id")):
        connection.execute(f"CREATE TABLE {table} AS SELECT DISTINCT {column} FROM distinct_rows ORDER BY {column}")
    connection.execute(
        "CREATE TABLE events AS SELECT users.rowid::INTEGER AS u, items.rowid::INTEGER AS i, "
        "d.* EXCLUDE (user_id, item_id, n) FROM distinct_rows d JOIN users USING (user_id) JOIN items USING (item_id) "
        "ORDER BY t, u, i, a, n"
    )
    connection.execute("DROP TABLE distinct_rows")


def _column(config: LogConfig, role: str) -> str:
    """Name in the files of a column of `raw`."""
    return role.removeprefix("x_") if role.startswith("x_") else getattr(config.log, role)


def _below(name: str, folder: Path) -> str:
    path = Path(name)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else name
