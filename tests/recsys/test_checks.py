import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.checks import check_run
from recsys.config import (
    ConfigError,
    DaysConfig,
    LossConfig,
    RankerSettings,
    RankerTrainConfig,
    RefreshSettings,
    RetrievalConfig,
    StudyConfig,
    TrainConfig,
)
from recsys.config import UpstreamConfig as Upstream
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.schema import Feature, Schema, SchemaError
from recsys.data.stream import EventStream
from recsys.data.synthetic import market_split, prepare_synthetic
from recsys.recipes import synthetic
from tests.recsys.refresh.example import CONFIG, SCHEMA, UNTIMED, events, write_log

SMALL = TrainConfig(batch_size=8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_log(tmp_path_factory.mktemp("log"))
    for name in ("train", "test"):
        (folder / name).mkdir()
    pq.write_table(events(60, seed=2), folder / "train/a.parquet")
    pq.write_table(events(20, seed=3), folder / "test/a.parquet")
    pq.write_table(events(20, seed=4), folder / "test/b.parquet")
    return folder


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data, to be spoiled."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


RANKERS = RankerSettings(
    schema="schema.toml",
    train=("train/*.parquet",),
    validation=("test/a.parquet",),
    test=("test/b.parquet",),
    tasks={"ctr": "click"},
    training=RankerTrainConfig(batch_size=8),
)


def run(**changes: Any) -> StudyConfig:
    """A config that fits; `changes` are of its upstream, or of the run where they name one of its fields."""
    top = {name: changes.pop(name) for name in ("rankers", "fragment", "retrieval", "ranks") if name in changes}
    upstream: Upstream = replace(CONFIG.upstreams[0], training=SMALL, **changes)
    return replace(CONFIG, upstreams=(upstream,), **{"rankers": RANKERS, **top})


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_what_fits_passes(data: Path) -> None:
    check_run(run(), data)
    fragment = replace(RANKERS, features=("age", "tags"))
    check_run(run(fragment=fragment, retrieval=RetrievalConfig(label="click"), ranks=7), data)


def test_the_recipe_fits_the_market(tmp_path: Path) -> None:
    prepare_synthetic(tmp_path, users=200, items=100, events_per_day=3000)
    check_run(synthetic(), tmp_path)
    assert find_files(tmp_path, market_split().test)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (run(features=("user_id", "nope")), SchemaError, "unknown feature 'nope'; the schema has: user_id, seen"),
        (
            run(tasks=("like", "clik")),
            SchemaError,
            r"(?s)upstreams.ctr.tasks: unknown label 'like'.*'clik' \(did you mean 'click'\?\); the schema has: click",
        ),
        (
            run(loss=LossConfig(contrastive_label="like")),
            ConfigError,
            r"upstreams.ctr.loss.contrastive_label is 'like'; use one of its tasks: \['click'\]",
        ),
        (
            run(features=("user_id", "hour")),
            ConfigError,
            "upstream 'ctr' has no item feature: its item tower needs one",
        ),
        (run(features=("tags", "hour")), ConfigError, "upstream 'ctr' has no user feature"),
        (
            run(ranks=8),
            ConfigError,
            "'ctr' has 60 rows, less than one step of 8 ranks x 8: lower ranks, or leave out upstreams.ctr.training",
        ),
        (
            run(rankers=replace(RANKERS, training=RankerTrainConfig(batch_size=61))),
            ConfigError,
            "rankers.train has 60 rows, less than one step of 61: leave out rankers.training.batch_size",
        ),
        (run(rankers=replace(RANKERS, features=("nope",))), SchemaError, "unknown feature 'nope'"),
        (run(rankers=replace(RANKERS, tasks={"ctr": "like"})), SchemaError, "unknown label 'like'"),
        (run(fragment=replace(RANKERS, features=("nope",))), SchemaError, "unknown feature 'nope'"),
        (
            run(fragment=replace(RANKERS, training=RankerTrainConfig(batch_size=61))),
            ConfigError,
            "fragment.train has 60 rows",
        ),
        (
            run(rankers=replace(RANKERS, validation=("test/*.parquet",))),
            ConfigError,
            "b.parquet is both in rankers.validation and in rankers.test: give each rows of its own",
        ),
        (
            run(rankers=replace(RANKERS, train=("train/*.parquet", "events/part-1.parquet"))),
            ConfigError,
            "part-1.parquet is both in upstreams.ctr.source.events and in rankers.train: give each rows of its own",
        ),
        (
            run(fragment=replace(RANKERS, test=("events/part-2.parquet",))),
            ConfigError,
            "part-2.parquet is both in upstreams.ctr.source.events and in fragment.test",
        ),
        (
            run(rankers=replace(RANKERS, train=("*/*.parquet",), features=("age",))),
            ConfigError,  # of several kinds: the files are in other splits too
            r"users/part-0.parquet: column 'item_id' is missing",
        ),
        (run(retrieval=RetrievalConfig(label="like")), SchemaError, "unknown label 'like'"),
        (run(rankers=replace(RANKERS, test=("none/*",))), DataError, r"pattern 'none/\*' matches nothing"),
        (run(rankers=replace(RANKERS, schema="none.toml")), DataError, "correct rankers.schema in the config"),
        (
            run(source=replace(CONFIG.upstreams[0].source, schema="none.toml")),
            DataError,
            "none.toml: no such schema.*; correct upstreams.ctr.source.schema in the config",
        ),
    ],
)
def test_a_config_that_does_not_fit(prepared: Path, config: StudyConfig, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        check_run(config, prepared)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("events/part-1.parquet", lambda t: t.drop_columns(["tags"]), "part-1.parquet: column 'tags' is missing"),
        ("events/part-2.parquet", lambda t: t.drop_columns(["click"]), "part-2.parquet: column 'click' is missing"),
        ("events/part-0.parquet", lambda t: t.drop_columns(["timestamp"]), "part-0.parquet: column 'timestamp' is mis"),
        (
            "events/part-1.parquet",
            lambda t: column(t, "age", ["old"] * len(t)),
            r"part-1.parquet: column 'age' has type string; it is feature 'age' \(dense\) and must be a number",
        ),
        (
            "events/part-1.parquet",
            lambda t: column(t, "timestamp", np.zeros(len(t), "datetime64[ms]")),
            r"part-1.parquet: column 'timestamp' has type timestamp\[ms\]",
        ),
        (
            "events/part-1.parquet",
            lambda t: column(t, "user_id", ["a"] * len(t)),
            "part-1.parquet: column 'user_id' is read as string here and as int64 before",
        ),
        ("events/part-1.parquet", lambda t: t.slice(0, 0), "part-1.parquet holds no rows"),
        ("test/b.parquet", lambda t: t.slice(0, 0), "b.parquet holds no rows"),
        ("test/a.parquet", lambda t: t.drop_columns(["seen"]), "a.parquet: column 'seen' is missing"),
        ("users/part-0.parquet", lambda t: t.drop_columns(["seen_time"]), "part-0.parquet: column 'seen_time' is mis"),
        ("users/part-0.parquet", lambda t: t.drop_columns(["timestamp"]), "part-0.parquet: column 'timestamp' is miss"),
        (
            "users/part-0.parquet",
            lambda t: column(t, "user_id", ["a"] * len(t)),
            "users/part-0.parquet: column 'user_id' is read as string here and as int64 before",
        ),
    ],
)
def test_a_file_that_does_not_fit(data: Path, file: str, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    rewrite(data / file, change)
    with pytest.raises(DataError, match=message):
        check_run(run(), data)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_corrupt_file_in_the_middle_of_a_folder(data: Path, damage: str) -> None:
    path = data / "events/part-1.parquet"
    content = {"truncated": path.read_bytes()[:-10], "empty": b"", "text": b"timestamp,user_id\n1,2\n"}[damage]
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"part-1.parquet \({len(content)} bytes\) is no readable Parquet file"):
        check_run(run(), data)


def test_a_schema_that_contradicts_itself(data: Path) -> None:
    text = (data / "schema.toml").read_text()
    (data / "schema.toml").write_text(text.replace('"dense"', '"number"'))
    with pytest.raises(SchemaError, match=r"schema.toml: feature 'age': kind is 'number'; use one of id"):
        check_run(run(), data)


def test_a_log_without_event_times(data: Path) -> None:
    UNTIMED.save(data / "schema.toml")
    for path in data.rglob("*.parquet"):
        rewrite(path, lambda table: table.drop_columns(["timestamp", "seen_time"]))
    with pytest.raises(ConfigError, match=r"publish_delay_ms is 21600000, but .*schema.toml .*publish_delay_ms = 0"):
        check_run(run(), data)
    config = run(rankers=replace(RANKERS, publish_delay_ms=0))
    check_run(config, data)
    days = DaysConfig(events="days/{day}/*", first="2024-01-31")
    with pytest.raises(ConfigError, match=r"'ctr' is to be refreshed by days, but schema.toml says timestamp"):
        check_run(replace(config, refresh=RefreshSettings(days=days)), data)


def test_event_times_on_one_side_alone(data: Path) -> None:
    """A ranker would read every snapshot, or none, whatever the upstream has seen."""
    UNTIMED.save(data / "untimed.toml")
    untimed = replace(RANKERS, schema="untimed.toml", publish_delay_ms=0)
    with pytest.raises(ConfigError, match=r"of upstreams.ctr.source has event times, that of fragment has none"):
        check_run(run(fragment=untimed), data)
    source = replace(CONFIG.upstreams[0].source, schema="untimed.toml")
    with pytest.raises(ConfigError, match=r"of rankers has event times, that of upstreams.ctr.source has none"):
        check_run(run(source=source), data)
    check_run(run(source=source, rankers=untimed), data)


def test_a_schema_without_labels(data: Path) -> None:
    Schema(features=SCHEMA.features).save(data / "bare.toml")
    config = run(source=replace(CONFIG.upstreams[0].source, schema="bare.toml"))
    with pytest.raises(ConfigError, match=r"upstream 'ctr' has no label to predict: add one to bare.toml"):
        check_run(config, data)


def test_a_schema_without_features(data: Path) -> None:
    Schema(labels=SCHEMA.labels).save(data / "bare.toml")
    with pytest.raises(ConfigError, match=r"rankers has no feature: a ranker needs one, add it to bare.toml"):
        check_run(run(rankers=replace(RANKERS, schema="bare.toml")), data)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"schema.toml: no such schema; .*or --data"):
        check_run(run(), tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("click", 2, "column 'click', row 3: the label is 2; it must be 0 or 1"),
        ("click", None, "column 'click', row 3: the label is null or NaN"),
        ("timestamp", -1, "column 'timestamp', row 3: the event time is -1"),
    ],
)
def test_what_only_reading_can_tell_names_file_and_row(data: Path, name: str, value: int | None, message: str) -> None:
    """The check opens footers alone; the stream that trains says where."""
    path = data / "events/part-1.parquet"
    values = pq.read_table(path)[name].to_pylist()
    values[3] = value
    rewrite(path, lambda table: column(table, name, values))
    check_run(run(), data)
    with pytest.raises(DataError, match=f"part-1.parquet: {message}"):
        list(EventStream(find_files(data, ["events/*.parquet"]), SCHEMA, batch_size=8))


def test_nothing_is_written(prepared: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in prepared.rglob("*"))
    check_run(run(), prepared)
    assert sorted((path, path.stat().st_mtime_ns) for path in prepared.rglob("*")) == before


def test_entity_rows_may_lack_the_other_entitys_features(data: Path) -> None:
    wide = Schema(features=(*SCHEMA.features, Feature(name="extra", owner="item", kind="dense")), labels=SCHEMA.labels)
    wide.save(data / "schema.toml")
    for path in (path for name in ("events", "train", "test") for path in sorted((data / name).iterdir())):
        rewrite(path, lambda table: table.append_column("extra", pa.array(np.zeros(len(table)))))
    check_run(run(), data)
