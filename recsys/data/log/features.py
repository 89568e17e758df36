"""Histories and counts of strictly earlier events, entity by entity: users, items, categories.

Each question is answered for a share of the entities at a time, all events of those in memory: shares of some four
million events, on as many threads as there are cores. The answers are put in the order of the rows by the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.config import LogConfig
from recsys.data.log.engine import Connection, literal, number, quoted
from recsys.data.log.past import Past
from recsys.data.log.rows import done
from recsys.dates import span_ms

_SHARE = 4_000_000
"""Events, or rows, of the entities that are looked at together."""

Columns = dict[str, Any]
Answer = Callable[[Past, Columns], Columns]


@dataclass(frozen=True)
class Question:
    """What is asked of the past of one kind of entity."""

    name: str
    """Of the table of the answers: `key`, and a column a feature."""
    entity: str
    """SQL of the entity's number, of a row of `events` or of `rows`, which know `u`, `i` and `c`, the category."""
    share: str
    """SQL of the number that says which share a row is in."""
    key: str
    """What is asked for: `e`, each event that makes rows, or `r`, each row."""
    category: bool = False
    """Whether it asks for `c`; rows without one are left out."""


def counters(config: LogConfig, what: str, *, spans: bool = True) -> list[tuple[str, str, int]]:
    """Names of the counts of an entity, as `user_view_24h`, with the action and the span in ms; 0: since ever."""
    windows = [*(config.features.windows if spans else ()), ""]
    return [
        (f"{what}_{name}{'_' + window if window else ''}", name, (span_ms(window) or 0) if window else 0)
        for window in windows
        for name in config.actions
    ]


def histories(config: LogConfig) -> tuple[str, ...]:
    """Actions whose items a user's history lists: what was done, not what was merely shown."""
    if not config.features.last:
        return ()
    shown = config.ratio == 0 and len(config.actions) > 1 and not any(a.column for a in config.actions.values())
    return tuple(name for name in config.actions if not (shown and name == config.row_action))


def make_features(connection: Connection, config: LogConfig, folder: Path, listed: NDArray[np.int64]) -> None:
    """Make a table of answers for users, for items and, where there is one, for categories.

    Args:
        connection: the engine, with `events`, `rows`, and where there are categories `item_category`.
        config: what is asked.
        folder: for the answers, as they come.
        listed: int64 [items], what stands for each in the histories.
    """
    category = bool(config.items and config.items.category)
    questions: list[tuple[Question, Answer]] = [
        (Question("of_user", "u", "u", "e"), lambda past, events: _user(config, past, events, listed)),
        (Question("of_item", "i", "i", "r"), lambda past, events: _item(config, past, events)),
    ]
    if category:
        questions += [
            (
                Question("of_category", "c", "c", "r", category=True),
                lambda past, events: _counts(config, past, events, "category"),
            ),
            (
                Question("of_pair", "u::BIGINT * (SELECT max(c) + 1 FROM item_category) + c", "u", "r", category=True),
                lambda past, events: _counts(config, past, events, "user_category", spans=False),
            ),
        ]
    for question, answer in questions:
        _answer(connection, config, question, answer, folder / question.name)


def _answer(connection: Connection, config: LogConfig, question: Question, answer: Answer, folder: Path) -> None:
    folder.mkdir()
    sizes = [number(connection, f"SELECT count(*) FROM {table}") for table in ("events", "rows")]
    shares = max(1, -(-max(sizes) // _SHARE))
    masks = ", ".join(f"({done(config, name)}) AS {quoted('is_' + name)}" for name in config.actions)
    price = ", price" if config.log.price else ""
    joined = " JOIN item_category USING (i)" if question.category else ""

    def work(share: int) -> None:
        cursor = connection.cursor()
        within = f"WHERE ({question.share}) % {shares} = {share}"
        events = cursor.execute(
            f"SELECT ({question.entity})::BIGINT AS entity, t, i, {masks}{price} FROM (SELECT rowid AS e, * FROM "
            f"events){joined} {within} ORDER BY e"
        ).fetchnumpy()
        source = "(SELECT DISTINCT e, u, t FROM rows)" if question.key == "e" else "(SELECT rowid AS r, * FROM rows)"
        rows = cursor.execute(
            f"SELECT {question.key} AS key, ({question.entity})::BIGINT AS entity, t FROM {source}{joined} {within} "
            "ORDER BY key"
        ).fetchnumpy()
        past = Past(events["entity"], events["t"], rows["entity"], rows["t"])
        found = answer(past, events)
        table = pa.table({"key": rows["key"], **found})
        pq.write_table(table, folder / f"{share}.parquet", compression="lz4")

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(work, range(shares)))
    parts = literal(str(folder / "*.parquet"))
    order = " ORDER BY key" if shares > 1 else ""  # one share is in order
    connection.execute(f"CREATE TABLE {question.name} AS SELECT * FROM read_parquet({parts}){order}")


def _user(config: LogConfig, past: Past, events: Columns, listed: NDArray[np.int64]) -> Columns:
    found = _counts(config, past, events, "user")
    for name in histories(config):
        history = past.newest(events[f"is_{name}"], listed[events["i"]], config.features.last)
        found[f"last_{name}"], found[f"last_{name}_time"] = history.to_arrow()
    return found


def _item(config: LogConfig, past: Past, events: Columns) -> Columns:
    found = _counts(config, past, events, "item")
    if "price" in events:
        prices = np.ma.filled(events["price"], np.nan)
        history = past.newest(~np.isnan(prices), prices, 1)
        price = np.zeros(len(history.lengths), np.float32)
        price[history.lengths > 0] = history.values
        found["item_price"] = pa.array(price, mask=history.lengths == 0)
    return found


def _counts(config: LogConfig, past: Past, events: Columns, what: str, *, spans: bool = True) -> Columns:
    asked = counters(config, what, spans=spans)
    widths = list(dict.fromkeys(span for *_, span in asked))
    found = past.counts([events[f"is_{name}"] for name in config.actions], widths)
    return dict(zip((name for name, *_ in asked), (counts for each in found for counts in each), strict=True))
