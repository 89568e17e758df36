"""What is counted of the labels before a training."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.data.errors import DataError
from recsys.data.label_facts import QUANTILES, LabelFacts, known_until, newest_outcome, survey_labels
from recsys.data.quarantine import Quarantine
from recsys.dates import DAY_MS
from tests.recsys.ads_log import SCHEMA, SPAN, START, WINDOW, sale_schema, sales, write_log, write_sales


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sales(tmp_path_factory.mktemp("sales"), "corrected")


def test_means_are_of_the_rows_that_have_a_value(tmp_path: Path) -> None:
    files = [write_log(tmp_path, rows=3000) / "train/a.parquet"]
    table = pq.read_table(files[0])
    means = survey_labels(files, SCHEMA).means
    assert means == pytest.approx(
        {"revenue": table["revenue"].to_numpy().mean(), "spent": np.nanmean(table["spent"].to_numpy())}
    )
    half = Quarantine({files[0]: np.arange(1500)})
    kept = survey_labels(files, SCHEMA, half).means
    assert kept["revenue"] == pytest.approx(table["revenue"].to_numpy()[1500:].mean())
    assert survey_labels(files, SCHEMA.select(labels=("click",))) == LabelFacts()


def test_delays_are_those_of_rows_whose_window_has_ended(log: Path) -> None:
    files = [log / "train/a.parquet"]
    table = pq.read_table(files[0])
    times = table["timestamp"].to_numpy()
    facts = survey_labels(files, sale_schema("corrected"))
    assert facts.as_of == times.max()
    ended = times + WINDOW <= facts.as_of
    assert 0.1 < ended.mean() < 0.15
    delays = (table["sold_at"].to_numpy(zero_copy_only=False) - times)[ended] / WINDOW
    delays = delays[~np.isnan(delays)]
    measured = facts.delays["sale"]
    assert measured.shape == (QUANTILES,)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert (measured <= share).mean() == pytest.approx((delays <= share).mean(), abs=2 / QUANTILES)
    assert survey_labels(files, sale_schema("corrected"), with_delays=False).delays == {}
    assert survey_labels(files, sale_schema("wait")).delays == {}
    earlier = survey_labels(files, sale_schema("corrected"), as_of=START + WINDOW + DAY_MS // 2)
    assert earlier.as_of == START + WINDOW + DAY_MS // 2


def test_too_few_delays_are_refused_before_anything_is_trained(log: Path) -> None:
    with pytest.raises(
        DataError, match=r"label 'sale': 0 of its outcomes are of rows whose window of 7d had ended by 2"
    ):
        survey_labels([log / "train/a.parquet"], sale_schema("corrected"), as_of=START + WINDOW - 1)


def test_how_far_files_know(log: Path) -> None:
    files = [log / "train/a.parquet"]
    table = pq.read_table(files[0])
    newest = table["sold_at"].to_numpy(zero_copy_only=False)
    assert newest_outcome(files, sale_schema("ignored")) == int(np.nanmax(newest)) > START + SPAN
    assert newest_outcome(files, sale_schema("ignored").select(labels=())) == table["timestamp"].to_numpy().max()
    assert known_until(files, sale_schema("wait")) == newest_outcome(files, sale_schema("wait"))
    assert known_until(files, SCHEMA.select(labels=("click",))) is None, "no outcome has a time"
    assert len(sales(0, 0)["timestamp"]) == 0
