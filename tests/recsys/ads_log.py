"""A log of impressions as an ads team has it: clicks, revenue, and conversions that come later, all of known rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import ArmConfig, NetworkConfig, RankerConfig, RankerTrainConfig
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import DAY_MS

START = 1_700_000_000_000
ITEMS = 12
SCHEMA = Schema(
    features=(
        Feature(name="user_id", owner="user", kind="id", rows=64),
        Feature(name="item_id", owner="item", kind="id", rows=ITEMS),
        Feature(name="hour", owner="context", kind="id", rows=24),
    ),
    labels=(
        Label(name="click"),
        Label(name="revenue", kind="value"),
        Label(name="spent", kind="value", valid="click"),
    ),
)
RANKER = RankerConfig(
    name="ads",
    schema="schema.toml",
    train=("train/*.parquet",),
    validation=("validation/*.parquet",),
    test=("validation/*.parquet",),
    tasks={"ctr": "click", "revenue": "revenue"},
    publish_delay_ms=0,
    seeds=(0,),
    arms=(ArmConfig(name="none"),),
    network=NetworkConfig(embedding_dim=4, hidden=(16,), dropout=0.0),
    training=RankerTrainConfig(epochs=8, batch_size=256, shuffle_batches=4, dense_lr=0.01, sparse_lr=0.2),
)


@dataclass(frozen=True)
class Truth:
    """What the rows were drawn from, by item [ITEMS]."""

    click: np.ndarray
    spent: np.ndarray
    """Expected revenue of a click."""

    @property
    def revenue(self) -> np.ndarray:
        """Expected of an impression."""
        return self.click * self.spent


TRUTH = Truth(click=np.linspace(0.2, 0.6, ITEMS), spent=50 * 1.3 ** ((5 * np.arange(ITEMS)) % ITEMS))


def impressions(rows: int, seed: int, *, start: int = START, span: int = DAY_MS) -> dict[str, np.ndarray]:
    """Rows in order of time, without and with a click, and its revenue."""
    rng = np.random.default_rng(seed)
    item = rng.integers(0, ITEMS, rows)
    click = rng.random(rows) < TRUTH.click[item]
    spent = rng.exponential(TRUTH.spent[item])
    return {
        "timestamp": start + np.sort(rng.integers(0, span, rows)),
        "user_id": rng.integers(0, 40, rows),
        "item_id": item,
        "hour": rng.integers(0, 24, rows),
        "click": click.astype(np.int8),
        "revenue": click * spent,
        "spent": np.where(click, spent, np.nan),
        "importance": np.ones(rows),
    }


def write(folder: Path, columns: dict[str, np.ndarray | pa.Array], part: str) -> None:
    """Put rows into `folder/part`."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / part / "a.parquet", row_group_size=2000)


def write_log(folder: Path, schema: Schema = SCHEMA, rows: int = 12_000) -> Path:
    """Files to train on, and to choose the pass by."""
    folder.mkdir(parents=True, exist_ok=True)
    schema.save(folder / "schema.toml")
    write(folder, impressions(rows, 0), "train")
    write(folder, impressions(rows // 3, 1, start=START + DAY_MS), "validation")
    return folder


WINDOW = 7 * DAY_MS
SPAN = 8 * DAY_MS
"""Of what is trained on: the window of one row in eight has ended at its end."""


def sales(rows: int, seed: int, *, start: int = START, span: int = SPAN) -> dict[str, np.ndarray | pa.Array]:
    """Rows each of which is followed by a sale as often as TRUTH has clicks, some days later, all of them known."""
    columns: dict[str, np.ndarray | pa.Array] = dict(impressions(rows, seed, start=start, span=span))
    rng = np.random.default_rng((seed, 1))
    item, time = columns["item_id"], columns["timestamp"]
    sale = rng.random(rows) < TRUTH.click[item]
    delay = (rng.exponential(5 * DAY_MS, rows) % WINDOW).astype(np.int64)
    return columns | {"sale": sale.astype(np.int8), "sold_at": pa.array(time + delay, mask=~sale)}


def sale_schema(delayed: str) -> Schema:
    """Sales alone."""
    label = Label(name="sale", time="sold_at", window="7d", delayed=delayed)
    return Schema(features=SCHEMA.features, labels=(label,))


def write_sales(folder: Path, delayed: str, rows: int = 8_000) -> Path:
    """Eight days to train on, and later ones to choose the pass by."""
    folder.mkdir(parents=True, exist_ok=True)
    sale_schema(delayed).save(folder / "schema.toml")
    write(folder, sales(rows, 0), "train")
    write(folder, sales(rows // 4, 1, start=START + SPAN, span=DAY_MS), "validation")
    return folder
