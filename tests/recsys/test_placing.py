"""A run whose store is in a bucket: upstream, refresh and rankers as jobs of two ranks, by the config alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from embedding_store import EmbeddingStore, StorageAccessError
from embedding_store.storage import objects
from recsys import pipeline
from recsys.checks import check_config
from recsys.config import (
    ArmConfig,
    ConfigError,
    ModelConfig,
    RefreshSettings,
    SourceConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.synthetic import prepare_synthetic
from recsys.folders import store_folder, store_of
from recsys.placing import place_store
from recsys.study.report import build_report, load_report
from tests.recsys.downstream.example import RANKERS, SPLIT

SERIES = ["item_ctr", "item_ctr.activity", "item_ctr.prior", "user_ctr", "user_ctr.activity"]
MODEL = ModelConfig(token_dim=8, layers=(("mlp",),), tokens=2, out_tokens=2, out_dim=4)
TRAINING = TrainConfig(batch_size=100, epochs=1)
STUDY = StudyConfig(
    name="in a bucket",
    upstreams=(
        UpstreamConfig(
            name="ctr",
            tasks=("click",),
            source=SourceConfig(schema="market/schema.toml", events=SPLIT.upstream),
            model=MODEL,
            training=TRAINING,
        ),
    ),
    refresh=RefreshSettings(dtype="int8"),
    rankers=replace(RANKERS, seeds=(0,), training=replace(RANKERS.training, epochs=1)),
    arms=(ArmConfig(name="both", series=("user_ctr", "item_ctr")),),
    ranks=2,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_study_publishes_to_a_bucket_and_its_rankers_read_it(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
):
    data, out = tmp_path / "data", tmp_path / "run"
    prepare_synthetic(data, users=100, items=100, days=6, events_per_day=400, upstream_days=2)
    out.mkdir()
    monkeypatch.setattr(pipeline, "build_report", partial(build_report, samples=5))
    pipeline.run_stages(replace(STUDY, store=url), data, out)
    assert store_of(out) == url
    assert not store_folder(out).exists()
    store = EmbeddingStore(url)
    assert store.list() == SERIES
    report = load_report(out)
    assert {name: (entry["rows"], entry["dtype"]) for name, entry in report["store"].items()} == {
        name: (store.series(name).latest().rows, "int8") for name in ("user_ctr", "item_ctr")
    }
    assert all(entry["coverage"] > 0.5 for entry in report["store"].values())
    assert set(report["tasks"]["ctr"]) == {"none", "both"}
    (tmp_path / "rankers.toml").write_text((out / "configs/downstream-tasks.toml").read_text())
    check_config(tmp_path / "rankers.toml", data, (), url)
    with pytest.raises(ConfigError, match=rf"names 'user_x', which {url} lacks.*item_ctr, item_ctr.activity"):
        check_config(tmp_path / "rankers.toml", data, ("arms.both.series=['user_x']",), url)


def test_a_store_is_noted_once(tmp_path: Path, url: str):
    out = tmp_path / "run"
    for _ in range(2):
        place_store(out, url)
    place_store(out, f"{url}/")
    assert store_of(out) == url
    with pytest.raises(ConfigError, match=rf"store is 's3://other/x', but the run in {out} keeps its own in {url}"):
        place_store(out, "s3://other/x")
    EmbeddingStore(url).create("user_ctr", dim=3)
    place_store(out, url)
    with pytest.raises(ConfigError, match=r"has series already \(user_ctr\)"):
        place_store(tmp_path / "another", url)
    assert not (tmp_path / "another").exists()
    place_store(tmp_path / "none", "")
    assert store_of(tmp_path / "none") == str(store_folder(tmp_path / "none"))
    store_folder(tmp_path / "begun").mkdir(parents=True)
    with pytest.raises(ConfigError, match="keeps its own in"):
        place_store(tmp_path / "begun", url)


def test_a_bucket_that_cannot_be_used_is_refused_before_anything_is_trained(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
):
    trained: list[Any] = []
    monkeypatch.setattr(pipeline, "check_run", lambda *_: None)
    monkeypatch.setattr(pipeline, "screen_splits", lambda *_: trained.append(_))
    with pytest.raises(StorageAccessError, match=r"s3://nowhere/store.*the bucket does not exist"):
        pipeline.run_stages(replace(STUDY, store="s3://nowhere/store"), tmp_path, tmp_path / "run")
    put = objects.obstore.put
    monkeypatch.setattr(objects.obstore, "put", lambda *a, **options: put(*a, **{**options, "mode": "overwrite"}))
    with pytest.raises(StorageAccessError, match="ignores If-None-Match"):
        pipeline.run_stages(replace(STUDY, store=url), tmp_path, tmp_path / "run")
    assert not trained
    assert not (tmp_path / "run").exists()
    assert EmbeddingStore(url)._storage.entries() == []


def test_a_store_has_a_whole_path():
    with pytest.raises(ConfigError, match="store is 'runs/store'; give a whole path"):
        replace(STUDY, store="runs/store")


def test_a_relative_store_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        place_store(out, "stores/ctr")
    assert store_of(out) == str(tmp_path / "stores/ctr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    place_store(out, f"{tmp_path}/stores/ctr/")
    with pytest.raises(ConfigError, match=f"keeps its own in {tmp_path}/stores/ctr"):
        place_store(out, "stores/ctr")
