"""Which products a household could see on display or in the mailer, week by week, and which of them it bought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.completejourney.raw import WEEKS, Ints, Panel

KEPT_NEGATIVES = 1 / 250
"""Share of the products not bought that become rows: of some 195 million, beside 259,000 that were bought."""
_SEED = 0


@dataclass(frozen=True)
class Shown:
    """N rows of one week, by household and product."""

    week: int
    household: Ints
    product: Ints
    store: Ints
    display: Ints
    mailer: Ints
    bought: NDArray[np.bool_]
    redeemed: NDArray[np.bool_]


def shown_by_week(panel: Panel) -> Iterator[Shown]:
    """The rows of every week in which a household shops where it used to, from the second week on.

    A household's store is that where it had most baskets in earlier weeks, of equal ones that of the latest week, then
    the one of the lowest id. In a week in which it buys there at all, its candidates are that week's promotions there.
    All that it buys that week, there or elsewhere, are rows, and of the others each with probability `KEPT_NEGATIVES`:
    what is drawn is a function of the files alone.
    """
    shopped = panel.purchases
    begins = np.searchsorted(shopped.week, np.arange(1, WEEKS + 2))
    baskets = np.zeros((len(panel.households), len(panel.stores)), np.int64)
    latest = np.zeros_like(baskets)
    for week in range(1, WEEKS + 1):
        lines = slice(begins[week - 1], begins[week])
        visits = np.unique(np.stack([shopped.household[lines], shopped.store[lines], shopped.basket[lines]]), axis=1)
        household, store = visits[:2]
        home = np.argmax(baskets * (WEEKS + 1) + latest, axis=1)
        known = baskets.sum(axis=1) > 0
        there = np.unique(household[known[household] & (home[household] == store)])
        rows = _rows(panel, week, lines, there, home[there])
        if len(rows.household):
            yield rows
        np.add.at(baskets, (household, store), 1)
        latest[household, store] = week


def _rows(panel: Panel, week: int, lines: slice, household: Ints, store: Ints) -> Shown:
    """The rows of V households, ascending, each of which shops in its store this week."""
    products, shopped = len(panel.products), panel.purchases
    place, product, display, mailer = panel.promotions.of_week(week)
    begin, end = (np.searchsorted(place, store, side) for side in ("left", "right"))
    offset = np.cumsum(end - begin) - (end - begin)  # candidates are counted through, household by household
    pairs = shopped.household[lines] * products + shopped.product[lines]
    bought, redeemed = np.unique(pairs), np.unique(pairs[shopped.coupon[lines]])

    visitor, choice = np.divmod(bought, products)
    visit = np.searchsorted(household, visitor)
    came = np.append(household, -1)[visit] == visitor
    visit, choice = visit[came], choice[came]
    offered, wanted = place * products + product, store[visit] * products + choice
    at = np.searchsorted(offered, wanted)
    promoted = np.append(offered, -1)[at] == wanted
    positives = (offset[visit] + at - begin[visit])[promoted]

    rng, total = np.random.default_rng((_SEED, week)), int((end - begin).sum())
    drawn = rng.choice(total, rng.binomial(total, KEPT_NEGATIVES), replace=False, shuffle=False)
    row = np.union1d(drawn, positives).astype(np.int64)
    visit = np.searchsorted(offset + (end - begin), row, side="right")
    at = begin[visit] + row - offset[visit]
    pair = household[visit] * products + product[at]
    return Shown(
        week=week,
        household=household[visit],
        product=product[at],
        store=store[visit],
        display=display[at],
        mailer=mailer[at],
        bought=np.isin(pair, bought),
        redeemed=np.isin(pair, redeemed),
    )
