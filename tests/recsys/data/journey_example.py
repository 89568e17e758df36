"""Made-up files of the Complete Journey's form, and what a loop over them says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.completejourney import prepare, raw
from recsys.data.files import find_files
from recsys.dates import DAY_MS, HOUR_MS

HOUSEHOLDS, PRODUCTS, STORES, WEEKS = 12, 40, 3, 9
HOME = {household: household % STORES for household in range(HOUSEHOLDS)}
TYPES = 8
Rows = list[dict[str, Any]]


def product_id(number: int) -> int:
    return 25_000 + 7 * number


def stamps(column: Any) -> list[Any]:
    return pa.array(column, pa.int64()).cast(pa.timestamp("ms")).cast(pa.timestamp("ns"))


def made_up(seed: int = 0, lines: int = 700) -> dict[str, pa.Table]:
    """Households that mostly shop in one store, some products promoted each week in some stores, a few coupons."""
    rng = np.random.default_rng(seed)
    household, week = rng.integers(HOUSEHOLDS, size=lines), rng.integers(1, WEEKS + 1, lines)
    store = np.where(rng.random(lines) < 0.7, household % STORES, rng.integers(STORES, size=lines))
    store = np.where(household == 0, week // 2 % 2, store)  # which of them is its own is told by the latest week alone
    product = np.minimum(rng.geometric(0.08, lines), PRODUCTS) - 1
    time = raw.FIRST_WEEK_MS + (week - 1) * raw.WEEK_MS + rng.integers(3, 6 * 24, lines) * HOUR_MS
    promoted = rng.random((WEEKS, STORES, PRODUCTS)) < 0.5
    at = [index.astype(np.int64) for index in np.nonzero(promoted)]
    offers = pa.table(
        {
            "product_id": product_id(at[2]),
            "store_id": 300 + at[1],
            "display_location": rng.choice(["0", "3", "A"], len(at[0])),
            "mailer_location": rng.choice(["0", "D"], len(at[0])),
            "week": at[0] + 1,
        }
    )
    twice = offers.slice(0, 200).set_column(2, "display_location", pa.array(rng.choice(["0", "3", "5"], 200)))
    number = np.arange(PRODUCTS)
    return {
        "transactions": pa.table(
            {
                "household_id": household + 1,
                "store_id": 300 + store,
                "basket_id": (week * HOUSEHOLDS + household) * STORES + store,
                "product_id": product_id(product),
                "quantity": rng.integers(0, 3, lines),
                "sales_value": rng.integers(1, 400, lines) / 4,
                "coupon_disc": np.where(rng.random(lines) < 0.1, 0.5, 0.0),
                "coupon_match_disc": np.where(rng.random(lines) < 0.02, 0.5, 0.0),
                "week": week,
                "transaction_timestamp": stamps(time),
            }
        ),
        "products": pa.table(
            {
                "product_id": product_id(number),
                "manufacturer_id": number % 5,
                "department": [f"D{n % 2}" for n in number],
                "brand": ["National"] * PRODUCTS,
                "product_category": [f"C{n % 4}" if n else None for n in number],
                "product_type": [f"T{n % TYPES}" if n else None for n in number],
                "package_size": [None if n % 3 else "12 OZ" for n in number],
            }
        ).slice(0, PRODUCTS - 1),  # the last one has been bought, and nobody says what it is
        "promotions": pa.concat_tables([twice, offers]),
        "demographics": pa.table(
            {"household_id": [1, 3]}
            | {name: ["x", None] if name == "income" else ["x", "y"] for name in raw.DEMOGRAPHICS}
        ),
        "campaigns": pa.table({"campaign_id": [1, 1, 2, 2, 9], "household_id": [1, 2, 3, 4, 5]}),
        "campaign_descriptions": pa.table(
            {
                "campaign_id": [1, 2],
                "campaign_type": ["Type A", "Type B"],
                "start_date": stamps(
                    np.array([21, 2]) * DAY_MS + np.datetime64(raw.FIRST_MONDAY, "ms").astype(np.int64)
                ),
                "end_date": stamps(
                    np.array([42, 21]) * DAY_MS + np.datetime64(raw.FIRST_MONDAY, "ms").astype(np.int64)
                ),
            }
        ),
        "coupons": pa.table(
            {
                "coupon_upc": [10**10 + n % 4 for n in range(20)],
                "product_id": [product_id(n % 15) for n in range(20)],
                "campaign_id": [1 + n % 2 for n in range(20)],
            }
        ),
        "coupon_redemptions": pa.table(
            {
                "household_id": [1, 3],
                "coupon_upc": [10**10, 10**10 + 1],
                "campaign_id": [1, 2],
                "redemption_date": stamps(
                    np.array([27, 7]) * DAY_MS + np.datetime64(raw.FIRST_MONDAY, "ms").astype(np.int64)
                ),
            }
        ),
    }


def write_files(folder: Path, tables: dict[str, pa.Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def read_rows(folder: Path, pattern: str = "offers/events/*/*.parquet") -> Rows:
    return pa.concat_tables([pq.ParquetFile(file).read() for file in find_files(folder, [pattern])]).to_pylist()


def receipt_lines(tables: dict[str, pa.Table] | None = None) -> Rows:
    """Receipt lines with time in ms and the product's type and category, by week and time."""
    lines = (tables or made_up())["transactions"]
    time = lines["transaction_timestamp"].cast(pa.timestamp("ms")).cast(pa.int64())
    rows = lines.set_column(lines.num_columns - 1, "time", time).to_pylist()
    about = {row["product_id"]: row for row in made_up()["products"].to_pylist()}
    for row in rows:
        known = about.get(row["product_id"], {})
        row["type"], row["category"] = known.get("product_type") or "", known.get("product_category") or ""
        row["coupon"] = row["coupon_disc"] + row["coupon_match_disc"] > 0
    return sorted(rows, key=lambda row: (row["week"], row["time"]))


def week_of_row(row: dict[str, Any]) -> int:
    begin = row["timestamp"] - prepare.RANKED_AT_MS
    week, rest = divmod(begin - raw.FIRST_WEEK_MS, raw.WEEK_MS)
    assert rest == 0
    return week + 1


def home_store(lines: Rows, household: int, week: int) -> int | None:
    """The store of most earlier baskets, of equal ones the latest, then the lowest id."""
    mine = [row for row in lines if row["household_id"] == household and row["week"] < week]
    baskets = Counter(store for store, _ in {(row["store_id"], row["basket_id"]) for row in mine})
    latest = {row["store_id"]: row["week"] for row in mine}
    return min(baskets, key=lambda store: (-baskets[store], -latest[store], store), default=None)
