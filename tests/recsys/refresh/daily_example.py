"""A tiny log that goes on day by day, and what a refresh of it leaves in the store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from embedding_store import EmbeddingStore, Series
from recsys.config import DaysConfig, RefreshConfig, SpansConfig, StudyConfig, TrainConfig
from recsys.folders import store_folder
from recsys.prior import Prior
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import window
from recsys.refresh.records import Ledger, Record
from recsys.train.distributed import Environment
from tests.recsys.refresh.example import CONFIG, REFRESH, events, save_checkpoint, write_log

DAYS = [f"1970-01-0{number}" for number in range(2, 8)]
DAILY = DaysConfig(events="days/{day}/*.parquet", first=DAYS[0], last=DAYS[-1])
SPANS = SpansConfig(train=(DAYS[0], DAYS[1]), validation=(DAYS[2], DAYS[2]), test=(DAYS[3], DAYS[4]))
PLAIN = ("user_ctr", "item_ctr")


def daily_study(**refresh: Any) -> StudyConfig:
    """The example's study with days: an epoch of three steps a day."""
    (upstream,) = CONFIG.upstreams
    training = TrainConfig(epochs=2, batch_size=8, shuffle_batches=2, log_every=1)
    settings = replace(CONFIG.refresh, days=DAILY, **refresh)
    return replace(CONFIG, upstreams=(replace(upstream, training=training),), refresh=settings, spans=SPANS)


def daily_config(**refresh: Any) -> RefreshConfig:
    """The refresh of its upstream."""
    upstream = replace(CONFIG.upstreams[0], training=daily_study().upstreams[0].training)
    return replace(REFRESH, upstream=upstream, days=DAILY, **refresh)


def write_day(
    root: Path, day: str, *, rows: int = 24, seed: int | None = None, users: int = 20, days: DaysConfig = DAILY
) -> Path:
    """Deliver a day, or deliver it again; its users are those of the log from -10 on."""
    start, end = window(days, day)
    seed = DAYS.index(day) + 1 if seed is None else seed
    table = events(rows, seed=seed, users=users)
    times = np.sort(np.random.default_rng(seed).integers(start, end, rows))
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times))
    staged, folder = root / f"days/.{day}", root / f"days/{day}"
    staged.mkdir(parents=True)
    pq.write_table(table, staged / "part-0.parquet", row_group_size=7)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
    return folder / "part-0.parquet"


def change(path: Path, values: dict[int, dict[str, Any]], gone: tuple[int, ...] = ()) -> None:
    """Write a file anew with other values in some rows and without some others, in the same row groups of seven."""
    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    for row, changed in values.items():
        rows[row] |= changed
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, len(rows), 7):
            kept = [rows[row] for row in range(start, min(start + 7, len(rows))) if row not in gone]
            writer.write_table(pa.Table.from_pylist(kept, table.schema))


def start_run(folder: Path, days: list[str], environment: Environment) -> tuple[Path, Path]:
    """A log with these days, and a run whose upstream has been trained on its source: data, out."""
    data, out = write_log(folder / "data"), folder / "out"
    for day in days:
        write_day(data, day)
    save_checkpoint(out, 1, environment)
    return data, out


def records(out: Path) -> list[Record]:
    return Ledger(out, "ctr").records()


def snapshots(out: Path, name: str) -> list[tuple[int, int, str]]:
    """(version, as_of, space) of a series."""
    history = EmbeddingStore(store_folder(out)).series(name).history()
    return [(snapshot.version, snapshot.as_of, snapshot.space) for snapshot in history]


def contents(out: Path) -> dict[str, Any]:
    """What a reader can see of a store: every version of the vectors, the activity that goes with it, the tags."""
    store = EmbeddingStore(store_folder(out))
    found: dict[str, Any] = {}
    for name in store.list():
        if name.endswith(".activity"):
            continue
        if name.endswith(".prior"):
            for as_of in {snapshot.as_of for snapshot in store.series(name).history()}:
                prior = Prior.load(store.series(name).as_of(as_of))
                found[name, as_of] = prior.ids.tolist(), prior.values.tolist()
            continue
        series, activity = store.series(name), store.series(f"{name}.activity")
        found[name, "tags"] = series.tags()
        for snapshot in series.history():
            table = snapshot.load()
            ids = table.ids()
            found[name, snapshot.version, snapshot.as_of, snapshot.space] = (
                ids.tolist(),
                table.lookup(ids)[0].tolist(),
            )
        for as_of in {snapshot.as_of for snapshot in series.history()}:  # of equal ones the last is what goes on
            table, active = series.as_of(as_of).load(), activity.as_of(as_of).load()
            assert torch.equal(table.ids(), active.ids())
            found[name, "activity", as_of] = active.lookup(active.ids())[0].tolist()
    return found


def series(out: Path, name: str = "user_ctr") -> Series:
    return EmbeddingStore(store_folder(out)).series(name)


def refresh(config: RefreshConfig, data: Path, out: Path, **options: Any) -> list[str]:
    """Refresh; the days whose cycles were run."""
    return [record.day for record in refresh_upstream(config, data, out, **options)]
