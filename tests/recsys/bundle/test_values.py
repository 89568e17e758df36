"""A ranker of clicks and revenue, from its config to the scores of a bundle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.bundle import command
from recsys.bundle.bundle import load_bundle
from recsys.bundle.write import train_bundle
from recsys.config import RankerConfig
from recsys.data.errors import DataError
from recsys.downstream.ranking import train_rankers
from recsys.folders import bundle_folder
from recsys.mistakes import MistakesError
from tests.recsys.ads_log import RANKER, SCHEMA, TRUTH, impressions, write, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("ads"))


CONDITIONAL = replace(RANKER, tasks={"ctr": "click", "spent": "spent"}, entire_space=True)


@pytest.mark.parametrize(
    "config", [RANKER, replace(RANKER, value_loss="weighted"), CONDITIONAL], ids=["poisson", "weighted", "entire_space"]
)
def test_what_is_expected_of_an_item(config: RankerConfig, log: Path, tmp_path: Path) -> None:
    train_bundle(config, "none", log, tmp_path / "made", str(tmp_path / "store"))
    made = bundle_folder(tmp_path / "made")
    ctr, value = load_bundle(made).manifest.tasks
    name, truth = ("revenue", TRUTH.revenue) if config is not CONDITIONAL else ("spent", TRUTH.spent)
    assert (ctr.kind, value.kind) == ("probability", "expected value")
    assert value.validation.keys() == {"deviance", "concordance", "calibration", "rows", "positives"}
    assert value.validation["calibration"] == pytest.approx(1)
    assert value.validation["deviance"] < 0.97
    assert value.scale == 1
    command.score(made, log, "validation/*.parquet", tmp_path / "scores", "", 1, "cpu")
    found = pq.read_table(tmp_path / "scores/validation/a-00000.parquet")
    assert found.column_names == ["user_id", "item_id", "timestamp", "ctr", f"{name}_expected"]
    said = found[f"{name}_expected"].to_numpy()
    means = np.array([said[found["item_id"].to_numpy() == item].mean() for item in range(len(truth))])
    assert np.abs(np.log(means / truth)).mean() < 0.25, "their logs are from 2.3 to 6"
    assert np.corrcoef(np.log(means), np.log(truth))[0, 1] > 0.95
    rates = np.array([found["ctr"].to_numpy()[found["item_id"].to_numpy() == x].mean() for x in range(len(truth))])
    np.testing.assert_allclose(rates, TRUTH.click, atol=0.2)
    assert np.corrcoef(rates, TRUTH.click)[0, 1] > 0.9


def test_a_value_that_is_the_same_everywhere_chooses_no_pass(log: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "log", rows=600)
    write(tmp_path / "log", impressions(200, 1) | {"revenue": np.ones(200)}, "validation")
    with pytest.raises(DataError, match="do not hold two different values of label 'revenue'"):
        train_bundle(RANKER, "none", tmp_path / "log", tmp_path / "made", str(tmp_path / "store"))


def test_a_comparison_takes_labels_of_0_and_1(log: Path, tmp_path: Path) -> None:
    with pytest.raises(MistakesError, match=r"labels \['revenue'\] are of kind 'value'.*recsys bundle"):
        train_rankers(RANKER, log, tmp_path)
    assert SCHEMA.label("revenue").is_value
