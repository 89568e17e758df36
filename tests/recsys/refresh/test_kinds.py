"""Upstreams of every kind through the jobs that a user starts: trained, published, refreshed, embedded, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore
from recsys.config import ConfigError, ContrastiveConfig, LossConfig, RefreshConfig
from recsys.data.errors import DataError
from recsys.data.schema import SchemaError
from recsys.fitting import Fit
from recsys.folders import store_folder, upstream_folder
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.on_demand import embed_rows
from recsys.upstream import train_upstream
from tests.distributed import run_ranks
from tests.recsys.refresh.catalogue_example import item_rows
from tests.recsys.refresh.daily_example import DAYS, daily_config, records, write_day
from tests.recsys.refresh.example import CONFIG, LAST, MODEL, SCHEMA, write_log

OWN = ContrastiveConfig(dim=8)
HASHED = ContrastiveConfig(dim=16, ids="hashed", sub_tables=4)
pytestmark = pytest.mark.usefixtures("no_pages")


def config_of(tables: ContrastiveConfig, **settings: object) -> RefreshConfig:
    """The example's refresh day by day, of an upstream of ids."""
    config = daily_config()
    loss = LossConfig(uniform_negatives=4)
    upstream = replace(config.upstream, kind="contrastive", model=type(MODEL)(), contrastive=tables, loss=loss)
    return replace(config, upstream=replace(upstream, **settings))


def vectors(out: Path, name: str, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Of the newest snapshot, and whether they are there."""
    return EmbeddingStore(store_folder(out)).series(name).latest().load().lookup(torch.tensor(ids))


def first_and_a_day(config: RefreshConfig, data: Path, out: Path) -> None:
    train_upstream(config.upstream, data, out)
    for _ in range(2):
        refresh_upstream(config, data, out)


@pytest.mark.parametrize("tables", [OWN, HASHED])
def test_ids_are_trained_published_and_refreshed(tmp_path: Path, tables: ContrastiveConfig) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    write_day(data, DAYS[0])
    config = config_of(tables)
    first_and_a_day(config, data, out)
    result = json.loads((upstream_folder(out, "ctr") / "result.json").read_text())
    assert result["collisions"].keys() == {"user", "item"}
    (record,) = records(out)
    assert record.tagged
    assert record.progressive["click"]["ne"] > 0
    items = (np.arange(9) * 3**30).tolist()
    found_vectors, found = vectors(out, "item_ctr", items)
    assert found.all()
    assert found_vectors.shape == (9, tables.dim)
    assert len(torch.unique(found_vectors, dim=0)) == 9
    pq.write_table(item_rows([555, 556], LAST), data / "new.parquet")
    embed_rows(config, data / "new.parquet", "item", data, out)
    new, found = vectors(out, "item_ctr", [555, 556])
    assert found.all()
    assert torch.equal(new[0], new[1]) == (tables is OWN), "unknown ids share a row; hashed ones have rows of their own"


def test_another_id_column_is_read_beside_the_own_ones(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    config = config_of(OWN, features=("user_id", "item_id", "tags"))
    train_upstream(config.upstream, data, out)
    refresh_upstream(config, data, out)
    assert vectors(out, "item_ctr", [0])[1].all()


def on_ranks(config: RefreshConfig, data: Path, out: Path) -> None:
    first_and_a_day(config, data, out)


def test_two_ranks_train_publish_and_go_on(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    write_day(data, DAYS[0])
    run_ranks(on_ranks, 2, config_of(HASHED), data, out)
    (record,) = records(out)
    assert record.tagged
    assert vectors(out, "user_ctr", [-10, 3])[1].all()
    assert vectors(out, "item_ctr", (np.arange(9) * 3**30).tolist())[1].all()


def test_tables_too_small_for_the_ids_are_refused_before_training(tmp_path: Path) -> None:
    tight = tuple(replace(x, rows=8) if x.name == "user_id" else x for x in SCHEMA.features)
    data = write_log(tmp_path / "data", replace(SCHEMA, features=tight))
    told = r"of the 18 user ids of upstream 'ctr' have no row .*max_collisions = 0.05: feature 'user_id' has rows = 8"
    for tables in (OWN, replace(HASHED, sub_tables=1)):
        with pytest.raises(DataError, match=told):
            train_upstream(config_of(tables).upstream, data, tmp_path / "out")
        assert not (upstream_folder(tmp_path / "out", "ctr") / "metrics.jsonl").exists()


def test_what_a_kind_cannot_read_is_told_before_anything_runs(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data")
    fit = Fit(data=data)
    fit.upstream("upstreams.ctr", config_of(OWN, features=("user_id", "tags", "hour")).upstream, None)
    with pytest.raises(SchemaError) as error:
        fit.kept.tell()
    assert "it needs 'item_id' as a feature of kind 'id' and owner 'item'" in str(error.value)
    assert "upstreams.ctr.features names 'hour', a context feature of kind 'id'" in str(error.value)
    fit = Fit(data=data)
    fit.upstream("", config_of(OWN, loss=LossConfig(positives={"clik": 1.0})).upstream, None)
    with pytest.raises(ConfigError, match=r"loss.positives names 'clik'; use some of its tasks: \['click'\]"):
        fit.kept.tell()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "graf"}, "kind is 'graf'; use one of derm, contrastive"),
        ({"model": MODEL}, "model has settings of an upstream of kind 'derm', but kind is 'contrastive'"),
        ({"loss": LossConfig(contrastive_weight=0.0)}, "contrastive_weight is 0, but nothing else teaches"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config_of(OWN, **settings)
    with pytest.raises(ConfigError, match="contrastive has settings of an upstream of kind 'contrastive'"):
        replace(CONFIG.upstreams[0], contrastive=OWN)


def test_cross_representations_need_a_hidden_layer() -> None:
    with pytest.raises(ConfigError, match="'ctr' is of kind 'contrastive', which has no hidden layer"):
        replace(config_of(OWN), cross=True)
    with pytest.raises(ConfigError, match="'ctr' is of kind 'contrastive', which has no hidden layer"):
        replace(CONFIG, upstreams=(config_of(OWN).upstream,), refresh=replace(CONFIG.refresh, cross=True))
