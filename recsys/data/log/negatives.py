"""Items that were at hand and that a user did not choose, drawn beside each row of `chosen`."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config import LogConfig
from recsys.data.log.engine import Connection, number, one, quoted
from recsys.data.log.rows import labels
from recsys.dates import DAY_MS, HOUR_MS

_MOST_ROWS, _MOST_RATIO = 2_000_000, 4
_EVENTS_AROUND, _HOURS = 100, (3, 168)
_ASKED = 200
"""Rows whose pools are counted."""


@dataclass(frozen=True)
class Drawn:
    """How the negatives were drawn."""

    ratio: int
    """How many were asked for, of each row; 0: none, the log has them."""
    hours: int
    """Before and after, that they were at hand in."""
    rows: int
    """How many there are."""
    per_row: float
    """How many of each row there are: fewer where so many were not at hand."""
    pool: float
    """Items that a row's were drawn from, the mean over some rows."""

    @property
    def odds_factor(self) -> float:
        """Odds predicted of the sample, times this: odds of one item among all that were at hand."""
        return self.per_row / max(self.pool - 1, self.per_row, 1) if self.ratio else 1.0


def add_negatives(connection: Connection, config: LogConfig) -> Drawn:
    """Make `rows` of `chosen`: `e`, `u`, `i`, `t` and labels, which are 0 of items that were drawn; by `e`, then `i`.

    The draw is a hash of the row and the seed: the same log has the same negatives.
    """
    chosen = number(connection, "SELECT count(*) FROM chosen")
    ratio = config.ratio
    if ratio is None:
        ratio = min(max(_MOST_ROWS // max(chosen, 1) - 1, 1), _MOST_RATIO)
    if not ratio:
        connection.execute("ALTER TABLE chosen RENAME TO rows")
        return Drawn(0, 0, 0, 0.0, 0.0)
    hours = config.negatives.hours or _hours(connection, chosen)
    span = _popularity(connection, hours) if config.negatives.draw == "popularity" else _uniform(connection, hours)
    # More than are wanted: some are drawn twice, some were chosen. Which item comes is told by the first two places.
    connection.execute(
        "CREATE TABLE drawn AS SELECT e, u, t, i, min(k) AS k FROM ("
        f"SELECT c.e, c.u, c.t, k, low + (hash(c.e, k, {config.negatives.seed}) % (high - low)::UBIGINT)::BIGINT AS at "
        f"FROM (SELECT c.*, w.low, w.high FROM chosen c JOIN around w ON w.h = c.t // {span}) c, "
        f"range({ratio + 2 + ratio // 2}) x(k)) d JOIN pool p ON p.rowid = d.at GROUP BY ALL"
    )
    once = config.actions[config.row_action].once
    unchosen = (
        "SELECT * FROM drawn d WHERE NOT EXISTS (SELECT 1 FROM (SELECT DISTINCT u, i FROM events) s "
        "WHERE s.u = d.u AND s.i = d.i)"
    )
    if not once:
        # The user's last hour of events of the item that is not after the hours around.
        unchosen = (
            f"SELECT d.* FROM (SELECT *, t // {HOUR_MS} + {hours} AS h FROM drawn) d ASOF LEFT JOIN "
            f"(SELECT DISTINCT u, i, t // {HOUR_MS} AS h FROM events) s ON d.u = s.u AND d.i = s.i AND s.h <= d.h "
            f"WHERE s.h IS NULL OR s.h < d.h - {2 * hours}"
        )
    names = [quoted(name) for name in labels(config)]
    connection.execute(
        "CREATE TABLE rows AS SELECT * FROM (SELECT * FROM chosen UNION ALL "
        f"SELECT e, u, i, t, {', '.join('0::TINYINT AS ' + name for name in names)} FROM ({unchosen}) "
        f"QUALIFY row_number() OVER (PARTITION BY e ORDER BY k, i) <= {ratio}) ORDER BY e, i"
    )
    at_hand = one(
        connection,
        "SELECT avg(n) FROM (SELECT c.e, count(DISTINCT p.i) AS n FROM (SELECT * FROM chosen "
        f"ORDER BY hash(e) LIMIT {_ASKED}) c JOIN around w ON w.h = c.t // {span} JOIN pool p "
        "ON p.rowid >= w.low AND p.rowid < w.high GROUP BY c.e)",
    )[0]
    for table in ("drawn", "pool", "around", "chosen"):
        connection.execute(f"DROP TABLE {table}")
    made = number(connection, "SELECT count(*) FROM rows") - chosen
    return Drawn(ratio, hours, made, made / chosen, float(at_hand))


def _hours(connection: Connection, chosen: int) -> int:
    low, high = one(connection, "SELECT min(t), max(t) FROM chosen")
    mean = chosen / ((high - low) / HOUR_MS + 1)
    return min(max(round(_EVENTS_AROUND / mean / 2), _HOURS[0]), _HOURS[1])


def _popularity(connection: Connection, hours: int) -> int:
    """Make `pool`, an item a row, and `around`: for each hour `h` its rows [low, high) of `pool`.

    They are the rows themselves, by time: an item is as likely as others chose it in the hours around.
    """
    connection.execute(f"CREATE TABLE pool AS SELECT i, t // {HOUR_MS} AS h FROM chosen ORDER BY e")
    connection.execute(
        "CREATE TABLE around AS SELECT h, min(low) OVER near AS low, max(high) OVER near AS high "
        "FROM (SELECT h, min(rowid) AS low, max(rowid) + 1 AS high FROM pool GROUP BY h) "
        f"WINDOW near AS (ORDER BY h RANGE BETWEEN {hours} PRECEDING AND {hours} FOLLOWING)"
    )
    return HOUR_MS


def _uniform(connection: Connection, hours: int) -> int:
    """The same by days: every item once on each that it is alive on, from its first event to its last and the hours
    around them."""
    around = hours * HOUR_MS
    connection.execute(
        f"CREATE TABLE pool AS SELECT i, h FROM (SELECT i, (min(t) - {around}) // {DAY_MS} AS begin, "
        f"(max(t) + {around}) // {DAY_MS} AS until FROM events GROUP BY i), "
        "LATERAL (SELECT unnest(range(begin, until + 1)) AS h) "
        f"WHERE h IN (SELECT DISTINCT t // {DAY_MS} FROM chosen) ORDER BY h, i"
    )
    connection.execute(
        "CREATE TABLE around AS SELECT h, min(rowid) AS low, max(rowid) + 1 AS high FROM pool GROUP BY h"
    )
    return DAY_MS
