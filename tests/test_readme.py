"""The README's own schema and config are valid, and fit each other and data made after its words."""

import re
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.checks import check_daily, check_run, check_towers
from recsys.config import ConfigError, DaysConfig, RefreshConfig, StudyConfig, from_dict, override
from recsys.data.errors import DataError
from recsys.data.schema import Schema
from recsys.folders import store_folder
from recsys.mistakes import MistakesError
from recsys.recipes import RECIPES
from recsys.refresh.cycle import refresh_upstream
from recsys.upstream import train_upstream

README = (Path(__file__).parents[1] / "README.md").read_text()


def toml_blocks() -> list[str]:
    """Schema and config of a study on one's own data, upstreams of other kinds, its days, a refresh's config, and those
    of a second ranker and of a two-tower model."""
    blocks = [block for block in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "[log]" not in block]
    return ["\n".join(line.removeprefix("   ") for line in block.splitlines()) for block in blocks]


def write_days(folder: Path, first: datetime, days: int, rows: int) -> None:
    for day in range(days):
        start = first + timedelta(days=day)
        times = [int(start.timestamp() * 1000) + row for row in range(rows)]
        table = pa.table(
            {
                "timestamp": times,
                "user_id": list(range(rows)),
                "item_id": [-row - 1 for row in range(rows)],
                "recent_items": [[7] * (row % 3) for row in range(rows)],
                "recent_times": [[start_time - 1000] * (row % 3) for row, start_time in enumerate(times)],
                "tags": [[row % 5] for row in range(rows)],
                "price": [0.5] * rows,
                "hour": [row % 24 for row in range(rows)],
                "click": [row % 2 for row in range(rows)],
                "purchase": [None if row % 2 == 0 else 1 for row in range(rows)],
                "watch_seconds": [1.0] * rows,
            }
        )
        out = folder / f"{start:%Y-%m-%d}"
        out.mkdir(parents=True)
        pq.write_table(table, out / "part-0.parquet")


def test_own_data_section(tmp_path: Path) -> None:
    schema, config, *_ = toml_blocks()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/schema.toml").write_text(schema)
    (tmp_path / "mine.toml").write_text(config)
    assert {feature.owner for feature in Schema.load(tmp_path / "mine/schema.toml").features} == {
        "user",
        "item",
        "context",
    }
    run = StudyConfig.load(tmp_path / "mine.toml")
    with pytest.raises(DataError, match=r"mine/events/2026-01-\*"):
        check_run(run, tmp_path)
    write_days(tmp_path / "mine/events", datetime(2026, 1, 20, tzinfo=UTC), days=40, rows=200)
    check_run(run, tmp_path)


def test_upstreams_of_other_kinds(tmp_path: Path) -> None:
    schema, config, kinds, *_ = toml_blocks()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/schema.toml").write_text(schema)
    document = tomllib.loads(config) | tomllib.loads(kinds)
    document["retrieval"]["upstream"] = "mf"
    study = from_dict(StudyConfig, document)
    write_days(tmp_path / "mine/events", datetime(2026, 1, 20, tzinfo=UTC), days=40, rows=200)
    items = pq.ParquetFile(tmp_path / "mine/events/2026-01-20/part-0.parquet").read(["timestamp", "item_id", "tags"])
    (tmp_path / "mine/items").mkdir()
    pq.write_table(items, tmp_path / "mine/items/part-0.parquet")
    check_run(study, tmp_path)
    for upstream in study.upstreams:
        short = replace(upstream, training=replace(upstream.training, epochs=1))
        train_upstream(short, tmp_path, tmp_path / "out")
        refresh_upstream(study.refresh_of(short), tmp_path, tmp_path / "out")
    store = EmbeddingStore(store_folder(tmp_path / "out"))
    assert {"user_mf", "item_mf", "user_graph", "item_graph"} <= set(store.list())
    _, found = store.series("item_graph").latest().load().lookup(torch.tensor([-1, 5]))
    assert found.tolist() == [True, False]


def test_the_days_of_a_study_and_a_refresh_of_its_own(tmp_path: Path) -> None:
    schema, config, _, days, refresh, *_ = toml_blocks()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/schema.toml").write_text(schema)
    (tmp_path / "mine.toml").write_text(config + "\n" + days)
    (tmp_path / "refresh.toml").write_text(refresh)
    write_days(tmp_path / "mine/events", datetime(2026, 1, 20, tzinfo=UTC), days=33, rows=200)
    study = override(StudyConfig.load(tmp_path / "mine.toml"), ("ranks=1", "refresh.days.batch_size=100"))
    with pytest.raises(ConfigError, match=r"rankers\.train has 2800 rows"):  # a small log: the README's would be larger
        check_daily(override(study, ("rankers.training.batch_size=4096",)), tmp_path)
    assert check_daily(study, tmp_path) == []
    alone = RefreshConfig.load(tmp_path / "refresh.toml")
    assert alone.upstream == study.upstreams[0]
    assert alone.day_by_day() == DaysConfig(events="mine/events/{day}/*.parquet", first="2026-02-01")


def test_the_two_tower_model(tmp_path: Path) -> None:
    schema, *_, towers = toml_blocks()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/schema.toml").write_text(schema)
    (tmp_path / "two_tower.toml").write_text(towers)
    (tmp_path / "store/item_ctr").mkdir(parents=True)
    (tmp_path / "store/item_ctr/series.json").touch()
    with pytest.raises(MistakesError) as caught:
        check_towers(tmp_path / "two_tower.toml", tmp_path, str(tmp_path / "store"), ("label=purchse",))
    for words in (r"unknown label 'purchse' (did you mean 'purchase'?)", "2026-02-0*", "series names 'user_ctr'"):
        assert words in str(caught.value)
    (tmp_path / "store/user_ctr").mkdir()
    (tmp_path / "store/user_ctr/series.json").touch()
    write_days(tmp_path / "mine/events", datetime(2026, 2, 1, tzinfo=UTC), days=10, rows=200)
    config = check_towers(tmp_path / "two_tower.toml", tmp_path, str(tmp_path / "store"))
    assert (config.name, config.label, config.series) == ("two_tower", "purchase", ("user_ctr", "item_ctr"))


def test_commands_name_what_exists() -> None:
    root = Path(__file__).parents[1]
    for path in re.findall(r"`((?:recsys|embedding_store|launchers)/[\w/]+\.(?:py|md))`", README):
        assert (root / path).is_file(), path
    for path, component in re.findall(r"(launchers/\w+\.py):(\w+)", README):
        assert f"def {component}(" in (root / path).read_text()
    for recipe in re.findall(r"recsys run ([a-z][\w-]+) ", README):
        assert recipe in RECIPES
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.MULTILINE), target
