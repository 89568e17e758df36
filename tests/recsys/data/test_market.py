"""What was planted in the market is there to be found: by plain references, with no model of ours."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from recsys.data.market import (
    BRANDS,
    DAY_ZERO_MS,
    ITEM_DAYS,
    Log,
    Minds,
    Population,
    best_items,
    populate,
    simulate,
    wander,
)
from recsys.dates import DAY_MS

DAYS, SEEN = 8, 5
"""References learn from the first five days and are tested on the last three."""


class Market:
    """A market large enough for figures."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.people: Population = populate(500, 400, DAYS, rng)
        self.minds: tuple[Minds, ...] = wander(self.people, DAYS, rng)
        self.log = Log.concatenate(list(simulate(self.people, self.minds, 10_000, rng)))
        self.day = (self.log.time - DAY_ZERO_MS) // DAY_MS
        self.late = self.day >= SEEN

    def auc(self, label: NDArray[np.bool_], columns: list[NDArray], rows: NDArray[np.bool_] | None = None) -> float:
        """ROC-AUC on the late rows of a logistic regression on the early ones."""
        x, rows = np.stack(columns, axis=1), np.ones(len(label), bool) if rows is None else rows
        early, late = rows & ~self.late, rows & self.late
        x = (x - x[early].mean(axis=0)) / x[early].std(axis=0)
        model = LogisticRegression().fit(x[early], label[early])
        return roc_auc_score(label[late], model.decision_function(x[late]))


@pytest.fixture(scope="module")
def market() -> Market:
    return Market()


def _of_brands(people: Population, factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean factors of each brand's items, at each item."""
    sums = np.stack([np.bincount(people.brand, column, BRANDS) for column in factors.T], axis=1)
    return (sums / np.maximum(np.bincount(people.brand, minlength=BRANDS), 1)[:, None])[people.brand]


def test_rates_and_the_oracle(market: Market) -> None:
    log = market.log
    clicked = log.click
    assert 0.15 < clicked.mean() < 0.28
    assert 0.015 < log.conversion[clicked].mean() < 0.035
    assert not log.conversion[~clicked].any()
    assert log.oracle_click.mean() == pytest.approx(clicked.mean(), abs=0.01)
    assert log.oracle_conversion[clicked].mean() == pytest.approx(log.conversion[clicked].mean(), abs=0.005)
    oracle = roc_auc_score(clicked, log.oracle_click)
    popularity = roc_auc_score(clicked, np.bincount(log.item)[log.item])
    item_rate = np.bincount(log.item, clicked) / np.maximum(np.bincount(log.item), 1)
    assert oracle > 0.8
    assert popularity < 0.6
    assert roc_auc_score(clicked, item_rate[log.item]) < oracle - 0.08  # though it has seen the very clicks
    assert roc_auc_score(log.conversion[clicked], log.oracle_conversion[clicked]) > 0.8
    assert roc_auc_score(log.conversion[clicked], log.oracle_click[clicked]) < 0.65  # clicks tell little of needs


def test_taste_is_worth_something_without_the_items_vector(market: Market) -> None:
    """Crossed with what is common to the item's brand, and more when crossed with the item's own."""
    people, log = market.people, market.log
    taste, need = people.user_taste[log.user], people.user_need[log.user]
    known = [people.user_bias[log.user, 0], people.item_bias[log.item, 0], log.surface, log.position]
    brand = [(taste * _of_brands(people, people.item_taste)[log.item]).sum(1)]
    brand += [(need * _of_brands(people, people.item_need)[log.item]).sum(1)]
    item = [(taste * people.item_taste[log.item]).sum(1), (need * people.item_need[log.item]).sum(1)]
    none, by_brand, by_item = (market.auc(log.click, [*known, *more]) for more in ([], brand, item))
    assert none + 0.10 < by_brand < by_item - 0.01


def test_taste_shows_in_a_long_history_and_not_in_side_features(market: Market) -> None:
    """Least squares of a user's early clicks on the brands' factors, against the user's segment and interest alone."""
    people, log = market.people, market.log
    factors = _of_brands(people, np.concatenate([people.item_taste, people.item_need], axis=1))
    early = ~market.late

    def found(group: NDArray[np.int64]) -> NDArray[np.float64]:  # [N], how well the brand suits the row's group
        mine, seen = group[log.user], factors[log.item[early]]
        square, clicks = np.zeros((group.max() + 1, 7, 7)), np.zeros((group.max() + 1, 7))
        np.add.at(square, mine[early], seen[:, :, None] * seen[:, None, :])
        np.add.at(clicks, mine[early], (log.click[early] - log.click[early].mean())[:, None] * seen)
        weights = np.linalg.solve(square + 8 * np.eye(7), clicks[:, :, None])[:, :, 0]
        return (weights[mine] * factors[log.item]).sum(1)

    known = [people.item_bias[log.item, 0], log.surface, log.position]
    none = market.auc(log.click, known)
    segment = market.auc(log.click, [*known, found(people.age_bucket * 4 + people.device)])
    interest = market.auc(log.click, [*known, found(people.interest)])
    history = market.auc(log.click, [*known, found(np.arange(len(people.interest)))])
    assert none < max(segment, interest) < history - 0.04
    assert history > none + 0.06


def test_conversions_follow_needs_and_buyers(market: Market) -> None:
    """And the needs can be read off clicks, of which there are forty times as many."""
    people, log = market.people, market.log
    known = [people.item_bias[log.item, 1], log.surface]
    buyer = [people.user_bias[log.user, 1]]
    need = (people.user_need[log.user] * _of_brands(people, people.item_need)[log.item]).sum(1)
    auc = [market.auc(log.conversion, columns, log.click) for columns in (known, known + buyer, [*known, *buyer, need])]
    assert auc[0] + 0.03 < auc[1] < auc[2] - 0.03
    assert roc_auc_score(log.click, need) > 0.54


def test_positives_are_of_taste_more_than_of_popularity(market: Market) -> None:
    """Retrieval by the true affinity finds more than twice what the most clicked items do."""
    people, log = market.people, market.log
    early, last = log.click & ~market.late, market.day == DAYS - 1
    popular = np.argsort(-np.bincount(log.item[early], minlength=len(people.item_days)))[:20]
    clicks = log.click & last
    best = best_items(people, market.minds[-1], DAYS - 1, log.user[clicks], 20)
    found = (best == log.item[clicks][:, None]).any(axis=1).mean()
    assert found > 2 * np.isin(log.item[clicks], popular).mean()
    assert found > 0.2  # 20 of 400 by chance: 0.05


def test_best_items_are_those_most_often_clicked() -> None:
    """The expected clicks against counts of them: one user, and very many requests on one day."""
    rng = np.random.default_rng(5)
    people = populate(100, 100, 1, rng)
    minds = wander(people, 1, rng)
    only = np.zeros(100)
    only[7] = 1.0
    people = Population(**{**vars(people), "user_activity": only, "user_days": np.tile([[0, 1]], (100, 1))})
    (log,) = simulate(people, minds, 150_000, rng)
    clicks = np.bincount(log.item[log.click], minlength=len(people.item_days))
    (best,) = best_items(people, minds[0], 0, np.array([7]), 100)
    ranked = clicks[best]
    assert set(best) == set(np.flatnonzero(people.item_days[:, 0] <= 0))
    assert np.corrcoef(np.argsort(np.argsort(-ranked)), np.arange(100))[0, 1] > 0.97
    assert ranked[:10].sum() > 0.97 * np.sort(ranked)[-10:].sum()


def test_activity_and_popularity_have_long_tails(market: Market) -> None:
    for entity in market.log.user, market.log.item:
        events = np.sort(np.bincount(entity))[::-1]
        assert events[: len(events) // 10].sum() > 0.25 * events.sum()
        assert np.median(events) < 0.9 * events.mean()


def test_a_request_shows_an_item_once(market: Market) -> None:
    log = market.log
    request = np.stack([log.time, log.user, log.item], axis=1)
    # Two requests of one user in one millisecond are not told apart; there are next to none.
    assert len(np.unique(request, axis=0)) > 0.9999 * len(request)


def test_users_and_items_come_and_go(market: Market) -> None:
    people, log, day = market.people, market.log, market.day
    for entity, days in ((log.user, people.user_days), (log.item, people.item_days)):
        assert np.all((days[entity, 0] <= day) & (day < days[entity, 1]))
    seen = np.unique(log.user)
    assert 0.1 < (people.user_days[seen, 0] > 0).mean() < 0.3
    assert 0.05 < (people.user_days[seen, 1] < DAYS).mean() < 0.25


def test_the_shelf_is_always_full_and_turns_over(market: Market) -> None:
    """So what was known at a day's end covers less and less of what is shown."""
    days = market.people.item_days
    on_sale = [np.flatnonzero((days[:, 0] <= day) & (day < days[:, 1])) for day in range(DAYS + 1)]
    assert {len(items) for items in on_sale} == {400}
    known = np.array([np.isin(items, on_sale[0]).mean() for items in on_sale])
    assert known == pytest.approx((1 - 1 / ITEM_DAYS) ** np.arange(DAYS + 1), abs=0.06)
    shown = [np.isin(market.log.item[market.day == day], on_sale[0]).mean() for day in range(DAYS)]
    assert shown[-1] < 0.75 * shown[0]


def test_users_drift(market: Market) -> None:
    """The true conversion logit of one user, item and surface is constant within a day and wanders from day to day."""
    log = market.log
    logit = np.log(log.oracle_conversion / (1 - log.oracle_conversion))
    meeting = (log.user * 10_000 + log.item) * 2 + log.surface
    order = np.lexsort((market.day, meeting))
    pairs = meeting[order][1:] == meeting[order][:-1]
    gap = np.diff(market.day[order])[pairs]
    moved = np.abs(np.diff(logit[order]))[pairs]
    assert moved[gap == 0].max() < 1e-9
    assert 0 < moved[gap == 1].mean() < moved[gap >= 4].mean() < 0.5 * logit.std()


def test_drift_is_how_far_users_move() -> None:
    for drift, cosine in ((0.0, 1.0), (0.1, 0.99**2.5), (0.4, 0.84**2.5)):
        rng = np.random.default_rng(3)
        first, *_, last = wander(populate(1000, 100, 6, rng), 6, rng, drift)
        for a, b in ((first.taste, last.taste), (first.need, last.need)):
            found = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
            assert found == pytest.approx(cosine, abs=0.02 if drift else 1e-12)
