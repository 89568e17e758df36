"""Upstreams of an ads log: weights and values from the config to the figures."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.checks import check_config, check_rankers, check_run
from recsys.config import (
    LossConfig,
    ModelConfig,
    RankerSettings,
    SourceConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.files import find_files
from recsys.data.held_out import LEAST, hold_out
from recsys.data.quarantine import NOTHING
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.folders import upstream_folder
from recsys.mistakes import MistakesError
from recsys.models.derm import DERM
from recsys.models.losses import DermTask
from recsys.progressive import Scored, read_figures
from recsys.train.checkpoint import load_model
from recsys.train.distributed import Environment, process_group
from recsys.train.tables import draw_tables
from recsys.upstream import train_upstream
from tests.recsys.ads_log import ITEMS, RANKER, SCHEMA, TRUTH, impressions, write, write_log

UPSTREAM = UpstreamConfig(
    name="ads",
    source=SourceConfig(schema="schema.toml", events=("train/*.parquet",)),
    tasks=("click", "revenue"),
    model=ModelConfig(token_dim=8, layers=(("mlp",),), tokens=2, out_tokens=2, out_dim=4),
    training=TrainConfig(epochs=3, batch_size=128, dense_lr=0.01, sparse_lr=0.1, log_every=20),
)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[Environment]:
    """One process group for all runs of this module."""
    with process_group() as running:
        yield running


def trained(data: Path, out: Path, upstream: UpstreamConfig, schema: Schema = SCHEMA) -> tuple[DERM, np.ndarray]:
    """The model of a training, and what it says of each item [ITEMS, T], mean over its validation rows."""
    train_upstream(upstream, data, out)
    narrow = schema.select(labels=upstream.tasks)
    model = draw_tables(DERM(narrow, upstream.model, upstream.tasks), 0).eval()
    holder = torch.nn.ModuleDict({"model": model})
    load_model(upstream_folder(out, upstream.name) / "checkpoints", holder, parts=("model.",))
    files = find_files(data, ("validation/*.parquet",))
    logits, items = [], []
    with torch.no_grad():
        for batch in EventStream(files, narrow, batch_size=4096, drop_last=False, transform=model.vocabulary.resolve):
            logits.append(model(batch).logits)
            items.append(batch.item_ids)
    said, item = torch.cat(logits).numpy(), torch.cat(items).numpy()
    return model, np.stack([said[item == x].mean(0) for x in range(ITEMS)])


def test_an_upstream_learns_values(tmp_path: Path, environment: Environment) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    _, said = trained(data, out, UPSTREAM)
    assert np.abs(said[:, 1] - np.log(TRUTH.revenue)).mean() < 0.3, "their logs are from 2.3 to 6"
    assert np.corrcoef(said[:, 1], np.log(TRUTH.revenue))[0, 1] > 0.95
    np.testing.assert_allclose(1 / (1 + np.exp(-said[:, 0])), TRUTH.click, atol=0.12)
    folder = upstream_folder(out, "ads")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["deviance/revenue"] < 1.3, "it begins with the mean"
    assert "ne/revenue" not in lines[-1]
    result = json.loads((folder / "result.json").read_text())
    assert all(0.8 < score < 1.05 for score in result["passes"]["validation_ne"])


def test_rows_of_weight_0_teach_nothing(tmp_path: Path) -> None:
    """Half the rows lie, and weigh nothing."""
    data = write_log(tmp_path / "data", replace(SCHEMA, weight="importance"))
    columns = impressions(12_000, 0)
    lies = np.arange(12_000) % 2 == 0
    columns["click"] = np.where(lies, 1 - columns["click"], columns["click"]).astype(np.int8)
    columns["importance"] = np.where(lies, 0.0, 3.0)
    write(data, columns, "train")
    upstream = replace(UPSTREAM, tasks=("click",), training=replace(UPSTREAM.training, epochs=1))
    _, said = trained(data, tmp_path / "out", upstream, replace(SCHEMA, weight="importance"))
    rates = 1 / (1 + np.exp(-said[:, 0]))
    np.testing.assert_allclose(rates, TRUTH.click, atol=0.15)
    assert np.corrcoef(rates, TRUTH.click)[0, 1] > 0.8, "of all rows every item has a rate of a half"


def test_values_choose_the_pass_where_they_differ(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data", rows=1200)
    files = find_files(data, ("train/*.parquet",))
    assert hold_out(files, SCHEMA, 0.2).judged == (0, 1, 2)
    write(data, impressions(1200, 0) | {"revenue": np.full(1200, 3.0)}, "train")
    assert hold_out(files, SCHEMA, 0.2).judged == (0, 2)
    few = np.where(np.arange(1200) < LEAST - 1, 5.0, 0.0)
    write(data, impressions(1200, 0) | {"revenue": few}, "train")
    assert hold_out(files, SCHEMA, 0.5).judged == (0, 2)


def test_a_day_is_scored_by_deviance_too(tmp_path: Path, environment: Environment) -> None:
    data = write_log(tmp_path / "data", rows=900)
    files, narrow = find_files(data, ("validation/*.parquet",)), SCHEMA.select(labels=("click", "revenue"))
    model = draw_tables(DERM(narrow, UPSTREAM.model, ("click", "revenue")), 0)
    model.raise_logits(torch.tensor([0.0, float(np.log(TRUTH.revenue.mean()))]))
    task = DermTask(model, LossConfig(contrastive_weight=0), ("click", "revenue"), None)
    Scored(files, narrow, model.vocabulary.resolve, NOTHING, tmp_path, environment)(task)
    figures = read_figures(tmp_path)
    assert figures["click"].keys() == {"ne", "auc", "calibration", "rows", "positives"}
    assert figures["revenue"].keys() == {"deviance", "concordance", "calibration", "rows", "positives"}
    assert figures["revenue"]["deviance"] == pytest.approx(1, abs=0.3)
    assert figures["revenue"]["rows"] == 300


def study(upstream: UpstreamConfig, tasks: dict[str, str]) -> StudyConfig:
    fields = ("schema", "train", "validation", "publish_delay_ms", "training")
    known = {name: getattr(RANKER, name) for name in fields}
    rankers = RankerSettings(**known, test=("test/*.parquet",), tasks=tasks)
    return StudyConfig(name="ads", upstreams=(upstream,), rankers=rankers)


def test_what_values_cannot_be_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    data = write_log(tmp_path, rows=900)
    write(tmp_path, impressions(900, 2), "test")
    write(tmp_path, impressions(900, 3), "source")
    source = replace(UPSTREAM, source=replace(UPSTREAM.source, events=("source/*.parquet",)))
    check_run(study(source, {"ctr": "click"}), data)
    with pytest.raises(MistakesError, match=r"rankers.tasks: labels \['revenue'\] are of kind 'value'"):
        check_run(study(source, {"ctr": "click", "revenue": "revenue"}), data)
    first = replace(source, tasks=("revenue", "click"))
    with pytest.raises(MistakesError, match=r"upstreams.ads.loss.contrastive_label is 'revenue', a label of kind 'val"):
        check_run(study(first, {"ctr": "click"}), data)
    check_run(study(replace(first, loss=LossConfig(contrastive_label="click")), {"ctr": "click"}), data)


def test_an_output_that_would_be_called_as_another_task(tmp_path: Path) -> None:
    data = write_log(tmp_path, rows=900)
    write(tmp_path, impressions(900, 2), "test")
    path = tmp_path / "ranker.toml"
    ranker = replace(RANKER, test=("test/*.parquet",), tasks={"spend": "revenue", "ctr": "click"})
    ranker.save(path)
    assert check_config(path, data) == ranker, "for `recsys bundle` it is good"
    with pytest.raises(MistakesError, match=r"labels \['revenue'\] are of kind 'value'"):
        check_rankers(path, data, str(tmp_path / "store"), compared=True)
    replace(ranker, tasks={"spend": "revenue", "spend_expected": "click"}).save(path)
    with pytest.raises(MistakesError, match=r"tasks names 'spend' and 'spend_expected'.*rename one"):
        check_config(path, data)
