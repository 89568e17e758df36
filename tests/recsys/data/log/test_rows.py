"""Rows, labels, negatives and features against loops over plain Python."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from recsys.config import LogConfig, from_dict
from recsys.data.errors import DataError
from recsys.data.log.past import Past
from recsys.dates import HOUR_MS
from tests.recsys.data.log.raw import (
    DOCUMENT,
    Row,
    chosen_of,
    events_of,
    hours_of,
    known_before,
    prepared,
    random_log,
)


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    document = deepcopy(DOCUMENT)
    for name, section in sections.items():
        document[name] = {**document[name], **section}
    return document


def check(document: dict[str, Any], table: pa.Table) -> list[Row]:
    """The rows of a log, once they have been found to be what loops make of it."""
    config = from_dict(LogConfig, document)
    rows, drawn = prepared(document, table)
    events = events_of(config, table)
    chosen = chosen_of(config, events)
    kinds = {event["what"]: event["kind"] for event in reversed(events)}
    shown = [row for row in rows if row.get("view", 1)]
    assert Counter(_identity(config, row) for row in shown) == Counter(
        (x["at"], x["who"], x["what"], x["country"], x["price"], *(x["labels"][name] for name in _labels(config)))
        for x in chosen
    )
    for row in rows:
        kind = kinds[row["item_id"]]
        expected = known_before(config, events, row["user_id"], row["item_id"], row["timestamp"], kind)
        assert {name: row[name] for name in expected} == expected
        assert row["kind"] == kind
        assert row["hour"] == row["timestamp"] // HOUR_MS % 24
    if drawn.ratio:
        _check_negatives(config, [row for row in rows if not row["view"]], events, chosen)
    return rows


def _labels(config: LogConfig) -> list[str]:
    return [name for name in config.actions if config.ratio or name != config.row_action]


def _identity(config: LogConfig, row: Row) -> tuple[Any, ...]:
    facts = (row["timestamp"], row["user_id"], row["item_id"], row["country"], row["price"])
    return (*facts, *(row[name] for name in _labels(config)))


def _check_negatives(config: LogConfig, drawn: list[Row], events: list[Row], chosen: list[Row]) -> None:
    hours, around = hours_of(events), config.negatives.hours
    beside = Counter((x["at"], x["who"]) for x in chosen)
    for row in drawn:
        now, pair = row["timestamp"] // HOUR_MS, (row["user_id"], row["item_id"])
        assert all(row[name] == 0 for name in config.actions)
        assert row["price"] is None
        if config.actions["view"].once:
            assert pair not in hours
        else:
            assert all(abs(hour - now) > around for hour in hours[pair])
        others = {x["at"] // HOUR_MS for x in chosen if x["what"] == row["item_id"]}
        if config.negatives.draw == "popularity":
            assert any(abs(hour - now) <= around for hour in others)
    for moment, count in Counter((row["timestamp"], row["user_id"]) for row in drawn).items():
        assert count <= beside[moment] * (config.ratio or 0)


@settings(max_examples=6, deadline=None, phases=(Phase.generate,))
@given(st.integers(0, 2**31), st.integers(1, 150), st.booleans(), st.sampled_from(["popularity", "uniform"]))
def test_rows_are_those_of_a_loop(seed: int, rows: int, once: bool, draw: str) -> None:
    document = changed(actions={"view": {"once": once}}, negatives={"draw": draw})
    table = random_log(rows, seed)
    if not any(event["did"] == "view" for event in events_of(from_dict(LogConfig, document), table)):
        with pytest.raises(DataError, match="no row "):
            prepared(document, table)
        return
    check(document, table)


def test_negatives_are_drawn_and_always_the_same() -> None:
    rows = check(DOCUMENT, random_log(400))
    assert 0.5 < sum(not row["view"] for row in rows) / sum(row["view"] for row in rows) <= 2
    assert prepared(DOCUMENT, random_log(400))[0] == rows
    assert prepared(changed(negatives={"seed": 1}), random_log(400))[0] != rows


def test_what_was_shown_needs_no_negatives() -> None:
    document = changed(negatives={"ratio": 0})
    table = random_log(300)
    config = from_dict(LogConfig, document)
    rows, drawn = prepared(document, table)
    chosen = chosen_of(config, events_of(config, table))
    assert drawn.ratio == 0
    assert drawn.odds_factor == 1
    assert "view" not in rows[0]
    assert "last_view" not in rows[0], "what was shown is no history of what was done"
    assert Counter(_identity(config, row) for row in rows) == Counter(
        (x["at"], x["who"], x["what"], x["country"], x["price"], x["labels"]["like"], x["labels"]["buy"])
        for x in chosen
    )


def test_the_order_of_the_rows_in_the_files_means_nothing() -> None:
    table = random_log(200)
    mixed = table.take(pa.array(np.random.default_rng(5).permutation(len(table))))
    key = ("timestamp", "user_id", "item_id", "view", "like", "buy", "user_view", "item_like_24h")
    first, second = (Counter(tuple(row[x] for x in key) for row in prepared(DOCUMENT, x)[0]) for x in (table, mixed))
    assert first == second


def test_a_rating_is_a_label_of_its_own_row() -> None:
    document = deepcopy(DOCUMENT)
    document["log"] |= {"action": "", "session": "", "price": "", "ignore": []}
    document["actions"] = {"rated": {}, "liked": {"column": "price", "at_least": 5}}
    del document["negatives"], document["items"]
    table = random_log(80).drop_columns(["did", "visit"]).filter(pa.compute.is_valid(random_log(80)["price"]))
    rows, drawn = prepared(document, table)
    assert drawn.ratio == 0
    distinct = {tuple(row[x] for x in ("who", "what", "at", "price", "country")) for row in table.to_pylist()}
    assert sum(row["liked"] for row in rows) == sum(price >= 5 for *_, price, _ in distinct)
    assert len(rows) == len(distinct)
    for row in rows:
        liked = [
            (t, what) for who, what, t, p, _ in distinct if who == row["user_id"] and p >= 5 and t < row["timestamp"]
        ]
        assert row["user_liked"] == len(liked)
        assert len(row["last_liked"]) == min(len(liked), 3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_past(data: st.DataObject) -> None:
    whole = st.integers(-3, 3)
    events = data.draw(st.lists(st.tuples(whole, st.integers(0, 12), st.booleans()), max_size=30))
    queries = data.draw(st.lists(st.tuples(whole, st.integers(-2, 15)), max_size=15))
    entity, time = (np.array([event[place] for event in events], np.int64) for place in (0, 1))
    mask = np.array([event[2] for event in events], bool)
    of, before = (np.array([query[place] for query in queries], np.int64) for place in (0, 1))
    past = Past(entity, time, of, before)
    (ever,), (lately,) = past.counts([mask], [0, 4])
    history = past.newest(mask, np.arange(len(events)), 2)
    for row, (who, at) in enumerate(queries):
        mine = sorted((t, place) for place, (x, t, kept) in enumerate(events) if kept and x == who and t < at)
        assert ever[row] == len(mine)
        assert lately[row] == sum(t >= at - 4 for t, _ in mine)
        begin, end = history.offsets[row], history.offsets[row + 1]
        assert list(zip(history.times[begin:end], history.values[begin:end], strict=True)) == mine[-2:]
