"""What was known of households and products before a week: nothing that is asked here sees a purchase of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from recsys.data.completejourney.raw import ATTRIBUTES, DEMOGRAPHICS, WEEKS, Ints, Panel, week_begin
from recsys.data.completejourney.shown import Shown
from recsys.data.history import PastEvents
from recsys.data.schema import Feature

LONGEST = 50
"""Elements kept of every history list."""
RECENT = {"_1w": 1, "_4w": 4, "": WEEKS}
"""End of a feature's name -> how many of the latest weeks it counts."""

HOUSEHOLD_SUMS = ("purchases", "baskets", "spend", "redemptions")
PRODUCT_SUMS = ("sales", "revenue")
PAIRS = ("product", "type", "category")
ITEM_IDS = ("manufacturer", *ATTRIBUTES)


def _dense(name: str, owner: str) -> Feature:
    return Feature(name=name, owner=owner, kind="dense")


def _history(name: str) -> Feature:
    return Feature(name=name, owner="user", kind="sequence", max_length=LONGEST, time="bought_times")


FEATURES = (
    Feature(name="user_id", owner="user", kind="id"),
    *(Feature(name=name, owner="user", kind="id") for name in DEMOGRAPHICS),
    *(_dense(f"household_{name}{end}", "user") for name in HOUSEHOLD_SUMS for end in RECENT),
    _dense("household_recency", "user"),
    _history("bought_products"),
    _history("bought_categories"),
    Feature(name="item_id", owner="item", kind="id"),
    *(Feature(name=name, owner="item", kind="id") for name in ITEM_IDS),
    *(_dense(f"product_{name}{end}", "item") for name in PRODUCT_SUMS for end in RECENT),
    _dense("product_price", "item"),
    _dense("product_recency", "item"),
    Feature(name="store", owner="context", kind="id"),
    Feature(name="display", owner="interaction", kind="id"),
    Feature(name="mailer", owner="interaction", kind="id"),
    _dense("coupon", "interaction"),
    *(_dense(f"{name}_before{end}", "interaction") for name in PAIRS for end in ("", "_4w", "_recency")),
)
"""What the columns of `Past` are."""


class WeeklySums:
    """Sums of a value by entity and week, asked for what they were before a week.

    Args:
        entity: [M], numbers below `entities`.
        week: [M], 1 to `WEEKS`.
        value: [M], or one number for all.
        entities: how many there are.
    """

    def __init__(self, entity: Ints, week: Ints, value: ArrayLike, entities: int) -> None:
        sums = np.zeros((entities, WEEKS + 2))
        np.add.at(sums, (entity, week + 1), value)
        self._before = np.cumsum(sums, axis=1)  # [entities, WEEKS + 2]: of all weeks before the column's

    def before(self, entity: Ints, week: int, weeks: int = WEEKS) -> NDArray[np.float64]:
        """The sum of the last `weeks` weeks that end before `week`, of each entity."""
        return self._before[entity, week] - self._before[entity, max(week - weeks, 0)]


class Past:
    """All purchases, indexed to be asked for what came before a week."""

    def __init__(self, panel: Panel) -> None:
        shopped, households, products = panel.purchases, len(panel.households), len(panel.products)
        kinds = {"type": "product_type", "category": "product_category"}
        codes = {name: _codes(panel.products[column]) for name, column in kinds.items()} | {
            "product": np.arange(products)
        }
        first = np.zeros(len(shopped.basket), np.bool_)
        first[np.unique(shopped.basket, return_index=True)[1]] = True

        def sums(entity: Ints, value: ArrayLike, entities: int) -> WeeklySums:
            return WeeklySums(entity, shopped.week, value, entities)

        self._panel, self._codes = panel, codes
        self._households = {
            "purchases": sums(shopped.household, 1, households),
            "baskets": sums(shopped.household, first, households),
            "spend": sums(shopped.household, shopped.spend, households),
            "redemptions": sums(shopped.household, shopped.coupon, households),
        }
        self._products = {
            "sales": sums(shopped.product, 1, products),
            "revenue": sums(shopped.product, shopped.spend, products),
            "quantity": sums(shopped.product, shopped.quantity, products),
        }
        self._pairs = {
            name: PastEvents(self._pair(shopped.household, shopped.product, name), shopped.week, shopped.week)
            for name in PAIRS
        }
        self._lines = PastEvents(shopped.household, shopped.week, np.arange(len(shopped.household)))
        self._sold = PastEvents(shopped.product, shopped.week, shopped.week)
        self._categories = panel.products["product_category"].fill_null("").combine_chunks()
        self._coupons = _Coupons(panel)

    def households(self, household: Ints, week: int) -> dict[str, pa.Array]:
        """Columns of households as they were known when the week began."""
        known = self._panel.demographics.take(pa.array(household))
        columns: dict[str, pa.Array] = {"user_id": pa.array(self._panel.households[household])}
        columns |= {name: known[name].combine_chunks() for name in DEMOGRAPHICS}
        for name in HOUSEHOLD_SUMS:
            columns |= _recent(f"household_{name}", self._households[name], household, week)
        columns["household_recency"] = _recency(self._lines, household, week)
        lines = self._lines.before(household, np.full(len(household), week), LONGEST)
        offsets, shopped = pa.array(lines.offsets, pa.int32()), self._panel.purchases
        product = shopped.product[lines.values]
        columns["bought_products"] = pa.ListArray.from_arrays(offsets, pa.array(self._panel.product_ids[product]))
        columns["bought_categories"] = pa.ListArray.from_arrays(offsets, self._categories.take(pa.array(product)))
        columns["bought_times"] = pa.ListArray.from_arrays(offsets, pa.array(shopped.time[lines.values]))
        return columns

    def products(self, product: Ints, week: int) -> dict[str, pa.Array]:
        """Columns of products as they were known when the week began."""
        known = self._panel.products.take(pa.array(product))
        columns = {name: known[name].combine_chunks() for name in ("item_id", *ITEM_IDS)}
        for name in PRODUCT_SUMS:
            columns |= _recent(f"product_{name}", self._products[name], product, week)
        revenue, quantity = (self._products[name].before(product, week) for name in ("revenue", "quantity"))
        columns["product_price"] = _numbers(revenue / np.maximum(quantity, 1))
        columns["product_recency"] = _recency(self._sold, product, week)
        return columns

    def pairs(self, shown: Shown) -> dict[str, pa.Array]:
        """Columns of a household and a product together: where it is on display or in the mailer, what the household
        bought before of it, its type and its category, and whether it has a coupon for it that is running."""
        promotions, now = self._panel.promotions, np.full(len(shown.household), shown.week)
        columns = {
            "display": _words(promotions.displays, shown.display),
            "mailer": _words(promotions.mailers, shown.mailer),
            "coupon": pa.array(self._coupons.running(shown).astype(np.int8)),
        }
        for name, past in self._pairs.items():
            pair = self._pair(shown.household, shown.product, name)
            ever = past.count_before(pair, now)
            columns[f"{name}_before"] = _numbers(ever)
            columns[f"{name}_before_4w"] = _numbers(ever - past.count_before(pair, now - 4))
            columns[f"{name}_before_recency"] = _recency(past, pair, shown.week)
        return columns

    def _pair(self, household: Ints, product: Ints, kind: str) -> Ints:
        """One number for a household and a product, or the type or category of that."""
        codes = self._codes[kind]
        return household * (codes.max(initial=0) + 1) + codes[product]


class _Coupons:
    """Who gets which campaign, what its coupons are for, and when it runs."""

    def __init__(self, panel: Panel) -> None:
        told, ids = panel.tables, panel.tables["campaign_descriptions"]["campaign_id"].to_numpy()
        self._begin, self._end = (told["campaign_descriptions"][name].to_numpy() for name in ("start_date", "end_date"))
        self._sent = _crossed(told["campaigns"], "household_id", panel.households, ids)
        self._covers = _crossed(told["coupons"], "product_id", panel.product_ids, ids)

    def running(self, shown: Shown) -> NDArray[np.bool_]:
        """Of each row, whether a campaign that runs on the week's first day was sent to the household and covers the
        product."""
        begin = week_begin(shown.week)
        runs = np.flatnonzero((self._begin <= begin) & (self._end >= begin))
        return np.any(self._sent[shown.household][:, runs] & self._covers[shown.product][:, runs], axis=1)


def _recent(name: str, sums: WeeklySums, entity: Ints, week: int) -> dict[str, pa.Array]:
    return {name + end: _numbers(sums.before(entity, week, weeks)) for end, weeks in RECENT.items()}


def _recency(past: PastEvents, entity: Ints, week: int) -> pa.Array:
    """1 of what was bought in the week before, 1/2 two weeks before, ..., 0 of what never was."""
    last = past.before(entity, np.full(len(entity), week), 1)
    recency = np.zeros(len(entity))
    recency[last.lengths > 0] = 1 / (week - last.times)
    return _numbers(recency)


def _numbers(values: NDArray) -> pa.Array:
    return pa.array(values.astype(np.float32))


def _words(words: list[str], codes: Ints) -> pa.Array:
    """The words of some codes; null of "0", which is none."""
    known = pa.array([None if word == "0" else word for word in words], pa.string())
    return known.take(pa.array(codes))


def _codes(column: pa.ChunkedArray) -> Ints:
    """A number for each word; one of them for null."""
    return column.fill_null("").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _crossed(table: pa.Table, column: str, ids: Ints, campaigns: Ints) -> NDArray[np.bool_]:
    """[ids, campaigns]: whether the table has a row of both; its rows of others are left out."""
    crossed = np.zeros((len(ids) + 1, len(campaigns) + 1), np.bool_)
    at = [
        pc.fill_null(pc.index_in(table[name], value_set=pa.array(known)), len(known)).to_numpy()
        for name, known in ((column, ids), ("campaign_id", campaigns))
    ]
    crossed[tuple(at)] = True
    return crossed[:-1, :-1]
