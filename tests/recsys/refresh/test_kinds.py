"""Upstreams of every kind through the jobs that a user starts: trained, published, refreshed, embedded, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore
from recsys.config import (
    ConfigError,
    ContrastiveConfig,
    EndConfig,
    GraphConfig,
    LossConfig,
    RefreshConfig,
    RelationConfig,
    RetentionConfig,
    TableConfig,
)
from recsys.data.errors import DataError
from recsys.data.schema import SchemaError
from recsys.fitting import Fit
from recsys.folders import store_folder, upstream_folder
from recsys.models.id_tables import IdTables
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.first import load_towers
from recsys.refresh.on_demand import embed_rows
from recsys.refresh.relations import read_relations
from recsys.train.distributed import Environment
from recsys.train.tables import draw_tables
from recsys.upstream import train_upstream
from tests.distributed import run_ranks
from tests.recsys.refresh.catalogue_example import item_rows
from tests.recsys.refresh.daily_example import DAYS, daily_config, records, write_day
from tests.recsys.refresh.example import CONFIG, LAST, MODEL, SCHEMA, write_log

OWN = ContrastiveConfig(dim=8)
HASHED = ContrastiveConfig(dim=16, ids="hashed", sub_tables=4)
USERS = "embeddings.user_user_id.weight"
MANAGED = ContrastiveConfig(dim=8, ids="managed", time_to_live_hours=1)
pytestmark = pytest.mark.usefixtures("no_pages")


def link(name: str, head: str, tail: str, **settings: Any) -> RelationConfig:
    """A relation whose ends are columns called by `type` or `type=column`."""
    ends = [EndConfig(type=x.split("=")[0], column=x.split("=")[-1]) for x in (head, tail)]
    return RelationConfig(name=name, head=ends[0], tail=ends[1], **settings)


SEEN, CLICKED = (link(x, "user=user_id", "item=item_id", where=y) for x, y in (("seen", ""), ("clicked", "click")))
TAGGED = link("tagged", "item=item_id", "tag=tags", events=("events/*.parquet",))
GRAPH = GraphConfig(relations=(SEEN, CLICKED, TAGGED), dim=8, negatives=16, group=8)


def graph_config(graph: GraphConfig = GRAPH, **settings: Any) -> RefreshConfig:
    """The example's refresh day by day, of a graph."""
    config = daily_config()
    training = replace(config.upstream.training, batch_size=16)
    upstream = replace(config.upstream, kind="graph", model=type(MODEL)(), graph=graph, training=training)
    return replace(config, upstream=replace(upstream, **settings))


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


@pytest.mark.parametrize("tables", [OWN, HASHED, MANAGED])
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
    assert torch.equal(new[0], new[1]) == (tables is not HASHED), (
        "unknown ids share a row; hashed ones have rows of their own"
    )


def test_who_a_day_does_not_have_gives_its_row_back(tmp_path: Path, environment: Environment) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    day = pq.read_table(write_day(data, DAYS[0], rows=16))["user_id"].unique().to_pylist()
    old = set(pq.read_table(data / "events")["user_id"].to_pylist()) - set(day)
    assert old, "of the example"
    for hours in (0, 1):
        config = config_of(replace(MANAGED, time_to_live_hours=hours))
        first_and_a_day(config, data, out / f"{hours}")
        (record,) = records(out / f"{hours}")
        folder = (out / f"{hours}" / record.checkpoint).parent
        model, _ = load_towers(folder, config.upstream, SCHEMA.select(features=("user_id", "item_id")), environment)
        assert isinstance(model, IdTables)
        for ids, share in ((old, float(hours)), (day, 0.0)):
            seen = {"user": np.array(sorted(ids)), "item": np.arange(0)}
            assert model.vocabulary.without_row(seen)["user"] == share
        nobodys = model.vocabulary.state()["user"][:, 0] == -1
        drawn = draw_tables(IdTables(SCHEMA, config.upstream.contrastive, ["click"]), config.upstream.training.seed)
        (weight,) = (x.local_shards()[0].tensor for x in model.user.own.state_dict().values())
        assert torch.equal(weight[:-1][nobodys], drawn.user.own.state_dict()[USERS][:-1][nobodys]), "as at the start"
        assert not torch.equal(weight[:-1], drawn.user.own.state_dict()[USERS][:-1])


def test_another_id_column_is_read_beside_the_own_ones(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    config = config_of(OWN, features=("user_id", "item_id", "tags"))
    train_upstream(config.upstream, data, out)
    refresh_upstream(config, data, out)
    assert vectors(out, "item_ctr", [0])[1].all()


def on_ranks(config: RefreshConfig, data: Path, out: Path) -> None:
    first_and_a_day(config, data, out)


@pytest.mark.parametrize("tables", [HASHED, MANAGED])
def test_two_ranks_train_publish_and_go_on(tmp_path: Path, tables: ContrastiveConfig) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    write_day(data, DAYS[0])
    run_ranks(on_ranks, 2, config_of(tables), data, out)
    (record,) = records(out)
    assert record.tagged
    assert vectors(out, "user_ctr", [-10, 3])[1].all()
    assert vectors(out, "item_ctr", (np.arange(9) * 3**30).tolist())[1].all()


def test_a_graph_is_trained_published_and_refreshed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    write_day(data, DAYS[0])
    config = graph_config()
    first_and_a_day(config, data, out)
    said = capsys.readouterr().out
    assert "links of 3 relations" in said, "of the source"
    assert "links of 2 relations" in said, "the day's, whose events say nothing of tags"
    result = json.loads((upstream_folder(out, "ctr") / "result.json").read_text())
    assert result["collisions"] == {"user": 0.0, "item": 0.0, "tag": 0.0}
    assert result["passes"]["validation_ne"] == []
    assert len(result["passes"]["validation_mrr"]) == result["passes"]["done"]
    (record,) = records(out)
    assert record.tagged
    assert record.progressive == {}
    items = (np.arange(9) * 3**30).tolist()
    found_vectors, found = vectors(out, "item_ctr", items)
    assert found.all()
    assert len(torch.unique(found_vectors, dim=0)) == 9
    assert vectors(out, "user_ctr", [-10, 2**62])[1].tolist() == [True, False], "rows of users alone join nothing"
    pq.write_table(item_rows([555, items[1]], LAST), data / "new.parquet")
    embed_rows(config, data / "new.parquet", "item", data, out)
    again, found = vectors(out, "item_ctr", [555, items[1]])
    assert found.tolist() == [False, True]
    assert not torch.equal(again[1], torch.zeros(8))
    matrices, offsets = read_relations(EmbeddingStore(store_folder(out)).series("relation_ctr").history()[0], 8)
    assert (matrices.shape, offsets.shape) == ((3, 8, 8), (3, 8))


def test_relations_go_with_the_versions_that_read_them(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    for day in DAYS[:2]:
        write_day(data, day)
    config = replace(graph_config(), retention=RetentionConfig(keep_last=1))
    train_upstream(config.upstream, data, out)
    refresh_upstream(config, data, out, every=True)
    store = EmbeddingStore(store_folder(out))
    assert store.series("user_ctr").versions()[-1] == 3
    assert len(store.series("relation_ctr").versions()) == len(store.series("user_ctr").versions()) < 3


def test_a_graph_on_two_ranks_leaves_nothing_to_do_for_one(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    write_day(data, DAYS[0])
    config, wanted = graph_config(), {"node_user": TableConfig(sharding="column_wise", columns=4)}
    training = replace(config.upstream.training, tables=wanted)
    spread = replace(config, upstream=replace(config.upstream, training=training))
    run_ranks(on_ranks, 2, spread, data, out)
    (record,) = records(out)
    assert record.tagged
    plan = json.loads((upstream_folder(out, "ctr") / "plan.json").read_text())
    spread_out = {"sharding": "column_wise", "kernel": "fused", "dtype": "float32", "ranks": [0, 1]}
    assert plan["node_user"] == {"rows": 37, "dim": 8, **spread_out}
    run_ranks(on_ranks, 1, spread, data, out)
    assert records(out) == [record], "nothing is left to do"


ANCHORED = replace(GRAPH, relations=(CLICKED, TAGGED), anchors={"user": "user_mf", "item": "item_mf"})


def anchored(data: Path, out: Path, config: RefreshConfig) -> None:
    """Contrastive vectors, which a graph is anchored to, then a day of the graph."""
    known = config_of(OWN, name="mf")
    train_upstream(known.upstream, data, out)
    refresh_upstream(known, data, out)
    first_and_a_day(config, data, out)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_anchors_give_vectors_to_what_nothing_links(tmp_path: Path, ranks: int) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    write_day(data, DAYS[0])
    never = [-10, 3]
    for path in (data / "events").iterdir():
        log = pq.read_table(path)
        clicks = pc.if_else(pc.is_in(log["user_id"], pa.array(never, log["user_id"].type)), 0, log["click"])
        pq.write_table(log.set_column(log.column_names.index("click"), "click", clicks), path)
    alone = replace(ANCHORED, anchors={})
    run_ranks(anchored, ranks, data, out / "alone", graph_config(alone))
    run_ranks(anchored, ranks, data, out / "anchored", graph_config(ANCHORED))
    assert (
        not EmbeddingStore(store_folder(out / "alone"))
        .series("user_ctr")
        .version(1)
        .load()
        .lookup(torch.tensor(never))[1]
        .any()
    )
    placed, found = (
        EmbeddingStore(store_folder(out / "anchored")).series("user_ctr").version(1).load().lookup(torch.tensor(never))
    )
    assert found.all()
    assert len(torch.unique(placed, dim=0)) == len(never), "each where its own anchor is"
    (record,) = records(out / "anchored")
    assert record.tagged
    pins = json.loads((upstream_folder(out / "anchored", "ctr") / "anchors.json").read_text())
    assert pins == {"user": 1, "item": 1}


def test_anchors_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(DataError, match=r"graph.anchors.user is 'user_mf', which .* lacks; it has: nothing. Publish"):
        train_upstream(graph_config(ANCHORED).upstream, data, out)
    store = EmbeddingStore(store_folder(out))
    for name, space in (("user_mf", "mf-1"), ("item_mf", "mf-2")):
        with store.create(name, dim=8, dtype="float32").write(as_of=LAST, space=space) as writer:
            writer.append(torch.tensor([5_000_000]), torch.ones(1, 8))
    with pytest.raises(DataError, match="anchors are of 2 spaces, user_mf in 'mf-1', item_mf in 'mf-2': one map"):
        train_upstream(graph_config(ANCHORED).upstream, data, out)
    users = graph_config(replace(ANCHORED, anchors={"user": "user_mf"}))
    with pytest.raises(DataError, match="none of the 1 ids of series 'user_mf' is linked as 'user'"):
        train_upstream(users.upstream, data, out)
    with pytest.raises(ConfigError, match=r"anchors names \['brand'\]; the relations have the node types"):
        replace(ANCHORED, anchors={"brand": "item_mf"})
    with pytest.raises(ConfigError, match=r"anchors.user names 'user_ctr', which upstream .ctr. publishes itself"):
        replace(CONFIG, upstreams=(graph_config(replace(ANCHORED, anchors={"user": "user_ctr"})).upstream,))


def test_tables_too_small_for_the_ids_are_refused_before_training(tmp_path: Path) -> None:
    tight = tuple(replace(x, rows=8) if x.name == "user_id" else x for x in SCHEMA.features)
    data = write_log(tmp_path / "data", replace(SCHEMA, features=tight))
    told = r"of the 18 user ids of upstream 'ctr' have no row .*max_collisions = 0.05: feature 'user_id' has rows = 8"
    for tables in (OWN, MANAGED, replace(HASHED, sub_tables=1)):
        with pytest.raises(DataError, match=told):
            train_upstream(config_of(tables).upstream, data, tmp_path / "out")
        assert not (upstream_folder(tmp_path / "out", "ctr") / "metrics.jsonl").exists()


def test_a_graph_whose_tables_are_too_small_is_refused(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data")
    told = r"of the 18 ids of node type 'user' .* graph.rows.user is 8; give it 36, or leave it out"
    with pytest.raises(DataError, match=told):
        train_upstream(graph_config(replace(GRAPH, rows={"user": 8})).upstream, data, tmp_path / "out")


def test_what_has_no_row_is_trained_on_but_judges_nothing(tmp_path: Path) -> None:
    data, out = write_log(tmp_path / "data"), tmp_path / "out"
    tight = replace(GRAPH, rows={"user": 9}, max_collisions=0.9)
    config = graph_config(tight, held_out=0.5)
    first_and_a_day(replace(config, days=None), data, out)
    result = json.loads((upstream_folder(out, "ctr") / "result.json").read_text())
    assert result["collisions"]["user"] > 0.3
    assert result["passes"]["held_out"] > 10
    assert 0 < result["passes"]["validation_mrr"][0] <= 1


def test_relations_that_do_not_fit_are_told_before_anything_runs(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data")
    wrong = (link("viewed", "user=user_id", "item=item"), link("tagged", "item=item_id", "tag=tags"))
    fit = Fit(data=data)
    fit.upstream("upstreams.ctr", graph_config(replace(GRAPH, relations=wrong)).upstream, None)
    with pytest.raises(DataError, match=r"column 'item' is missing \(did you mean 'item_id'\?\); relation 'viewed'"):
        fit.kept.tell()
    fit = Fit(data=data)
    own = tuple(replace(x, events=("events/*.parquet",)) for x in GRAPH.relations)
    config = graph_config(replace(GRAPH, relations=own))
    fit.upstream("", config.upstream, config.days)
    with pytest.raises(ConfigError, match="all name files of their own, so that no day would teach anything"):
        fit.kept.tell()
    with pytest.raises(ConfigError, match=r"node types \['item', 'tag'\], and no 'user'"):
        graph_config(replace(GRAPH, relations=(TAGGED,)))
    with pytest.raises(ConfigError, match="a graph reads columns of relations, leave it out"):
        graph_config(features=("user_id",))


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
        ({"kind": "graf"}, "kind is 'graf'; use one of derm, contrastive, graph"),
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
