"""The Complete Journey: purchases of 2,469 households of a retail panel in 2017. Its provenance is disputed: the wheel
that has the files says that they are simulated, other publishers that they are real.

Two sources are written. `graph` has links, see `links`; `offers` has one row for a household, a product and a week:

    offers/schema.toml
    offers/events/<Monday>/part-0.parquet    the rows of the week that begins on it, in New York
    offers/users/, offers/items/             every household and product, as known when week `FIRST_RANKED` began

A row is a product on display or in the mailer of the store where the household used to shop, in a week in which it
shops there (`shown` has the rule). `bought` says whether it bought the product that week, and `redeemed`, where it did,
whether with a coupon. All products that it bought are there and one in 250 of the others, so an AUC is that of all
candidates, and a rate is that of the sample: `kept_negatives` of the schema says so.

A week's rows have one time, six in the morning of its Monday: so late may the vectors come that are made of the week
before. Features know no purchase of the row's week, nor of a later one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.completejourney.links import write_links
from recsys.data.completejourney.past import FEATURES, Past
from recsys.data.completejourney.raw import WEEKS, Panel, read_panel, week_begin, week_name
from recsys.data.completejourney.shown import KEPT_NEGATIVES, Shown, shown_by_week
from recsys.data.errors import DataError
from recsys.data.files import replacing_folder, write_part
from recsys.data.schema import Label, Schema
from recsys.dates import HOUR_MS

RANKED_AT_MS = 6 * HOUR_MS
"""From the begin of a week to the time of its rows."""
FIRST_RANKED = 27
"""The first week of the second half of the year: upstreams learn from those before it."""


def prepare_completejourney(source: Path, out: Path) -> None:
    """Write `out/offers` and `out/graph` from the eight Parquet files in `source`, replacing what is there only when
    all is written.

    Raises:
        DataError: what `read_panel` raises, or no household shops where it used to and something is promoted.
    """
    panel = read_panel(source)
    past = Past(panel)
    with replacing_folder(out / "offers") as offers, replacing_folder(out / "graph") as graph:
        labels = (
            Label(name="bought", kept_negatives=KEPT_NEGATIVES),
            Label(name="redeemed", valid="bought"),
        )
        Schema(features=FEATURES, labels=labels).save(offers / "schema.toml")
        written = 0
        for shown in shown_by_week(panel):
            write_part(_events(panel, past, shown), offers / "events" / week_name(shown.week))
            written += 1
        if not written:
            raise DataError(
                f"{source}: in no week from 2 to {WEEKS} does a household shop in the store of its earlier baskets and "
                "that store promote anything: are promotions.parquet and transactions.parquet of one panel?"
            )
        now = week_begin(FIRST_RANKED)
        households, products = np.arange(len(panel.households)), np.arange(len(panel.products))
        write_part(_timed(past.households(households, FIRST_RANKED), now), offers / "users")
        write_part(_timed(past.products(products, FIRST_RANKED), now), offers / "items")
        write_links(panel, graph)


def _events(panel: Panel, past: Past, shown: Shown) -> pa.Table:
    """One row a household and product, with what was known of both before the week."""
    households, row = np.unique(shown.household, return_inverse=True)  # each is on many rows
    users = pa.table(past.households(households, shown.week)).take(pa.array(row))
    columns = {
        **dict(zip(users.column_names, users.columns, strict=True)),
        **past.products(shown.product, shown.week),
        "store": panel.stores[shown.store],
        **past.pairs(shown),
        "bought": shown.bought.astype(np.int8),
        "redeemed": shown.redeemed.astype(np.int8),
    }
    return _timed(columns, week_begin(shown.week) + RANKED_AT_MS)


def _timed(columns: dict[str, pa.Array], time: int) -> pa.Table:
    table = pa.table(columns)
    return table.add_column(0, "timestamp", pa.array(np.full(table.num_rows, time, np.int64)))
