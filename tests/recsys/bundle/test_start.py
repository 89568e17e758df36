"""A ranker that goes on from an earlier one scores its new rows first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import logit

from recsys.bundle.bundle import load_bundle
from recsys.bundle.manifest import BundleError, Manifest
from recsys.bundle.write import train_bundle
from recsys.config import RankerConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.evaluate.metrics import normalized_entropy
from recsys.folders import bundle_folder
from recsys.progressive import read_figures
from recsys.train.checkpoint import CheckpointError
from tests.recsys.bundle.conftest import ARM, CONFIG
from tests.recsys.downstream.example import SPLIT, publish_vectors

NEXT = replace(CONFIG, train=SPLIT.validation, validation=SPLIT.test)
"""The days after those that the bundle was trained on."""


@pytest.fixture(scope="module")
def second(data: Path, store: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranker of the next day that has gone on from the bundle."""
    out = tmp_path_factory.mktemp("second")
    train_bundle(NEXT, ARM, data, out, str(store), start=made.parent)
    return out


def test_the_earlier_ranker_is_scored_by_the_new_rows_as_it_is_deployed(data: Path, made: Path, second: Path) -> None:
    (before,) = Manifest.load(bundle_folder(second)).training["progressive"]
    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in find_files(data, NEXT.train)])
    assert before["rows"] == len(rows)
    scores = load_bundle(made).predict(rows)
    for task, label in CONFIG.tasks.items():
        found = before["tasks"][label]
        there = np.ones(len(rows), bool) if task == "ctr" else rows["click"].to_numpy() == 1
        known, said = rows[label].to_numpy()[there], logit(np.asarray(scores[task]).astype(np.float64))[there]
        assert found["ne"] == pytest.approx(normalized_entropy(known, said), rel=1e-4)
        assert (found["rows"], found["positives"]) == (there.sum(), known.sum())


def test_it_begins_with_what_the_earlier_one_has_learned(data: Path, store: Path, made: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing it says what that one did, as it was after the newest of the passes that
    predict a task."""
    still = replace(NEXT, training=replace(NEXT.training, dense_lr=1e-12, sparse_lr=1e-12))
    train_bundle(still, ARM, data, tmp_path, str(store), start=made.parent)
    rows = pq.ParquetFile(find_files(data, SPLIT.test)[0]).read()
    first, after = (load_bundle(folder).predict(rows) for folder in (made, bundle_folder(tmp_path)))
    passes = Manifest.load(made).training["best_passes"]
    for task in [task for task, number in passes.items() if number == max(passes.values())]:
        said = [logit(np.asarray(scores[task]).astype(np.float64)) for scores in (first, after)]
        assert np.corrcoef(*said)[0, 1] > 0.9  # the recalibration and a few ids are new


def test_every_training_adds_its_forecast(data: Path, store: Path, second: Path, tmp_path: Path) -> None:
    later = replace(NEXT, train=SPLIT.test, validation=SPLIT.validation)
    train_bundle(later, ARM, data, tmp_path, str(store), start=second)
    first, last = Manifest.load(bundle_folder(tmp_path)).training["progressive"]
    assert first == Manifest.load(bundle_folder(second)).training["progressive"][0]
    assert last["tasks"] == read_figures(tmp_path / "training")
    assert last["rows"] > first["rows"]


def test_rows_that_the_earlier_ranker_does_not_understand_are_refused(
    data: Path, store: Path, made: Path, tmp_path: Path
) -> None:
    strict = replace(NEXT, train=(*SPLIT.train, *SPLIT.validation), max_ne=0.01)
    with pytest.raises(DataError, match=r"is not gone on from\. task 'click': the model of before .*; max_ne allows"):
        train_bundle(strict, ARM, data, tmp_path, str(store), start=made.parent)
    assert not bundle_folder(tmp_path).exists()
    assert not (tmp_path / "training/checkpoints").exists()


@pytest.mark.parametrize(
    ("config", "arm", "message"),
    [
        (NEXT, "ctr_user", r"reads user_ctr of space ctr-1, item_ctr of space ctr-1, arm 'ctr_user' now user_ctr of"),
        (
            replace(NEXT, arms=tuple(replace(x, history=2, history_pooling="attention") for x in NEXT.arms)),
            ARM,
            "history = 0, history_pooling = 'mean', arm 'ctr_user_item' has 2 and 'attention': start anew",
        ),
        (replace(NEXT, tasks={"ctr": "click"}), ARM, r"ranks for tasks \['ctr', 'cvr'\], the config has \['ctr'\]"),
    ],
)
def test_another_ranker_cannot_go_on_from_it(
    data: Path, store: Path, made: Path, tmp_path: Path, config: RankerConfig, arm: str, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        train_bundle(config, arm, data, tmp_path, str(store), start=made.parent)


def test_vectors_of_another_space(data: Path, made: Path, tmp_path: Path) -> None:
    publish_vectors(data, tmp_path / "store", space="ctr-2")
    with pytest.raises(BundleError, match=r"now user_ctr of space ctr-2, .* start anew, without --start"):
        train_bundle(NEXT, ARM, data, tmp_path / "out", str(tmp_path / "store"), start=made.parent)


def test_nothing_to_go_on_from(data: Path, store: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle: it has no bundle\.json"):
        train_bundle(NEXT, ARM, data, tmp_path / "out", str(store), start=tmp_path)
    (tmp_path / "bundle").symlink_to(made)
    with pytest.raises(CheckpointError, match="give --start the --out of an earlier `recsys bundle`"):
        train_bundle(NEXT, ARM, data, tmp_path / "out", str(store), start=tmp_path)
