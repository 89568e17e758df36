from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from embedding_store import EmbeddingStore, OpenTables
from recsys.config import ConfigError, RankerSettings, TrainConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.schema import Schema, SchemaError
from recsys.downstream import ranking, training
from recsys.downstream.predictions import read_predictions, write_predictions
from recsys.downstream.ranking import (
    Ranker,
    all_rankers,
    ranker_schema,
    train_ranker,
    train_rankers,
)
from recsys.downstream.validation import Validation
from recsys.evaluate.bootstrap import paired_bootstrap
from recsys.evaluate.metrics import calibration, normalized_entropy, roc_auc
from recsys.folders import store_folder
from recsys.stages import is_done
from recsys.train.distributed import Environment, process_group
from recsys.train.tables import draw_tables
from tests.recsys.downstream.example import BOTH, CONFIG, NONE, RANKERS, SPLIT, USER


@pytest.fixture(scope="module")
def rows_of_test(data: Path) -> dict[str, np.ndarray]:
    """The test rows, in the files' order."""
    tables = [pq.ParquetFile(path).read() for path in find_files(data, SPLIT.test)]
    assert len(tables) == 4  # two days of two surfaces
    table = pa.concat_tables(tables)
    return {name: table[name].to_numpy() for name in ("user_id", "click", "conversion", "timestamp")}


def test_predictions_are_of_the_rows_of_test_in_file_order(
    data: Path, out: Path, rows_of_test: dict[str, np.ndarray], environment: Environment
) -> None:
    scores = {ranker: train_ranker(ranker, RANKERS, data, out, environment) for ranker in (NONE, BOTH)}
    for ranker in (NONE, BOTH):
        assert list(scores[ranker]) == ["ctr", "cvr"]
        for task, label in RANKERS.tasks.items():
            found = ranker.read(out, task)
            mask = rows_of_test["click"] == 1 if task == "cvr" else np.ones(len(rows_of_test["click"]), bool)
            assert np.array_equal(found["mask"], mask)
            assert np.array_equal(found["labels"], np.where(mask, rows_of_test[label], 0))
            assert np.array_equal(found["users"], rows_of_test["user_id"])
            assert found["logits"].shape == mask.shape
            assert np.isfinite(found["logits"]).all()
            assert found["logits"].std() > 0
            assert 0.5 < scores[ranker][task] < (2 if task == "ctr" else 5)  # a handful of conversions
    first = NONE.read(out, "ctr")["logits"]
    assert train_ranker(NONE, RANKERS, data, out, environment) == scores[NONE]
    assert np.array_equal(first, NONE.read(out, "ctr")["logits"])


def test_predictions_are_calibrated_on_the_validation_rows(data: Path, out: Path, environment: Environment) -> None:
    """A ranker that has hardly been trained, tested on the rows that it was recalibrated on."""
    hasty = replace(RANKERS, test=RANKERS.validation, training=replace(RANKERS.training, epochs=1, dense_lr=1e-4))
    for ranker in (NONE, BOTH):
        scores = train_ranker(ranker, hasty, data, out, environment)
        for task, score in scores.items():
            written, kept = ranker.read(out, task), Validation.load(ranker.validation(out, task))
            labels, logits = (written[name][written["mask"]] for name in ("labels", "logits"))
            assert calibration(labels, logits) == pytest.approx(1, abs=0.03)
            assert kept.calibration == pytest.approx(1, abs=0.03)
            assert abs(kept.raw_calibration - 1) > 0.03
            assert score == kept.ne == pytest.approx(normalized_entropy(labels, logits), abs=1e-5)
            assert kept.auc == pytest.approx(roc_auc(labels, logits), abs=1e-4)  # rounded, two rows may be equal
            assert (kept.rows, kept.positives) == (len(labels), labels.sum())


def clicks_of_training(data: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Users of the training rows, how much more often than all each clicks there, and when the validation begins."""
    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in find_files(data, SPLIT.train)])
    users, where = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
    clicks = rows["click"].to_numpy().astype(float)
    rate = np.bincount(where, clicks) / np.bincount(where) - clicks.mean()
    return torch.from_numpy(users), torch.from_numpy(rate).float(), int(rows["timestamp"].to_numpy().max()) + 1


KEEN = replace(RANKERS, training=replace(RANKERS.training, epochs=6, dense_lr=0.02))
"""So few rows are learned from."""


@pytest.mark.parametrize("table", ["fine_tuned", "scratch"])
def test_an_arm_learns_tables_beside_or_instead_of_its_vectors(
    data: Path, out: Path, environment: Environment, table: str
) -> None:
    made, tried = replace(BOTH, arm=table, tables=(table, table)), {}
    for ranker in (NONE, BOTH, made):
        train_ranker(ranker, KEEN, data, out, environment)
        tried[ranker.arm] = Validation.load(ranker.validation(out, "ctr")).tried
    assert tried[table]["without"] == tried["none"]["without"] == tried[BOTH.arm]["without"]
    assert tried[table]["with"] != tried[BOTH.arm]["with"]


@pytest.mark.parametrize(("mixed_up", "begin"), [(False, NONE), (True, NONE), (True, USER)])
def test_an_arm_reads_its_vectors_where_they_pay(
    data: Path, tmp_path: Path, environment: Environment, mixed_up: bool, begin: Ranker
) -> None:
    """They tell who clicks in the training rows; where they are others' for the validation rows, none is read and the
    ranker is the one without. The second seed follows the first."""
    users, rate, validation = clicks_of_training(data)
    series = EmbeddingStore(store_folder(tmp_path)).create("user_ctr", dim=6)
    mixed = rate[torch.randperm(len(rate), generator=torch.Generator().manual_seed(0))]
    for as_of, each in ((0, rate), (validation, mixed))[: 1 + mixed_up]:
        with series.write(as_of=as_of, space="ctr-1") as writer:
            writer.append(users, 8 * each.unsqueeze(1).expand(-1, 6))
    for ranker in (begin, NONE if begin is USER else USER, replace(USER, seed=1)):
        train_ranker(ranker, KEEN, data, tmp_path, environment)
    none, first, second = (
        Validation.load(ranker.validation(tmp_path, "ctr")) for ranker in (NONE, USER, replace(USER, seed=1))
    )
    assert list(none.tried) == ["without"]
    assert first.tried["without"] == none.tried["without"]
    assert first.reads is (first.tried["with"] < first.tried["without"] - first.tried["error"]) is not mixed_up
    assert list(second.tried) == [("with", "without")[mixed_up]]
    assert second.reads is first.reads
    without, read = (ranker.read(tmp_path, "ctr")["logits"] for ranker in (NONE, USER))
    assert np.array_equal(without, read) is mixed_up


def test_each_task_of_a_ranker_is_ranked_with_vectors_where_they_pay_for_it(
    data: Path, tmp_path: Path, environment: Environment
) -> None:
    """They tell of clicks, and nothing of the conversions of those who clicked."""
    users, rate, _ = clicks_of_training(data)
    series = EmbeddingStore(store_folder(tmp_path)).create("user_ctr", dim=6)
    with series.write(as_of=0, space="ctr-1") as writer:
        writer.append(users, 8 * rate.unsqueeze(1).expand(-1, 6))
    for ranker in (NONE, USER):
        train_ranker(ranker, KEEN, data, tmp_path, environment)
    found = {task: Validation.load(USER.validation(tmp_path, task)) for task in RANKERS.tasks}
    assert [found[task].reads for task in RANKERS.tasks] == [True, False]
    assert np.array_equal(NONE.read(tmp_path, "cvr")["logits"], USER.read(tmp_path, "cvr")["logits"])
    assert not np.array_equal(NONE.read(tmp_path, "ctr")["logits"], USER.read(tmp_path, "ctr")["logits"])


def test_vectors_of_noise_do_no_significant_harm(data: Path, tmp_path: Path, environment: Environment) -> None:
    """Wide and long ones, on few rows: all that can be learned of them is by heart."""
    store, generator = EmbeddingStore(store_folder(tmp_path)), torch.Generator().manual_seed(0)
    for owner in ("user", "item"):
        rows = pq.ParquetFile(data / f"market/{owner}s/part-0.parquet").read(["timestamp", f"{owner}_id"])
        ids = torch.from_numpy(rows[f"{owner}_id"].to_numpy().copy())
        with store.create(f"{owner}_noise", dim=64).write(as_of=rows["timestamp"][0].as_py(), space="n") as writer:
            writer.append(ids, torch.randn(len(ids), 64, generator=generator))
    noise = Ranker("tasks", "noise", ("user_noise", "item_noise"), 0)
    found = {}
    for arm in (NONE, noise):
        lines = []
        for seed in RANKERS.seeds:
            ranker = replace(arm, seed=seed)
            train_ranker(ranker, RANKERS, data, tmp_path, environment)
            lines.append(ranker.read(tmp_path, "ctr"))
        found[arm.arm] = np.stack([line["logits"] for line in lines])
    harm = paired_bootstrap(lines[0]["labels"], lines[0]["users"], found["none"], found["noise"], samples=200)
    assert harm.high >= 0, harm
    without, read = (
        np.mean([normalized_entropy(lines[0]["labels"], line) for line in found[arm]]) for arm in ("none", "noise")
    )
    assert read < without + 0.01


class CaughtError(Exception):
    """Ends a training before it begins."""


def caught(
    ranker: Ranker, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, rankers: RankerSettings = RANKERS
) -> dict[str, Any]:
    """What `train_ranker` hands to `fit`, its tables drawn as there."""
    found: dict[str, Any] = {}

    def fit(task: nn.Module, stream: Any, config: TrainConfig, *rest: object, **options: object) -> None:
        found.update(
            state=draw_tables(task, config.seed).state_dict(), stream=stream, config=config, taken=options["taken"]
        )
        raise CaughtError

    with monkeypatch.context() as patch, process_group() as environment:
        patch.setattr(training, "fit", fit)
        with pytest.raises(CaughtError):
            train_ranker(ranker, rankers, data, out, environment)
    return found


def test_what_a_gpu_holds_of_the_store_is_not_for_tables(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    assert caught(USER, data, out, monkeypatch)["taken"] == 0
    monkeypatch.setattr("recsys.downstream.features._on_device", lambda *_: OpenTables("cpu", 2**30))
    snapshots = EmbeddingStore(store_folder(out)).series("user_ctr").history()
    assert caught(USER, data, out, monkeypatch)["taken"] == sum(snapshot.device_bytes for snapshot in snapshots) > 0


def test_every_arm_starts_alike_and_learns_from_the_same_rows(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    none, user = (caught(ranker, data, out, monkeypatch) for ranker in (NONE, USER))
    added = user["state"].keys() - none["state"].keys()
    assert added
    assert all(".vectors." in name for name in added)
    assert none["state"].keys() <= user["state"].keys()
    assert all(torch.equal(value, user["state"][name]) for name, value in none["state"].items())
    assert none["config"] == user["config"]
    batches = [list(run["stream"]) for run in (none, user)]
    assert len(batches[0]) == 2 * (400 // 64)
    for left, right in zip(*batches, strict=True):
        assert torch.equal(left.user_ids, right.user_ids)
        assert torch.equal(left.timestamps, right.timestamps)
        assert torch.equal(left.labels, right.labels)
        assert left.vectors is None
        assert right.vectors.shape == (64, 6)
    other = caught(replace(NONE, seed=1), data, out, monkeypatch)
    assert any(not torch.equal(value, other["state"][name]) for name, value in none["state"].items())
    assert not torch.equal(next(iter(other["stream"])).user_ids, batches[0][0].user_ids)


def test_finished_rankers_are_not_trained_again(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    done = [NONE, replace(USER, seed=1)]
    columns = ("logits", "labels", "mask", "users", "validation_losses")
    for ranker in done:
        for task in CONFIG.tasks:
            write_predictions(ranker.path(out, task), **dict.fromkeys(columns, np.zeros(1)))
    write_predictions(BOTH.path(out, "ctr"), **dict.fromkeys(columns, np.zeros(1)))  # stopped before its other task
    leftover = USER.path(out, "ctr").with_name(".ctr_user-0.npz.123.npz")
    leftover.write_bytes(b"half")  # of a process that was killed while writing
    trained: list[Ranker] = []

    def train(ranker: Ranker, *rest: object) -> dict[str, float]:
        trained.append(ranker)
        return {"ctr": 1.0}

    monkeypatch.setattr(ranking, "train_ranker", train)
    train_rankers(CONFIG, data, out)
    assert trained == [ranker for ranker in all_rankers(CONFIG) if ranker not in done]
    assert len(trained) == 4
    assert is_done(out, "downstream-tasks")
    assert NONE.read(out, "ctr")["logits"].tolist() == [0.0]


def test_a_training_of_an_upstream_that_is_missing_is_named_before_any_ranker_is_trained(
    data: Path, out: Path, environment: Environment
) -> None:
    with pytest.raises(KeyError, match=r"no series 'user_ctr_s1' in .*; series: item_ctr, user_ctr"):
        train_rankers(replace(CONFIG, seed_suffixes=("", "_s1")), data, out)
    assert not (out / "downstream").exists()


def test_written_predictions_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file-0.npz"
    values = {
        "logits": np.array([0.5, -1e9], np.float32),
        "labels": np.array([0.0, 1.0], np.float32),
        "mask": np.array([True, False]),
        "users": np.array([2**62, -1]),
        "validation_losses": np.array([0.5]),
    }
    write_predictions(path, **values)
    found = read_predictions(path)
    assert list(found) == list(values)
    for name, value in values.items():
        assert np.array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert [file.name for file in path.parent.iterdir()] == ["file-0.npz"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": ("user_id", "nope")}, SchemaError, "unknown feature 'nope'; the schema has: user_id"),
        ({"tasks": {"ctr": "nope"}}, SchemaError, "unknown label 'nope'; the schema has: click, conversion"),
        ({"features": ("oracle_click",)}, SchemaError, "unknown feature 'oracle_click'"),
        ({"schema": "market/none.toml"}, DataError, "none.toml: no such schema.*; correct schema in the config"),
        ({"train": ("market/none/*",)}, DataError, r"pattern 'market/none/\*' matches nothing"),
    ],
)
def test_errors(
    data: Path, out: Path, environment: Environment, changes: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        train_ranker(NONE, replace(RANKERS, **changes), data, out, environment)
    assert not NONE.path(out, "ctr").exists()


def test_a_series_that_is_not_there(data: Path, out: Path, environment: Environment) -> None:
    with pytest.raises(KeyError, match=r"no series 'user_x' in .*; series: item_ctr, user_ctr"):
        train_ranker(replace(USER, series=("user_x",)), RANKERS, data, out, environment)


def test_validation_rows_of_one_class(data: Path, out: Path, tmp_path: Path, environment: Environment) -> None:
    rows = [pq.ParquetFile(path).read() for path in find_files(data, SPLIT.validation)]
    table = pa.concat_tables(rows)
    negative = table.filter(pa.compute.equal(table["click"], 0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/market").symlink_to(data / "market")
    pq.write_table(negative, tmp_path / "data/negative.parquet")
    rankers = replace(RANKERS, validation=("negative.parquet",))
    with pytest.raises(DataError, match=r"validation files negative.parquet do not hold both a 0 and a 1 .*'click'"):
        train_ranker(NONE, rankers, tmp_path / "data", out, environment)


def test_two_tasks_of_one_label(data: Path) -> None:
    schema = ranker_schema(RANKERS, data, ("click", "conversion", "click"))
    assert [label.name for label in schema.labels] == ["click", "conversion"]
    assert [feature.name for feature in schema.features] == list(RANKERS.features)


def test_training_events_older_than_every_snapshot_are_refused(data: Path, out: Path, environment: Environment) -> None:
    late = replace(CONFIG, publish_delay_ms=30 * 86_400_000)
    with pytest.raises(DataError, match=r"newest training event .* series 'user_ctr' .* Let the upstream's events end"):
        train_rankers(late, data, out)
    assert not is_done(out, "downstream-tasks")


@pytest.fixture
def untimed(data: Path, tmp_path: Path) -> Path:
    """The market and `untimed.toml`, by which it has no event times."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "market").symlink_to(data / "market")
    schema = Schema.load(data / RANKERS.schema).select(features=RANKERS.features)
    replace(schema, timestamp="").save(root / "untimed.toml")
    return root


def publish_untimed(data: Path, out: Path, value: float) -> None:
    """Publish this vector for most users and items, as a log without event times does."""
    for owner in ("user", "item"):
        rows = pq.ParquetFile(data / f"market/{owner}s/part-0.parquet").read([f"{owner}_id"])
        ids = torch.from_numpy(rows[f"{owner}_id"].to_numpy().copy())
        series = EmbeddingStore(store_folder(out)).create(f"{owner}_ctr", dim=6, exist_ok=True)
        with series.write(as_of=0, space="ctr-1") as writer:
            writer.append(ids, torch.full((len(ids), 6), value))


def test_rankers_and_series_have_event_times_or_neither_has(
    untimed: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    """Else each event would read all vectors, whatever their upstream has seen, or none."""
    other, config = tmp_path / "other", replace(CONFIG, schema="untimed.toml")
    publish_untimed(untimed, other, 1.0)
    trained: list[Ranker] = []
    monkeypatch.setattr(ranking, "train_ranker", lambda ranker, *rest: trained.append(ranker) or {})
    with pytest.raises(DataError, match=r"'user_ctr' was published without event times \(as_of = 0\), but the newest"):
        train_rankers(CONFIG, untimed, other)
    with pytest.raises(DataError, match=r"series 'user_ctr' is as of \d+ ms, but the training events have no times"):
        train_rankers(config, untimed, out)
    with pytest.raises(ConfigError, match=r"publish_delay_ms is 5, but by .*untimed.toml .*set publish_delay_ms = 0"):
        train_rankers(replace(config, publish_delay_ms=5), untimed, other)
    assert not trained
    train_rankers(config, untimed, other)
    assert len(trained) == 6


def test_a_ranker_reads_the_history_that_its_arm_asks_for(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    arms = (replace(CONFIG.arms[1], history=2, history_pooling="attention"), replace(CONFIG.arms[1], name="x"))
    attends, plain = (x for x in all_rankers(replace(CONFIG, arms=arms)) if x.seed == 0)
    for ranker, places in ((attends, 3), (replace(attends, pooling="mean"), 2), (plain, 1)):
        batch = next(iter(caught(ranker, data, out, monkeypatch)["stream"]))
        assert batch.found.shape[1] == places


def test_without_event_times_every_row_reads_the_newest_snapshot(
    untimed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    for value in (1.0, 2.0):
        publish_untimed(untimed, tmp_path, value)
    rankers = replace(RANKERS, schema="untimed.toml")
    for ranker, value in ((USER, 2.0), (replace(USER, once=True), 1.0)):
        batches = list(caught(ranker, untimed, tmp_path, monkeypatch, rankers)["stream"])
        assert len(batches) == 2 * (400 // 64)
        assert all(batch.timestamps.eq(0).all() and batch.found.any() for batch in batches)
        assert all(batch.vectors.eq(value * batch.found).all() for batch in batches)
