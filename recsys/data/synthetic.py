"""The embedded default data set: the synthetic market of `recsys.data.market` as events, entity rows and a schema.

    market/schema.toml
    market/events/<YYYY-MM-DD>/surface=<s>/part-0.parquet    one row an impression, sorted by time
    market/users/part-0.parquet, market/items/part-0.parquet one row an entity, as of the end of the upstream days
    market/items/<YYYY-MM-DD>/part-0.parquet                 one row an item that is listed on a day after them
    market/oracle/<YYYY-MM-DD>/part-0.parquet                what a user most likely clicks on a day after them

Histories and counts use events of a strictly earlier time, those of the days before the first among them: the log
begins in the middle of users' lives, and what an upstream reads of a user goes back further than its rows do.

An item is listed on the day before it goes on sale: the rows of `market/items` are of all that are on sale on the first
day after the upstream's, a later day's are of those that are new on the day after it.

The true probabilities are outcomes: a schema that lists one of them as a feature is refused. The oracle's files hold,
for each user with a click on that day, the items on sale of the greatest expected number of clicks, best first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.files import replacing_folder, write_part
from recsys.data.hashing import scramble
from recsys.data.history import PastEvents
from recsys.data.market import (
    AGE_BUCKETS,
    BRANDS,
    CATEGORIES,
    COUNTRIES,
    DAY_ZERO_MS,
    DEVICES,
    DRIFT,
    POSITIONS,
    SURFACES,
    Log,
    Population,
    best_items,
    populate,
    simulate,
    wander,
)
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import DAY_MS, HOUR_MS

FOLDER = "market"
"""Folder of the market within the data folder."""
DAYS = 16
"""Days of events."""
PAST_DAYS = 21
"""Days before them, of which only the histories and counts tell."""
UPSTREAM_DAYS = 7
"""Days 0 .. 6 train the upstreams; the downstream begins after them."""

_USER_SALT, _ITEM_SALT = 1 << 40, 1 << 41
_HISTORY_ROWS = 16_384
_LISTED_BRANDS = 100
_LISTED_BEST = 100


@dataclass(frozen=True, kw_only=True)
class MarketSplit:
    """Glob patterns of event files relative to the data folder, in time order; no two fields share a day."""

    upstream: tuple[str, ...]
    """The first `upstream_days` days, all surfaces."""
    train: tuple[str, ...]
    """The days after them."""
    validation: tuple[str, ...]
    """The day before those of the test."""
    test: tuple[str, ...]
    """The later half of the days after the upstream's, the lesser one of an odd number."""


def market_split(*, days: int = DAYS, upstream_days: int = UPSTREAM_DAYS, surface: int | None = None) -> MarketSplit:
    """How the days are shared out: no downstream row is seen by an upstream, and tests come last.

    Args:
        surface: the downstream's patterns take this surface only (None: all). Upstreams always see all.

    Raises:
        ValueError: fewer than four days follow the upstream's, or there is no such surface.
    """
    _require(upstream_days >= 1, f"upstream_days is {upstream_days}; use 1 or more")
    _require(
        days >= upstream_days + 4,
        f"days is {days}; use at least upstream_days + 4 = {upstream_days + 4} (train, validation and two of test)",
    )
    _require(surface is None or 0 <= surface < SURFACES, f"surface is {surface}; use None or one below {SURFACES}")
    below = "*" if surface is None else f"surface={surface}"
    downstream = tuple(f"{FOLDER}/events/{_date(day)}/{below}/*.parquet" for day in range(upstream_days, days))
    tested, tuned = max(2, len(downstream) // 3), max(1, len(downstream) // 4)
    return MarketSplit(
        upstream=tuple(f"{FOLDER}/events/{_date(day)}/*/*.parquet" for day in range(upstream_days)),
        train=downstream[: -tested - tuned],
        validation=downstream[-tested - tuned : -tested],
        test=downstream[-tested:],
    )


def market_schema() -> Schema:
    """The schema of the market's events. Entity rows hold its user, or item, features."""
    return Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id", rows=65_536),
            Feature(name="country", owner="user", kind="id", rows=1024),
            Feature(name="age_bucket", owner="user", kind="id", rows=AGE_BUCKETS),
            Feature(name="device", owner="user", kind="id", rows=DEVICES),
            Feature(name="user_interest", owner="user", kind="id", rows=CATEGORIES),
            Feature(name="user_impressions", owner="user", kind="dense"),
            Feature(name="user_clicks", owner="user", kind="dense"),
            Feature(name="user_conversions", owner="user", kind="dense"),
            _history("clicked_items", max_length=30),
            _history("converted_items", max_length=20),
            Feature(name="clicked_brands", owner="user", kind="ids", rows=BRANDS, max_length=_LISTED_BRANDS),
            Feature(name="item_id", owner="item", kind="id", rows=16_384),
            Feature(name="category", owner="item", kind="id", rows=CATEGORIES),
            Feature(name="brand", owner="item", kind="id", rows=BRANDS),
            Feature(name="price", owner="item", kind="dense"),
            Feature(name="item_impressions", owner="item", kind="dense"),
            Feature(name="item_clicks", owner="item", kind="dense"),
            Feature(name="item_age_days", owner="item", kind="dense"),
            Feature(name="hour", owner="context", kind="id", rows=24),
            Feature(name="surface", owner="context", kind="id", rows=SURFACES),
            Feature(name="position", owner="context", kind="id", rows=POSITIONS),
            Feature(name="user_item_impressions", owner="interaction", kind="dense"),
        ),
        labels=(Label(name="click"), Label(name="conversion", valid="click")),
        outcomes=("oracle_click", "oracle_conversion"),
    )


def prepare_synthetic(
    out: Path,
    *,
    users: int = 2500,
    items: int = 1000,
    days: int = DAYS,
    past_days: int = PAST_DAYS,
    events_per_day: int = 18_000,
    upstream_days: int = UPSTREAM_DAYS,
    drift: float = DRIFT,
    seed: int = 0,
) -> None:
    """Simulate a market and write it to `out/market`, replacing one that is there only when all is written.

    About a fifth of the impressions are clicked, and one in forty clicks converts. `items` are on sale at a time, and
    one in fourteen of them gives way to a new one each day. `drift` is how far users' tastes move in a day, see
    `market.wander`. Equal arguments give equal data.

    Raises:
        ValueError: a size is too small to hold a market; the message names it.
        DataError: `out/market` is there and is no prepared source.
    """
    for name, value, least in (
        ("users", users, 100),
        ("items", items, 100),
        ("days", days, 1),
        ("past_days", past_days, 0),
        ("events_per_day", events_per_day, 1),
        ("upstream_days", upstream_days, 1),
        ("seed", seed, 0),
    ):
        _require(value >= least, f"{name} is {value}; use {least} or more")
    _require(upstream_days <= days, f"upstream_days is {upstream_days}; use at most days = {days}")
    _require(0 <= drift <= 1, f"drift is {drift}; use a step from 0 to 1")
    rng = np.random.default_rng(seed)
    people = populate(users, items, days, rng, past_days)
    minds = wander(people, past_days + days, rng, drift)
    log = Log.concatenate(list(simulate(people, minds, events_per_day, rng, past_days)))
    columns, day = _Columns(people, log), (log.time - DAY_ZERO_MS) // DAY_MS
    with replacing_folder(Path(out) / FOLDER) as folder:
        market_schema().save(folder / "schema.toml")
        for date, surface in ((d, s) for d in range(days) for s in range(SURFACES)):
            rows = np.flatnonzero((day == date) & (log.surface == surface))
            if len(rows):  # a surface may be quiet on a day of few events
                write_part(columns.events(rows), folder / "events" / _date(date) / f"surface={surface}")
        _write_entities(folder, columns, people, upstream_days, days)
        for date in range(upstream_days, days):
            clicking = np.unique(log.user[log.click & (day == date)])
            best = best_items(people, minds[past_days + date], date, clicking, _LISTED_BEST)
            write_part(columns.best(clicking, best), folder / "oracle" / _date(date))


def _write_entities(folder: Path, columns: _Columns, people: Population, upstream_days: int, days: int) -> None:
    """Users known and items on sale at the end of the upstream days, and the items listed on each day after them."""
    end = DAY_ZERO_MS + upstream_days * DAY_MS
    write_part(columns.users(np.flatnonzero(people.user_days[:, 0] < upstream_days), end), folder / "users")
    arrives, leaves = people.item_days.T
    on_sale = np.flatnonzero((arrives <= upstream_days) & (upstream_days < leaves))
    write_part(columns.items(on_sale, end), folder / "items")
    for date in range(upstream_days, days):
        listed = np.flatnonzero(arrives == date + 1)
        if len(listed):  # a day of a small market may see none
            in_the_evening = DAY_ZERO_MS + (date + 1) * DAY_MS - 1
            write_part(columns.items(listed, in_the_evening), folder / "items" / _date(date))


class _Columns:
    """The columns of events and of entities, as they were known at a time."""

    def __init__(self, people: Population, log: Log) -> None:
        self._people, self._log = people, log
        self._user_ids = scramble(np.arange(len(people.user_taste)), _USER_SALT)
        self._item_ids = scramble(np.arange(len(people.item_taste)), _ITEM_SALT)
        item_ids, brand = self._item_ids[log.item], people.brand[log.item].astype(np.int32)
        self._user_shown = PastEvents(log.user, log.time, item_ids)
        self._user_clicked = PastEvents(log.user, log.time, item_ids, log.click)
        self._user_converted = PastEvents(log.user, log.time, item_ids, log.conversion)
        self._item_shown = PastEvents(log.item, log.time, item_ids)
        self._item_clicked = PastEvents(log.item, log.time, item_ids, log.click)
        self._brand_of_clicked = PastEvents(log.user, log.time, brand, log.click)
        self._pair_shown = PastEvents(self._pair(log.user, log.item), log.time, item_ids)

    def events(self, rows: NDArray[np.int64]) -> pa.Table:
        """One row an impression: features, labels and the oracle's probabilities."""
        log = self._log
        user, item, time = log.user[rows], log.item[rows], log.time[rows]
        return pa.table(
            {
                "timestamp": time,
                **self._of_users(user, time),
                **self._of_items(item, time),
                "hour": (time % DAY_MS // HOUR_MS).astype(np.int32),
                "surface": log.surface[rows].astype(np.int32),
                "position": log.position[rows].astype(np.int32),
                "user_item_impressions": self._pair_shown.count_before(self._pair(user, item), time).astype(np.float32),
                "click": log.click[rows].astype(np.int8),
                "conversion": log.conversion[rows].astype(np.int8),
                "oracle_click": log.oracle_click[rows].astype(np.float32),
                "oracle_conversion": log.oracle_conversion[rows].astype(np.float32),
            }
        )

    def users(self, user: NDArray[np.int64], as_of: int) -> pa.Table:
        """One row a user, with everything before `as_of`."""
        time = np.full(len(user), as_of)
        return pa.table({"timestamp": time, **self._of_users(user, time)})

    def items(self, item: NDArray[np.int64], as_of: int) -> pa.Table:
        """One row an item, with everything before `as_of`."""
        time = np.full(len(item), as_of)
        return pa.table({"timestamp": time, **self._of_items(item, time)})

    def best(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> pa.Table:
        """One row a user with the ids of its row of `item` [N, k], in their order."""
        offsets = np.arange(len(user) + 1, dtype=np.int32) * item.shape[1]
        items = pa.ListArray.from_arrays(pa.array(offsets), pa.array(self._item_ids[item].reshape(-1)))
        return pa.table({"user_id": self._user_ids[user], "items": items})

    def _pair(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
        return user * len(self._item_ids) + item

    def _of_users(self, user: NDArray[np.int64], time: NDArray[np.int64]) -> dict[str, object]:
        people = self._people
        clicked, clicked_time = self._user_clicked.before(user, time, max_length=30).to_arrow()
        converted, converted_time = self._user_converted.before(user, time, max_length=20).to_arrow()
        return {
            "user_id": self._user_ids[user],
            "country": pa.array(COUNTRIES).take(pa.array(people.country[user])),
            "age_bucket": pa.array(people.age_bucket[user].astype(np.int32), mask=people.age_unknown[user]),
            "device": people.device[user].astype(np.int32),
            "user_interest": people.interest[user].astype(np.int32),
            "user_impressions": self._user_shown.count_before(user, time).astype(np.float32),
            "user_clicks": self._user_clicked.count_before(user, time).astype(np.float32),
            "user_conversions": self._user_converted.count_before(user, time).astype(np.float32),
            "clicked_items": clicked,
            "clicked_items_time": clicked_time,
            "converted_items": converted,
            "converted_items_time": converted_time,
            "clicked_brands": self._brand_of_clicked.before(user, time, _LISTED_BRANDS).to_arrow()[0],
        }

    def _of_items(self, item: NDArray[np.int64], time: NDArray[np.int64]) -> dict[str, object]:
        people = self._people
        born = DAY_ZERO_MS + people.item_days[item, 0] * DAY_MS
        return {
            "item_id": self._item_ids[item],
            "category": people.category[item].astype(np.int32),
            "brand": people.brand[item].astype(np.int32),
            "price": people.price[item].astype(np.float32),
            "item_impressions": self._item_shown.count_before(item, time).astype(np.float32),
            "item_clicks": self._item_clicked.count_before(item, time).astype(np.float32),
            "item_age_days": np.maximum((time - born) / DAY_MS, 0).astype(np.float32),
        }


def _history(name: str, *, max_length: int) -> Feature:
    return Feature(
        name=name,
        owner="user",
        kind="sequence",
        rows=_HISTORY_ROWS,
        table="history_item",
        max_length=max_length,
        time=f"{name}_time",
    )


def _date(day: int) -> str:
    return datetime.fromtimestamp((DAY_ZERO_MS + day * DAY_MS) / 1000, UTC).date().isoformat()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
