"""`recsys check`: forty mistakes in a config, and some in schemas and files, each told in one sentence, all at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import cli
from recsys.checks import check_config
from recsys.config import ArmConfig, ConfigError, RankerConfig, RankerSettings, RefreshConfig, UpstreamConfig
from recsys.mistakes import MistakesError
from recsys.recipes import check_recipe
from tests.recsys.refresh.example import CONFIG, REFRESH, events, write_log

CONFIG_TEXT = """
name = 3
note = ["what it is"]
ranks = "two"
rnks = 2

[[upstreams]]
name = "ctr"
taks = ["clik", "click"]
features = ["user_id", "item_idd"]
source = { schema = "schema.toml", events = ["evnts/*.parquet"], users = "users/*.parquet" }
model = { token_dim = "16", heads = 3, layers = [["masknet", "cnn"]] }
training = { epoch = 2, batch_size = -1, sparse_lr = "0.02", dense_lr = "high", seed = -1 }
loss = { temperature = 0, contrastive_label = "clck" }
batch_size = 8

[[upstreams]]
name = "c-v-r"
source = { schema = "shcema.toml", events = [] }

[refresh]
aggregation = "mean"
weight = 80
epochs = 1
[refresh.days]
events = "days/*.parquet"
first = 1970-01-02
last = "1970-13-01"
utc_offset_hours = 7200
[refresh.gates]
min_coverage = 50

[rankers]
schema = "schema.toml"
features = ["hourr"]
tasks = { ctr = "clik" }
train = ["train/*.parquet"]
validation = ["test/a.parquet"]
test = ["test/*.parquet"]
publish_delay_ms = "6 hours"
seeds = [1, 1]
netwrok = { dropout = 30 }
training = { batch_size = 64 }

[retrieval]
upstream = "crt"
label = "buy"
k = 10

[spans]
train = ["1970-01-02", "1970-01-04"]
validation = ["1970-01-04", "1970-01-05"]
test = ["1970-01-06"]
"""
TOLD = """
unknown key rnks (did you mean 'ranks'?)
name is 3; it must be a string: "3"
note is ['what it is']; it must be a string
ranks is 'two'; it must be an integer
unknown key upstreams.ctr.taks (did you mean 'tasks'?)
unknown key upstreams.ctr.batch_size (did you mean 'training.batch_size'?)
upstreams.ctr.source.users is 'users/*.parquet'; it must be a list: ["users/*.parquet"]
upstreams.ctr.model.token_dim is '16'; it must be an integer: 16
upstreams.ctr.model.heads is 3; it must divide token_dim = 16
upstreams.ctr.model.layers names 'cnn'; use one of
unknown key upstreams.ctr.training.epoch (did you mean 'epochs'?)
upstreams.ctr.training.sparse_lr is '0.02'; it must be a number: 0.02
upstreams.ctr.training.dense_lr is 'high'; it must be a number
upstreams.ctr.training.batch_size is -1; use 1 or more, or 0
upstreams.ctr.training.seed is -1; use 0 <= seed
upstreams.ctr.loss.temperature is 0.0; use more than 0
upstreams.c-v-r.name is 'c-v-r'; use
upstreams.c-v-r.source.events is empty: give
unknown key refresh.epochs (it is in [refresh.days] now)
refresh.days.events is 'days/*.parquet'; give a pattern
refresh.days.last names the day '1970-13-01'; write it as 2024-01-31
refresh.days.utc_offset_hours is 7200.0; use hours from -14 to 14
refresh.gates.min_coverage is 50.0; use a number from 0 to 1
refresh.aggregation is 'mean'; use one of 'ma'
refresh.weight is 80.0; use 0 <= weight < 1
unknown key rankers.netwrok (did you mean 'network'?)
rankers.publish_delay_ms is '6 hours'; it must be an integer
rankers.seeds is (1, 1); use different ones
rankers.netwrok.dropout is 30.0; use 0 <= p < 1
retrieval.k is 10; it must be a list: [10]
retrieval.upstream is 'crt'; use one of ctr
spans.test is ['1970-01-06']; give its first and its last day
mine.toml: upstreams.ctr.tasks: unknown label 'clik' (did you mean 'click'?)
upstreams.ctr.features: unknown feature 'item_idd' (did you mean 'item_id'?)
pattern 'evnts/*.parquet' matches nothing in DATA (did you mean 'events/*.parquet'?)
shcema.toml: no such schema (did you mean 'schema.toml'?)
rankers.features: unknown feature 'hourr' (did you mean 'hour'?)
rankers.tasks: unknown label 'clik' (did you mean 'click'?)
rankers.train has 30 rows, less than one step of 64
test/a.parquet is both in rankers.validation and in rankers.test: give each rows of its own
retrieval.label: unknown label 'buy'; the schema has: click
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_log(tmp_path / "data")
    for name, seed in (("train/a", 2), ("test/a", 3), ("test/b", 4)):
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(events(30, seed=seed), folder / f"{name}.parquet")
    return folder


def told(*arguments: object) -> tuple[str, ...]:
    with pytest.raises(MistakesError) as caught:
        check_config(*arguments)
    return caught.value.told


def test_every_mistake_is_told_at_once_and_quickly(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CONFIG_TEXT)
    code = "import atexit, sys, recsys.cli; atexit.register(lambda: print('torch' in sys.modules)); recsys.cli.main()"
    command = [sys.executable, "-c", code, "check", str(tmp_path / "mine.toml"), "--data", str(data)]
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert done.stdout == "False\n"
    first, *mistakes = done.stderr.splitlines()
    wanted = TOLD.replace("DATA", str(data)).strip().splitlines()
    missed = [each for each in wanted if not any(each in line for line in mistakes)]
    beyond = [line for line in mistakes if not any(each in line for each in wanted)]
    assert not missed
    assert not beyond
    assert first == f"error: {len(wanted)} mistakes"


def test_mistakes_of_a_schema_and_of_files(data: Path, tmp_path: Path) -> None:
    text = (data / "schema.toml").read_text()
    changes = {'"dense"': '"number"', "rows = 9": "row = 9", "max_length = 4": 'max_length = "4"'}
    for right, wrong in (*changes.items(), ('name = "click"', 'name = 3\nvlaid = "click"')):
        text = text.replace(right, wrong)
    (data / "schema.toml").write_text("max_bad_rows = 5\n" + text)
    path = tmp_path / "mine.toml"
    CONFIG.save(path)
    assert [
        each.replace(f"{data}/schema.toml: ", "") for each in told(path, data) if each.startswith(f"{data}/schema")
    ] == [
        "feature 'seen': max_length is '4'; use an integer",
        "feature 'age': kind is 'number'; use one of id, ids, sequence, dense, vector",
        "feature 'tags': unknown key 'row' (did you mean 'rows'?); known keys: name, owner, kind, rows, table, "
        "max_length, time, width",
        "label 3: unknown key 'vlaid' (did you mean 'valid'?); known keys: name, kind, valid, kept_negatives, "
        "time, window, delayed",
        "label 3: name is 3; use a string",
        "max_bad_rows is 5; use a share, 0 or more, below 1",
    ]


def test_mistakes_of_columns_units_and_rows(data: Path, tmp_path: Path) -> None:
    bad = pq.read_table(data / "train/a.parquet").drop_columns(["tags"]).rename_columns({"hour": "hours"})
    bad = bad.set_column(0, "timestamp", pa.array(np.full(len(bad), 1_700_000_000)))
    for number in range(3):
        pq.write_table(bad, data / f"train/{number}.parquet")
    late = pq.read_table(data / "test/b.parquet")
    late = late.set_column(0, "timestamp", pa.array(np.full(len(late), 1_700_000_000_000_000)))
    pq.write_table(late, data / "test/b.parquet")
    (data / "users/part-0.parquet").write_text("user_id,age")
    path = tmp_path / "mine.toml"
    CONFIG.save(path)
    changes = ("rankers.train=['train/*']", "rankers.validation=['test/a.*']", "rankers.test=['test/b.*']")
    found = "\n".join(told(path, data, (*changes, "upstreams.ctr.training.batch_size=512")))
    for each in (
        "train/0.parquet: column 'tags' is missing",
        "train/0.parquet: column 'hour' is missing (did you mean 'hours'?)",
        "(and so in 2 more files)",
        "test/b.parquet: column 'timestamp': the event time is 1700000000000000, which reads as microseconds",
        "users/part-0.parquet (11 bytes) is no readable Parquet file",
        "upstream 'ctr' has 60 rows, less than one step of 2 ranks x 512",
    ):
        assert each in found
    assert len(found.splitlines()) == 6


def test_jobs_are_checked_too(data: Path, tmp_path: Path) -> None:
    upstream, path = CONFIG.upstreams[0], tmp_path / "job.toml"
    small = "training.batch_size=8"
    upstream.save(path)
    assert isinstance(check_config(path, data, (small,)), UpstreamConfig)
    assert told(path, data, (small, "tasks=['clik']")) == (
        f"{path}: tasks: unknown label 'clik' (did you mean 'click'?); the schema has: click",
    )
    REFRESH.save(path)
    assert isinstance(check_config(path, data, (f"upstream.{small}",)), RefreshConfig)
    assert told(path, None, ("agregation='latest'", "upstream.loss.tau=1")) == (
        f"{path}: unknown key agregation (did you mean 'aggregation'?); `recsys config` lists every key",
        f"{path}: unknown key upstream.loss.tau; `recsys config` lists every key",
    )


def test_series_are_looked_for_in_the_store(data: Path, tmp_path: Path) -> None:
    path, store = tmp_path / "ranker.toml", tmp_path / "store"
    arms = (ArmConfig(name="none"), ArmConfig(name="ctr", series=("user_ctr", "item_crt")))
    splits = {"train": ("train/*",), "validation": ("test/a.*",), "test": ("test/b.*",)}
    rankers = RankerSettings(schema="schema.toml", tasks={"ctr": "click"}, **splits)
    RankerConfig(name="mine", arms=arms, **vars(rankers)).save(path)
    small = ("training.batch_size=8",)
    assert isinstance(check_config(path, data, small), RankerConfig)
    for name in ("user_ctr", "item_ctr"):
        (store / name).mkdir(parents=True)
        (store / name / "series.json").write_text("{}")
    assert told(path, data, small, store) == (
        f"{path}: arms.ctr.series names 'item_crt', which {store} lacks (did you mean 'item_ctr'?); it has: item_ctr, "
        "user_ctr",
    )
    assert "holds no series: give the folder of a store" in told(path, data, small, data)[0]


def test_recipes_are_checked_with_their_changes(tmp_path: Path) -> None:
    check_recipe("kuairand", tmp_path, ("refresh.days.last=2022-05-08", "upstreams.ctr.training.epochs=1"))
    for arguments, message in (
        (("kuairnad", None, ()), "recipe 'kuairnad' is unknown (did you mean 'kuairand'?); use kuairand"),
        (("demo", None, ("rank=1",)), "unknown key rank (did you mean 'ranks'?)"),
        (("kuairand", tmp_path / "none", ()), "which is no folder: give the one with the raw files of kuairand"),
    ):
        with pytest.raises(MistakesError) as caught:
            check_recipe(*arguments)
        assert message in str(caught.value)


def test_a_date_may_be_written_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[upstream]\nname='a'\nsource={schema='s', events=['e']}\n[days]\nevents='{day}'\nfirst=2024-01-31")
    config = RefreshConfig.load(path)
    assert config.day_by_day().first == "2024-01-31"
    with pytest.raises(ConfigError, match="last names the day '2024-02-01T10:00:00'; write it as 2024-01-31"):
        check_config(path, None, ("days.last=2024-02-01T10:00:00",))
