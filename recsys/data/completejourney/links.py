"""The panel as links between households, products, coupons and campaigns, for upstreams that learn of a graph.

    graph/schema.toml                of `bought`, as events that are all positive
    graph/bought/<Monday>/           timestamp, user_id, item_id; bought = 1; redeemed: whether with a coupon
    graph/redeemed/<Monday>/         timestamp, user_id, coupon, campaign
    graph/targeted/<Monday>/         timestamp, user_id, campaign: as of the campaign's first day
    graph/covers/<Monday>/           timestamp, coupon, item_id, campaign: as of the campaign's first day
    graph/of/                        item_id, manufacturer, department, brand, product_category, product_type

Each folder of a week has what came to be known in it: whoever reads those up to a week learns nothing of later ones.
What `of` says has no time, and counts as known all along.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.completejourney.raw import Panel, week_name, week_of
from recsys.data.files import write_part
from recsys.data.schema import Feature, Label, Schema

_NAMES = {"household_id": "user_id", "product_id": "item_id", "coupon_upc": "coupon", "campaign_id": "campaign"}


def write_links(panel: Panel, folder: Path) -> None:
    """Write all of them into an empty folder."""
    Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id"),
            Feature(name="item_id", owner="item", kind="id"),
        ),
        labels=(Label(name="bought"), Label(name="redeemed")),
    ).save(folder / "schema.toml")
    write_part(panel.products.drop_columns(["package_size"]), folder / "of")
    _by_week(_bought(panel), folder / "bought")
    redeemed, campaigns = panel.tables["coupon_redemptions"], panel.tables["campaign_descriptions"]
    _by_week(_linked(redeemed, redeemed["redemption_date"]), folder / "redeemed")
    for name, table in (("targeted", panel.tables["campaigns"]), ("covers", panel.tables["coupons"])):
        at = pc.index_in(table["campaign_id"], value_set=campaigns["campaign_id"])
        _by_week(_linked(table, campaigns["start_date"].take(at)), folder / name)


def _bought(panel: Panel) -> pa.Table:
    """A row for each household and product of a week, as of its first purchase."""
    shopped, households, products = panel.purchases, len(panel.households), len(panel.products)
    pair = (shopped.week * households + shopped.household) * products + shopped.product
    pairs, first = np.unique(pair, return_index=True)
    return pa.table(
        {
            "timestamp": shopped.time[first],
            "user_id": panel.households[shopped.household[first]],
            "item_id": panel.product_ids[shopped.product[first]],
            "week": shopped.week[first],
            "bought": np.ones(len(first), np.int8),
            "redeemed": np.isin(pairs, pair[shopped.coupon]).astype(np.int8),
        }
    )


def _linked(table: pa.Table, date: pa.ChunkedArray) -> pa.Table:
    """The ids of a table's rows as of a date; rows without one, of campaigns that nothing tells of, are left out."""
    columns = {_NAMES[name]: table[name] for name in table.column_names if name in _NAMES}
    linked = pa.table({"timestamp": date, **columns}).filter(pc.is_valid(date))
    return linked.append_column("week", pa.array(week_of(linked["timestamp"].to_numpy())))


def _by_week(table: pa.Table, folder: Path) -> None:
    """Write rows with a `week`, by time, into a folder a week."""
    table = table.sort_by([("week", "ascending"), ("timestamp", "ascending")])
    week, table = table["week"].to_numpy(), table.drop_columns(["week"])
    for number in np.unique(week):
        begin, end = np.searchsorted(week, [number, number + 1])
        write_part(table.slice(begin, end - begin), folder / week_name(int(number)))
