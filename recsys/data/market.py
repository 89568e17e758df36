"""A synthetic market: users and items with planted factors, who meet on two surfaces over some days.

The world is known in full, so every event carries the true probabilities of its click and of its conversion, and every
user's day the items most likely clicked: the oracle that no model can beat. What was planted:

- taste: the logit of P(click) has `<user, item>` of four factors. An item's come from its category and brand for the
  most part, so a user's vector can be crossed with those columns where the item has no vector. A user's are mostly the
  user's own: age, device and the guess at an interest say little of them, a long history of clicks much;
- need: P(conversion | click) has factors of its own, tied to brands on one side and to user segments on the other. They
  move clicks too, so clicks tell of them where conversions are too few to: one in some forty clicks;
- buyers: how readily users convert differs much more than how readily they click;
- turnover: each day one item in fourteen leaves and another takes its place; users arrive and leave too, and their
  factors turn a little from day to day;
- exposure: a request shows items drawn by `popularity^a * exp(b * taste)` from all that are on sale. Popularity weighs
  more on the feed, taste more on the search page. One request is several rows of one timestamp.

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
ITEM_DAYS = 14
"""Mean days that an item is on sale."""
DRIFT = 0.1
"""Daily step of the users' random walk; after 7 days the cosine to the old factor is 0.965."""

_TASTE_DIM = 4
_NEED_DIM = 3
_ITEM_TASTE = (0.4, 0.35)  # of an item's taste, the variance common to its category and to its brand
_USER_TASTE = 0.2  # of a user's, common to who shares the favourite category
_NEED_SHARE = 0.5  # of a need's, common to the brand, or to the user segment
_SEARCHES = 0.45  # share of the requests on surface 1
_LENGTHS = ((4, POSITIONS), (2, 5))  # least and greatest rows of a request
_POPULARITY_POWER = (0.6, 0.3)
_TRUST = (0.5, 1.0)  # in taste, of what a surface shows
_CLICK_BIAS = (-2.7, -2.4)
_CONVERSION_BIAS = (-5.45, -5.05)
_TASTE_WEIGHT, _NEED_WEIGHT, _CONVERSION_WEIGHT = 1.0, 0.6, 1.2
_BUYERS = 0.8  # standard deviation of the logit of how readily users convert
_CHUNK = 1 << 22  # requests times items at a time


@dataclass(frozen=True)
class Population:
    """Everything about the users and items that is fixed for good, and the users' factors of the first day."""

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
    surface_weight: NDArray[np.float64]  # [2, 4], of each factor of taste


@dataclass(frozen=True)
class Minds:
    """The users' factors on one day."""

    taste: NDArray[np.float64]  # [users, 4]
    need: NDArray[np.float64]  # [users, 3]


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


def populate(users: int, items: int, days: int, rng: np.random.Generator, past_days: int = 0) -> Population:
    """Draw who is there from day `-past_days` to day `days - 1`.

    `items` are on sale on each of them. About a fifth of the users arrive after the first day and about a seventh leave
    before the last. Items that arrive on day `days` are among those drawn: they can be announced, but are never shown.
    """
    taste_centres = rng.standard_normal((CATEGORIES, _TASTE_DIM))
    brand_centres = rng.standard_normal((BRANDS, _TASTE_DIM))
    need_centres = rng.standard_normal((BRANDS, _NEED_DIM))
    segment_centres = rng.standard_normal((AGE_BUCKETS * DEVICES, _NEED_DIM))

    favourite = rng.integers(CATEGORIES, size=users)
    age_bucket, device = rng.integers(AGE_BUCKETS, size=users), rng.integers(DEVICES, size=users)
    country = rng.choice(len(COUNTRIES), size=users, p=_zipf(len(COUNTRIES), 0.7))
    guess_is_right = rng.random(users) < 0.6
    user_bias = np.stack([0.35 * rng.standard_normal(users), _BUYERS * rng.standard_normal(users)], axis=1)
    user_bias[:, 0] += 0.2 * rng.standard_normal(len(COUNTRIES))[country]

    item_days = _shelf(items, past_days + days, rng) - past_days
    count = len(item_days)
    category = rng.choice(CATEGORIES, size=count, p=_zipf(CATEGORIES, 0.5))
    brand = category * (BRANDS // CATEGORIES) + rng.integers(BRANDS // CATEGORIES, size=count)
    price_level = 0.6 * rng.standard_normal(count)
    item_bias = np.stack([0.5 * rng.standard_normal(count), 0.5 * rng.standard_normal(count)], axis=1)
    item_bias[:, 1] -= 0.5 * price_level
    return Population(
        user_taste=_factors(rng, (_USER_TASTE, taste_centres[favourite])),
        user_need=_factors(rng, (_NEED_SHARE, segment_centres[age_bucket * DEVICES + device])),
        user_bias=user_bias,
        user_activity=rng.lognormal(0.0, 1.0, users),
        user_days=_lifetimes(users, past_days + days, rng) - past_days,
        country=country,
        age_bucket=age_bucket,
        age_unknown=rng.random(users) < 0.05,
        device=device,
        interest=np.where(guess_is_right, favourite, rng.integers(CATEGORIES, size=users)),
        item_taste=_factors(rng, *zip(_ITEM_TASTE, (taste_centres[category], brand_centres[brand]), strict=True)),
        item_need=_factors(rng, (_NEED_SHARE, need_centres[brand])),
        item_bias=item_bias,
        item_popularity=rng.permutation(_zipf(count, 0.8)),
        item_days=item_days,
        category=category,
        brand=brand,
        price=np.exp(3.0 + 0.4 * rng.standard_normal(CATEGORIES)[category] + price_level),
        surface_weight=np.exp(0.3 * rng.standard_normal((SURFACES, _TASTE_DIM))),
    )


def wander(people: Population, days: int, rng: np.random.Generator, drift: float = DRIFT) -> tuple[Minds, ...]:
    """The users' factors of each day.

    Overnight they turn by a random step of `drift`: the cosine is sqrt(1 - drift^2).
    """
    minds = [Minds(people.user_taste, people.user_need)]
    for _ in range(days - 1):
        minds.append(Minds(_drift(minds[-1].taste, drift, rng), _drift(minds[-1].need, drift, rng)))
    return tuple(minds)


def simulate(
    people: Population, minds: tuple[Minds, ...], events_per_day: int, rng: np.random.Generator, past_days: int = 0
) -> Iterator[Log]:
    """Yield the impressions of each day of `minds`, the first of which is day `-past_days`, in time order.

    There are `events_per_day` of them.
    """
    for day, mind in enumerate(minds, -past_days):
        user, surface, time, lengths = _requests(people, day, events_per_day, rng)
        item = _shown(people, mind, day, user, surface, rng)  # [R, POSITIONS]
        request, position = np.nonzero(np.arange(POSITIONS) < lengths[:, None])
        request, position = request[:events_per_day], position[:events_per_day]
        item, user, surface, time = item[request, position], user[request], surface[request], time[request]
        need_match = (mind.need[user] * people.item_need[item]).sum(axis=1) / np.sqrt(_NEED_DIM)
        taste_match = (_taste(people, mind, user, surface) * people.item_taste[item]).sum(axis=1)
        hour = 0.2 * np.sin((time % DAY_MS) / DAY_MS * 2 * np.pi)
        click_logit = _click_logit(people, user, item, surface, taste_match, need_match) + hour - 0.08 * position
        conversion_logit = (
            np.array(_CONVERSION_BIAS)[surface]
            + people.user_bias[user, 1]
            + people.item_bias[item, 1]
            + _CONVERSION_WEIGHT * need_match
        )
        oracle_click, oracle_conversion = _sigmoid(click_logit), _sigmoid(conversion_logit)
        click = rng.random(len(item)) < oracle_click
        conversion = click & (rng.random(len(item)) < oracle_conversion)
        yield Log(user, item, time, surface, position, click, conversion, oracle_click, oracle_conversion)


def best_items(people: Population, mind: Minds, day: int, user: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The `k` items on sale that each user [N] most likely clicks on a day, best first: [N, min(k, items on sale)].

    Ranked by the expected number of clicks in a request, P(shown) * P(click) on both surfaces, at the first position
    and without the hour. That an item is not shown twice in a request is neglected.
    """
    on_sale = np.flatnonzero(_alive(people.item_popularity, people.item_days, day))
    k = min(k, len(on_sale))
    best = np.empty((len(user), k), np.int64)
    for rows in _chunks(len(user), len(on_sale)):
        some, expected = user[rows], 0.0
        need_match = mind.need[some] @ people.item_need[on_sale].T / np.sqrt(_NEED_DIM)
        for number, share in enumerate((1 - _SEARCHES, _SEARCHES)):
            surface = np.full(len(some), number)
            taste_match = _taste(people, mind, some, surface) @ people.item_taste[on_sale].T
            logit = _click_logit(people, some[:, None], on_sale, surface[:, None], taste_match, need_match)
            weight = np.exp(_attraction(people, on_sale, surface, taste_match))
            chance = share * np.mean(_LENGTHS[number]) / weight.sum(axis=1, keepdims=True)
            expected = expected + chance * weight * _sigmoid(logit)
        best[rows] = on_sale[np.argsort(-expected, axis=1, kind="stable")[:, :k]]
    return best


def _requests(
    people: Population, day: int, events: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """User, surface, time and rows of just enough requests for `events` rows, in time order; more in the evening."""
    surface = (rng.random(events // 2 + 1) < _SEARCHES).astype(np.int64)
    least, most = np.array(_LENGTHS)[surface].T
    lengths = rng.integers(least, most + 1)
    count = int(np.searchsorted(np.cumsum(lengths), events)) + 1
    active = _alive(people.user_activity, people.user_days, day)
    user = rng.choice(len(active), size=count, p=active / active.sum())
    in_the_evening = rng.random(count) < 0.6
    part_of_day = np.where(in_the_evening, rng.normal(0.8, 0.1, count), rng.random(count)) % 1.0
    time = DAY_ZERO_MS + day * DAY_MS + np.minimum((part_of_day * DAY_MS).astype(np.int64), DAY_MS - 1)
    return user, surface[:count], np.sort(time), lengths[:count]


def _shown(
    people: Population,
    mind: Minds,
    day: int,
    user: NDArray[np.int64],  # [R]
    surface: NDArray[np.int64],  # [R]
    rng: np.random.Generator,
) -> NDArray[np.int64]:  # [R, POSITIONS]
    """Different items for each request, drawn one after the other with chances in proportion to exp(attraction)."""
    on_sale = np.flatnonzero(_alive(people.item_popularity, people.item_days, day))
    chosen = np.empty((len(user), POSITIONS), np.int64)
    for rows in _chunks(len(user), len(on_sale)):
        wanted, offered = _taste(people, mind, user[rows], surface[rows]), people.item_taste[on_sale]
        match = wanted.astype(np.float32) @ offered.astype(np.float32).T  # [r, items]
        # A race of exponential waiting times: whoever is fastest comes first.
        waiting = rng.standard_exponential(match.shape, dtype=np.float32)
        waiting *= np.exp(-_attraction(people, on_sale, surface[rows], match))
        first = np.argpartition(waiting, POSITIONS, axis=1)[:, :POSITIONS]
        order = np.argsort(np.take_along_axis(waiting, first, axis=1), axis=1)
        chosen[rows] = on_sale[np.take_along_axis(first, order, axis=1)]
    return chosen


def _taste(
    people: Population, mind: Minds, user: NDArray[np.int64], surface: NDArray[np.int64]
) -> NDArray[np.float64]:  # [N, 4]
    """What an item's taste is multiplied with for each user on a surface."""
    return mind.taste[user] * people.surface_weight[surface] / np.sqrt(_TASTE_DIM)


def _attraction(
    people: Population,
    on_sale: NDArray[np.int64],  # [I]
    surface: NDArray[np.int64],  # [R]
    taste_match: NDArray[np.floating],  # [R, I]
) -> NDArray[np.floating]:  # [R, I], of the same dtype
    """Logarithm of an item's weight in what a surface shows."""
    power, trust = (np.array(each, taste_match.dtype)[surface][:, None] for each in (_POPULARITY_POWER, _TRUST))
    return power * np.log(people.item_popularity[on_sale]).astype(taste_match.dtype) + trust * taste_match


def _click_logit(
    people: Population,
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    surface: NDArray[np.int64],
    taste_match: NDArray[np.float64],
    need_match: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Of a first position, without the hour; the arrays are broadcast."""
    bias = np.array(_CLICK_BIAS)[surface] + people.user_bias[user, 0] + people.item_bias[item, 0]
    return bias + _TASTE_WEIGHT * taste_match + _NEED_WEIGHT * need_match


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows, as many as matrices of this width have room for at a time."""
    step = max(1, _CHUNK // width)
    return (slice(first, first + step) for first in range(0, rows, step))


def _alive(weight: NDArray[np.float64], days: NDArray[np.int64], day: int) -> NDArray[np.float64]:
    return weight * ((days[:, 0] <= day) & (day < days[:, 1]))


def _factors(rng: np.random.Generator, *parts: tuple[float, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sum of what is common, each with its share of the variance, and of an own part with the rest."""
    own = np.sqrt(1 - sum(share for share, _ in parts)) * rng.standard_normal(parts[0][1].shape)
    return own + sum(np.sqrt(share) * centres for share, centres in parts)


def _drift(factors: NDArray[np.float64], step: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.sqrt(1 - step**2) * factors + step * rng.standard_normal(factors.shape)


def _lifetimes(count: int, days: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """First day and first day after the last, [count, 2]; the first is negative for who was there all along."""
    arrives, leaves = rng.random(count) < 0.2, rng.random(count) < 0.15
    first = np.where(arrives, rng.integers(1, max(days, 2), count), _before(count, 30.0, rng))
    end = np.where(leaves, np.maximum(first, 0) + 1 + rng.integers(0, days, count), days)
    return np.stack([first, end], axis=1)


def _shelf(places: int, days: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The same of items: on each of days 1 to `days` one of `ITEM_DAYS` leaves its place to a new one, [items, 2]."""
    place, day = np.nonzero(rng.random((places, days)) < 1 / ITEM_DAYS)
    place = np.concatenate([np.arange(places), place])
    first = np.concatenate([_before(places, ITEM_DAYS, rng), day + 1])
    order = np.lexsort((first, place))
    place, first = place[order], first[order]
    end = np.append(first[1:], days + 1)
    end[np.append(place[1:] != place[:-1], True)] = days + 1
    return np.stack([first, end], axis=1)


def _before(count: int, mean: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return -1 - np.floor(rng.exponential(mean, count)).astype(np.int64)


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    weight = np.arange(1, count + 1) ** -exponent
    return weight / weight.sum()


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
