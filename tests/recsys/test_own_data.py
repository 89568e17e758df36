"""The whole way on a log such as a team would bring: ids that are strings, files of two writers, no entity rows."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from embedding_store import EmbeddingStore
from recsys.checks import check_run
from recsys.config import (
    LossConfig,
    ModelConfig,
    NetworkConfig,
    RankerSettings,
    RankerTrainConfig,
    RetrievalConfig,
    SourceConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.convert import to_batch
from recsys.data.quarantine import NOTHING
from recsys.data.schema import Feature, Label, Schema
from recsys.downstream import ranking
from recsys.downstream.ranking import Ranker, train_ranker, train_rankers
from recsys.evaluate.metrics import normalized_entropy
from recsys.evaluate.recalibration import fit_recalibration
from recsys.folders import store_folder, upstream_folder
from recsys.models.derm import DERM
from recsys.refresh.cycle import refresh_upstream
from recsys.source import upstream_schema
from recsys.study import sample
from recsys.study.ablation import ablation_jobs
from recsys.study.collect import collect_results
from recsys.study.report import RunResults, build_report, write_report
from recsys.study.retrieval import HOURS, WEIGHTS
from recsys.study.transfer import upstream_entropies
from recsys.train.checkpoint import load_model
from recsys.train.distributed import process_group
from recsys.train.tables import allocate
from recsys.upstream import train_upstream

USERS, ITEMS, DAYS, DAY_MS = 40, 20, 6, 86_400_000
SCHEMA = Schema(
    features=(
        Feature(name="member", owner="user", kind="id", rows=1000),
        Feature(name="plan", owner="user", kind="id", rows=10),
        Feature(name="sku", owner="item", kind="id", rows=1000),
        Feature(name="price", owner="item", kind="dense"),
        Feature(name="page", owner="context", kind="id", rows=4),
    ),
    labels=(Label(name="opened"), Label(name="bought", valid="opened")),
    timestamp="at",
    user_id="member",
    item_id="sku",
)
CONFIG = StudyConfig(
    name="own data",
    upstreams=(
        UpstreamConfig(
            name="open",
            source=SourceConfig(schema="schema.toml", events=("log/day=[01]/*.parquet",)),
            # Which ids are dropped hangs on the events' times: none, for a log without times to come to the same.
            model=ModelConfig(token_dim=8, layers=(("mlp",),), tokens=2, out_dim=4, id_dropout=0.0),
            loss=LossConfig(contrastive_label="opened", contrastive_weight=0.1),
            training=TrainConfig(epochs=2, batch_size=64),
        ),
    ),
    rankers=RankerSettings(
        schema="schema.toml",
        train=("log/day=[23]/*.parquet",),
        validation=("log/day=4/*.parquet",),
        test=("log/day=5/*.parquet",),
        tasks={"ctr": "opened", "cvr": "bought"},
        publish_delay_ms=3_600_000,
        seeds=(0, 1),
        network=NetworkConfig(embedding_dim=4, projection_dim=4, hidden=(8,), id_dropout=0.0),  # likewise
        training=RankerTrainConfig(epochs=1, batch_size=64),
    ),
    retrieval=RetrievalConfig(upstream="open", k=(5,)),
    upstream_seeds=(0, 3),
    ranks=1,
)


def day(number: int, rows: int = 300) -> pa.Table:
    """A day of events; odd days come from a writer with other types. User 39 appears only on the last day."""
    rng = np.random.default_rng(number)
    user, item = rng.integers(0, USERS - (number < DAYS - 1), rows), rng.integers(0, ITEMS, rows)
    opened = rng.random(rows) < 0.2 + 0.6 * ((user + item) % 3 == 0)
    table = pa.table(
        {
            "at": np.sort(number * DAY_MS + rng.integers(2 * 3_600_000, DAY_MS, rows)),
            "member": [f"user-{x}" for x in user],
            "plan": pa.array([None if x % 7 == 0 else ("free", "paid")[x % 2] for x in user]),
            "sku": [f"sku/{x:04d}" for x in item],
            "price": item * 1.5,
            "page": rng.integers(0, 4, rows),
            "opened": opened,
            # null where nothing was opened: there is nothing to be bought
            "bought": pa.array((rng.random(rows) < 0.5).astype(np.int8), mask=~opened),
        }
    )
    if number % 2:
        kinds = {"member": pa.large_string(), "price": pa.float32(), "page": pa.int16(), "opened": pa.int32()}
        for name, kind in kinds.items():
            table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
        table = table.set_column(3, "sku", table["sku"].combine_chunks().dictionary_encode())
    return table


def write_log(data: Path, schema: Schema) -> None:
    """All days, each in two files, with the columns of the schema."""
    for number in range(DAYS):
        (data / f"log/day={number}").mkdir(parents=True)
        table = day(number).select(list(schema.columns()))
        for name, rows in (("a", table.slice(0, 180)), ("b", table.slice(180))):
            pq.write_table(rows, data / f"log/day={number}/{name}.parquet", row_group_size=50)
    schema.save(data / "schema.toml")


def run_jobs(data: Path, out: Path, config: StudyConfig = CONFIG) -> None:
    """Each with its own config."""
    for upstream in config.trainings():
        train_upstream(upstream, data, out)
        refresh_upstream(config.refresh_of(upstream), data, out)
    train_rankers(ablation_jobs(config)["tasks"], data, out)


@pytest.fixture(scope="module", autouse=True)
def every_arm_reads() -> Iterator[None]:
    """Its vectors, whether or not they pay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ranking, "readings", lambda ranker, config, out: dict.fromkeys(config.tasks, (bool(ranker.series),))
        )
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, RunResults]]:
    """Data and output folders of a finished run, and its results."""
    data, out = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("out")
    write_log(data, SCHEMA)
    check_run(CONFIG, data)
    with process_group():
        run_jobs(data, out)
        yield data, out, collect_results(CONFIG, data, out)


def test_predictions_belong_to_their_rows(run: tuple[Path, Path, RunResults]) -> None:
    _, _, results = run
    table = day(DAYS - 1)
    opened = table["opened"].to_numpy().astype(np.int64)
    ctr, cvr = results.tasks["ctr"], results.tasks["cvr"]
    assert np.array_equal(ctr.labels, opened)
    assert np.array_equal(cvr.labels, [x for x in table["bought"].to_pylist() if x is not None])
    assert list(ctr.arms) == ["none", "open_user", "open_user_item"]
    assert all(logits.shape == (2, len(opened)) for logits in ctr.arms.values())
    assert len(np.unique(ctr.users)) == len(set(table["member"].to_pylist()))
    assert ctr.oracle is None


def test_strings_find_their_vectors(run: tuple[Path, Path, RunResults]) -> None:
    _, _, results = run
    last = day(DAYS - 1)
    known = [user != f"user-{USERS - 1}" for user in last["member"].to_pylist()]
    user, item = results.series["user_open"], results.series["item_open"]
    assert user.coverage == pytest.approx(np.mean(known))
    assert 0.9 < user.coverage < 1
    assert item.coverage == 1
    assert (user.rows, item.rows) == (USERS - 1, ITEMS)
    assert user.version == item.version == 1
    assert user.as_of == item.as_of == day(1)["at"].to_pylist()[-1]
    retrieval = results.retrieval
    assert retrieval is not None
    positive = last.filter(last["opened"].cast(pa.bool_()))
    assert retrieval.users == len(set(positive["member"].to_pylist()))
    assert retrieval.positives_without_vector == retrieval.positives_not_retrievable == 0
    rows = ["popularity", "popularity_day", "ials", "prior", "vectors", "stored_prior", "fresh_prior", "chosen"]
    for found in (retrieval.rows, retrieval.validation):
        assert list(found) == rows
        assert all(0 < measures.recall[5] <= 1 for measures in found.values())
    assert retrieval.hours in HOURS
    assert retrieval.weight in WEIGHTS
    assert (retrieval.days, retrieval.items) == (1, ITEMS)


def test_retrieval_asks_for_nothing_that_the_upstream_may_have_seen(run: tuple[Path, Path, RunResults]) -> None:
    """With a late publication only the later test rows count; with one after all of them there is nothing to ask."""
    data, out, results = run
    last, as_of = day(DAYS - 1), results.series["user_open"].as_of
    noon = last["at"].to_pylist()[150]
    for moment, rows in ((noon, last.slice(150)), (last["at"].to_pylist()[-1] + 1, last.slice(0, 0))):
        late = replace(CONFIG, rankers=replace(CONFIG.rankers, publish_delay_ms=moment - as_of))
        found = collect_results(late, data, out).retrieval
        users = set(rows.filter(rows["opened"].cast(pa.bool_()))["member"].to_pylist())
        assert (found.users if found else 0) == len(users)


def test_the_report_is_complete(run: tuple[Path, Path, RunResults]) -> None:
    _, _, results = run
    assert results.rows == {"train": 600, "validation": 300, "test": 300}
    assert {"upstream-open", "refresh-open", "downstream-tasks"} <= set(results.seconds)
    report = build_report(results)
    for task in ("ctr", "cvr"):
        for arm in ("none", "open_user", "open_user_item"):
            assert {"auc", "pr_auc", "ne", "calibration"} <= set(report["tasks"][task][arm])
        assert {"auc_lift", "auc_lift_ci95"} <= set(report["tasks"][task]["open_user"])


def test_what_the_upstream_itself_predicts_of_the_test_rows(run: tuple[Path, Path, RunResults]) -> None:
    data, out, results = run
    (upstream,) = CONFIG.upstreams
    schema = upstream_schema(upstream, data, out)
    labels = [label.name for label in schema.labels]
    model = DERM(schema, upstream.model, labels)
    folder = upstream_folder(out, upstream.name) / "checkpoints"
    load_model(folder, nn.ModuleDict({"model": allocate(model)}), parts=("model.",))
    rows = {}
    for split in (4, 5):
        batch = model.vocabulary.resolve(to_batch(day(split), schema))
        with torch.no_grad():
            rows[split] = batch, model.eval()(batch).logits
    assert set(results.entropies["open"]) == set(CONFIG.rankers.tasks)
    for task, label in CONFIG.rankers.tasks.items():
        column = labels.index(label)
        (seen, said), (known, tested) = (
            (batch.labels[there, column].numpy(), logits[there, column].numpy())
            for batch, logits in rows.values()
            for there in (batch.label_mask[:, column],)
        )
        expected = normalized_entropy(known, fit_recalibration(seen, said)(tested))
        assert results.entropies["open"][task] == pytest.approx(expected, abs=1e-5)


def test_an_upstream_that_cannot_read_the_rankers_rows_has_no_ratio(
    run: tuple[Path, Path, RunResults], tmp_path: Path
) -> None:
    data, out, _ = run
    other = Path(shutil.copytree(data, tmp_path / "data"))
    for path in (other / "log/day=5").iterdir():
        pq.write_table(pq.ParquetFile(path).read().drop_columns(["price"]), path)
    (upstream,) = CONFIG.upstreams
    assert upstream_entropies(upstream, CONFIG.rankers, other, out, NOTHING) == {}


def test_rankers_of_another_seed_read_another_training_of_the_upstream(run: tuple[Path, Path, RunResults]) -> None:
    data, out, results = run
    store = EmbeddingStore(store_folder(out))
    tables = {name: store.series(f"user_{name}").latest().load() for name in ("open", "open_s3")}
    ids = tables["open"].ids()
    assert torch.equal(tables["open_s3"].ids(), ids)
    first, second = (table.lookup(ids)[0] for table in tables.values())
    assert (first != second).any(1).all()
    assert results.upstream_seeds == (0, 3)
    assert set(results.series) == {"user_open", "item_open"}
    assert {"upstream-open_s3", "refresh-open_s3"} <= set(results.seconds)
    settings = ablation_jobs(CONFIG)["tasks"]
    written = Ranker("tasks", "open_user", (), 1).read(out, "ctr")["logits"]
    with process_group() as environment:
        for name, same in (("open_s3", True), ("open", False)):
            ranker = Ranker("again", name, (f"user_{name}",), 1)
            train_ranker(ranker, settings, data, out, environment)
            assert np.array_equal(ranker.read(out, "ctr")["logits"], written) == same


def test_of_very_many_test_rows_those_of_some_users_are_measured(
    run: tuple[Path, Path, RunResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, results = run
    assert results.users_measured == 1
    monkeypatch.setattr(sample, "MOST_ROWS", results.rows["test"] // 2)
    found = collect_results(CONFIG, data, out)
    assert found.users_measured == pytest.approx(0.5, rel=0.01)
    assert found.rows == results.rows
    for task, whole in results.tasks.items():
        kept, some = sample.Sample(found.users_measured).of(whole.users), found.tasks[task]
        assert 0.3 < kept.mean() < 0.7
        assert np.array_equal(some.users, whole.users[kept])
        assert np.array_equal(some.labels, whole.labels[kept])
        assert all(np.array_equal(lines, whole.arms[arm][:, kept]) for arm, lines in some.arms.items())
        assert all(np.array_equal(rows, whole.segments[owner][kept]) for owner, rows in some.segments.items())
        assert (some.validation, some.seeds) == (whole.validation, whole.seeds)


def test_doing_it_again_changes_nothing(run: tuple[Path, Path, RunResults]) -> None:
    data, out, results = run
    files = {path: path.stat().st_mtime_ns for path in (*out.rglob("*.npz"), *out.rglob("*.arrow"))}
    assert len(files) >= 6
    run_jobs(data, out)
    assert {path: path.stat().st_mtime_ns for path in (*out.rglob("*.npz"), *out.rglob("*.arrow"))} == files
    again = collect_results(CONFIG, data, out)
    assert again.series == results.series
    assert again.retrieval == results.retrieval
    assert replace(again, seconds={}, peak_rss_bytes=0, tasks={}, upstreams={}) == replace(
        results, seconds={}, peak_rss_bytes=0, tasks={}, upstreams={}
    )


def test_a_log_without_event_times(run: tuple[Path, Path, RunResults], tmp_path: Path) -> None:
    """The same way, to the same figures but for those of time: here the files' order is the times'."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_log(data, replace(SCHEMA, timestamp=""))
    config = replace(CONFIG, rankers=replace(CONFIG.rankers, publish_delay_ms=0))
    check_run(config, data)
    with process_group():
        run_jobs(data, out, config)
        found, timed = collect_results(config, data, out), run[2]
    assert {name: replace(run, as_of=0) for name, run in timed.series.items()} == found.series
    assert timed.retrieval is not None
    assert found.retrieval is not None
    assert found.retrieval.as_of == 0
    assert list(found.retrieval.rows) == [row for row in timed.retrieval.rows if row != "popularity_day"]
    for row in ("popularity", "ials", "vectors"):  # what knows no time
        assert found.retrieval.rows[row] == timed.retrieval.rows[row]
    for task, scores in timed.tasks.items():  # the other arms see how old a vector is
        assert np.array_equal(scores.arms["none"], found.tasks[task].arms["none"])
        assert all(np.isfinite(logits).all() for logits in found.tasks[task].arms.values())
    report = build_report(found, samples=5)
    write_report(report, out)
    assert report["publish_delay_ms"] is None
    for name in ("report.json", "report.html"):
        assert "1970-01-01" not in (out / name).read_text()
