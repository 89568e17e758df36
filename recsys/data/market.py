"""A synthetic market: users and items with planted factors, who meet on two surfaces over some days.

The world is known in full, so every event carries the true probabilities of its click and of its conversion: the
oracle that no model can beat. What makes it a market rather than noise:

- taste: the logit of P(click) adds surface, hour, position, user and item to `<taste_u * w_surface, taste_v>`. Users
  belong to a taste group, items to a category; both carry a part of the factors, so side features tell a little and
  identities more;
- need: P(conversion | click) has a factor pair of its own, tied to user segments and item brands. It moves clicks only
  a little, so a model of conversions has something to add to a model of clicks;
- time: users' factors drift day by day, users and items arrive and leave;
- exposure: requests draw candidates by popularity (Zipf) and show those with the best noisy affinity, as a recommender
  would. One request is several rows of one timestamp.

Every size and strength is our choice. Nothing here knows of features or files: see `recsys.data.synthetic`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from recsys.dates import DAY_MS

DAY_ZERO_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC, the first millisecond of day 0."""
SURFACES = 2
"""Surface 0 is a feed, surface 1 a search page: fewer and better chosen items, more clicks and conversions."""
CATEGORIES = 24
BRANDS = 120
COUNTRIES = ("BR", "DE", "ES", "FR", "GB", "IN", "JP", "US")
AGE_BUCKETS = 6
DEVICES = 4
POSITIONS = 8

_TASTE_DIM = 4
_NEED_DIM = 3
_GROUP_SHARE = 0.4  # of a factor's variance, common to the taste group, category, segment or brand
DRIFT = 0.1
"""Daily step of the users' random walk; after 7 days the cosine to the old factor is 0.965."""
_CANDIDATES = 24
_CLICK_BIAS = (-1.9, -1.5)
_CONVERSION_BIAS = (-1.9, -1.5)


@dataclass(frozen=True)
class Population:
    """Everything about the users and items that is fixed for good, and the users' factors of day 0."""

    user_taste: NDArray[np.float64]  # [users, 4]
    user_need: NDArray[np.float64]  # [users, 3]
    user_bias: NDArray[np.float64]  # [users, 2], for click and conversion
    user_activity: NDArray[np.float64]  # [users], relative
    user_days: NDArray[np.int64]  # [users, 2], first day and first day after the last
    country: NDArray[np.int64]  # [users]
    age_bucket: NDArray[np.int64]  # [users]
    age_unknown: NDArray[np.bool_]  # [users]
    device: NDArray[np.int64]  # [users]
    interest: NDArray[np.int64]  # [users], a noisy guess at the user's favourite category
    item_taste: NDArray[np.float64]  # [items, 4]
    item_need: NDArray[np.float64]  # [items, 3]
    item_bias: NDArray[np.float64]  # [items, 2], for click and conversion
    item_popularity: NDArray[np.float64]  # [items], relative
    item_days: NDArray[np.int64]  # [items, 2], likewise
    category: NDArray[np.int64]  # [items]
    brand: NDArray[np.int64]  # [items]
    price: NDArray[np.float64]  # [items]


@dataclass(frozen=True)
class Log:
    """N impressions in time order. Users and items are indices into the population."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]  # ms
    surface: NDArray[np.int64]
    position: NDArray[np.int64]
    click: NDArray[np.bool_]
    conversion: NDArray[np.bool_]  # only where clicked
    oracle_click: NDArray[np.float64]  # P(click)
    oracle_conversion: NDArray[np.float64]  # P(conversion | click), on every row

    @staticmethod
    def concatenate(parts: list[Log]) -> Log:
        """The impressions of all parts, in their order."""
        return Log(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Log)))


def populate(users: int, items: int, days: int, rng: np.random.Generator) -> Population:
    """Draw users and items. About a fifth arrive after day 0 and about a seventh leave before the last day."""
    taste_centres = rng.standard_normal((CATEGORIES, _TASTE_DIM))
    need_centres = rng.standard_normal((BRANDS, _NEED_DIM))
    segment_centres = rng.standard_normal((AGE_BUCKETS * DEVICES, _NEED_DIM))

    favourite = rng.integers(CATEGORIES, size=users)
    age_bucket, device = rng.integers(AGE_BUCKETS, size=users), rng.integers(DEVICES, size=users)
    country = rng.choice(len(COUNTRIES), size=users, p=_zipf(len(COUNTRIES), 0.7))
    guess_is_right = rng.random(users) < 0.6
    user_bias = np.stack([0.35 * rng.standard_normal(users), 0.6 * rng.standard_normal(users)], axis=1)
    user_bias[:, 0] += 0.2 * rng.standard_normal(len(COUNTRIES))[country]

    category = rng.choice(CATEGORIES, size=items, p=_zipf(CATEGORIES, 0.5))
    brand = category * (BRANDS // CATEGORIES) + rng.integers(BRANDS // CATEGORIES, size=items)
    price_level = 0.6 * rng.standard_normal(items)
    item_bias = np.stack([0.5 * rng.standard_normal(items), 0.5 * rng.standard_normal(items)], axis=1)
    item_bias[:, 1] -= 0.5 * price_level
    return Population(
        user_taste=_factors(taste_centres[favourite], rng),
        user_need=_factors(segment_centres[age_bucket * DEVICES + device], rng),
        user_bias=user_bias,
        user_activity=rng.lognormal(0.0, 1.0, users),
        user_days=_lifetimes(users, days, rng),
        country=country,
        age_bucket=age_bucket,
        age_unknown=rng.random(users) < 0.05,
        device=device,
        interest=np.where(guess_is_right, favourite, rng.integers(CATEGORIES, size=users)),
        item_taste=_factors(taste_centres[category], rng),
        item_need=_factors(need_centres[brand], rng),
        item_bias=item_bias,
        item_popularity=rng.permutation(_zipf(items, 0.8)),
        item_days=_lifetimes(items, days, rng),
        category=category,
        brand=brand,
        price=np.exp(3.0 + 0.4 * rng.standard_normal(CATEGORIES)[category] + price_level),
    )


def simulate(
    people: Population, days: int, events_per_day: int, rng: np.random.Generator, drift: float = DRIFT
) -> Iterator[Log]:
    """Yield the impressions of each day: `events_per_day` of them, in time order.

    Between two days each user's factors turn by a random step of `drift`: their cosine is sqrt(1 - drift^2).
    """
    taste, need = people.user_taste, people.user_need
    surface_weights = np.exp(0.3 * rng.standard_normal((SURFACES, _TASTE_DIM)))
    for day in range(days):
        user, surface, time, lengths = _requests(people, day, events_per_day, rng)
        on_sale = _alive(people.item_popularity, people.item_days, day)
        shown = rng.choice(len(on_sale), size=(len(user), _CANDIDATES), p=on_sale)  # [R, C]
        taste_match = np.einsum("rd,rcd->rc", taste[user] * surface_weights[surface], people.item_taste[shown])
        taste_match /= np.sqrt(_TASTE_DIM)
        order = _best_first(shown, taste_match, surface, rng)
        request, position = np.nonzero(np.arange(_CANDIDATES) < lengths[:, None])
        request, position = request[:events_per_day], position[:events_per_day]
        column = order[request, position]
        item, user, surface, time = shown[request, column], user[request], surface[request], time[request]
        need_match = (need[user] * people.item_need[item]).sum(axis=1) / np.sqrt(_NEED_DIM)
        click_logit = (
            np.array(_CLICK_BIAS)[surface]
            + 0.2 * np.sin((time % DAY_MS) / DAY_MS * 2 * np.pi)
            - 0.08 * position
            + people.user_bias[user, 0]
            + people.item_bias[item, 0]
            + 1.4 * taste_match[request, column]
            + 0.5 * need_match
        )
        conversion_logit = (
            np.array(_CONVERSION_BIAS)[surface]
            + people.user_bias[user, 1]
            + people.item_bias[item, 1]
            + 1.4 * need_match
        )
        oracle_click, oracle_conversion = _sigmoid(click_logit), _sigmoid(conversion_logit)
        click = rng.random(len(item)) < oracle_click
        conversion = click & (rng.random(len(item)) < oracle_conversion)
        yield Log(user, item, time, surface, position, click, conversion, oracle_click, oracle_conversion)
        taste, need = _drift(taste, drift, rng), _drift(need, drift, rng)


def _requests(
    people: Population, day: int, events: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """User, surface, time and rows of just enough requests for `events` rows, in time order; more in the evening."""
    surface = (rng.random(events // 2 + 1) < 0.35).astype(np.int64)
    lengths = np.where(surface == 0, rng.integers(4, POSITIONS + 1, len(surface)), rng.integers(2, 6, len(surface)))
    count = int(np.searchsorted(np.cumsum(lengths), events)) + 1
    user = rng.choice(len(people.user_activity), size=count, p=_alive(people.user_activity, people.user_days, day))
    in_the_evening = rng.random(count) < 0.6
    part_of_day = np.where(in_the_evening, rng.normal(0.8, 0.1, count), rng.random(count)) % 1.0
    time = DAY_ZERO_MS + day * DAY_MS + np.minimum((part_of_day * DAY_MS).astype(np.int64), DAY_MS - 1)
    return user, surface[:count], np.sort(time), lengths[:count]


def _best_first(
    shown: NDArray[np.int64],  # [R, C]
    affinity: NDArray[np.float64],  # [R, C]
    surface: NDArray[np.int64],  # [R]
    rng: np.random.Generator,
) -> NDArray[np.int64]:  # [R, C]
    """Columns of the candidates by a noisy affinity, repetitions of an item last."""
    trust = np.array([0.4, 0.7])[surface][:, None]
    score = trust * affinity + rng.standard_normal(affinity.shape)
    by_item = np.argsort(shown, axis=1, kind="stable")
    sorted_items = np.take_along_axis(shown, by_item, axis=1)
    repeated = np.zeros(shown.shape, bool)
    np.put_along_axis(repeated, by_item[:, 1:], sorted_items[:, 1:] == sorted_items[:, :-1], axis=1)
    score[repeated] = -np.inf
    return np.argsort(-score, axis=1, kind="stable")


def _alive(weight: NDArray[np.float64], days: NDArray[np.int64], day: int) -> NDArray[np.float64]:
    alive = weight * ((days[:, 0] <= day) & (day < days[:, 1]))
    return alive / alive.sum()


def _factors(centres: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    own = rng.standard_normal(centres.shape)
    return np.sqrt(_GROUP_SHARE) * centres + np.sqrt(1 - _GROUP_SHARE) * own


def _drift(factors: NDArray[np.float64], step: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.sqrt(1 - step**2) * factors + step * rng.standard_normal(factors.shape)


def _lifetimes(count: int, days: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """First day and first day after the last, [count, 2]; the first is negative for who was there before day 0."""
    arrives, leaves = rng.random(count) < 0.2, rng.random(count) < 0.15
    earlier = -1 - np.floor(rng.exponential(30.0, count)).astype(np.int64)
    first = np.where(arrives, rng.integers(1, max(days, 2), count), earlier)
    end = np.where(leaves, np.maximum(first, 0) + 1 + rng.integers(0, days, count), days)
    return np.stack([first, end], axis=1)


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    weight = np.arange(1, count + 1) ** -exponent
    return weight / weight.sum()


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
