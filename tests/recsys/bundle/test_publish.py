"""What a ranker has learned on top of vectors, published as series of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.bundle.command import make_bundle
from recsys.bundle.manifest import Manifest
from recsys.bundle.publish import publish_tables
from recsys.config import ConfigError, RankerConfig
from recsys.data.files import find_files
from recsys.data.seen import read_ids
from recsys.folders import bundle_folder
from recsys.source import ranker_schema
from tests.recsys.bundle.conftest import ARM, CONFIG

TABLES = {"user_ctr": "fine_tuned", "item_ctr": "scratch"}


def learning(tables: dict[str, str]) -> RankerConfig:
    return replace(CONFIG, arms=tuple(replace(x, tables=tables) if x.name == ARM else x for x in CONFIG.arms))


def test_learned_tables_become_series(data: Path, store: Path, tmp_path: Path) -> None:
    config, out, target = learning(TABLES), tmp_path / "out", str(tmp_path / "store")
    make_bundle(config, ARM, data, str(store), out, 1, compiled=False)
    first = publish_tables(out, data, "cart", store=target)
    assert [(x.series, x.version, x.space) for x in first] == [("user_cart", 1, "cart-1"), ("item_cart", 1, "cart-1")]
    again = publish_tables(out, data, "cart", store=target)
    assert {x.space for x in again} == {"cart-2"}
    began, seen = EmbeddingStore(store), read_ids(find_files(data, config.train), ranker_schema(config, data, ()))
    state = torch.export.load(bundle_folder(out) / "ranker.pt2").state_dict
    passes = Manifest.load(bundle_folder(out)).training["best_passes"]
    begins = f"rankers.{sorted(set(passes.values())).index(passes['ctr'])}.learned.bags."
    tables = {key.rsplit(".", 1)[1]: x.detach() for key, x in state.items() if key.startswith(begins)}
    users, items = (EmbeddingStore(target).series(x.series).latest().load() for x in first)
    before = began.series("user_ctr").latest().load()
    assert set(users.ids().tolist()) == {*before.ids().tolist(), *seen["user"].tolist()}
    assert set(items.ids().tolist()) == set(seen["item"].tolist()), "of a table from scratch those that were trained"
    ids = before.ids()
    steps = (users.lookup(ids)[0] - before.lookup(ids)[0]) / config.network.table_rate
    rows = tables["learned_user_ctr"][:, :6]
    assert (torch.cdist(steps, rows).min(1).values < 1e-3).all(), "each is a row of the table"
    trained = torch.isin(ids, torch.from_numpy(seen["user"]))
    torch.testing.assert_close(steps[~trained], rows[-1:].expand(int((~trained).sum()), -1), atol=1e-4, rtol=1e-4)
    assert len(torch.unique(steps[trained].round(decimals=3), dim=0)) > 10


def test_what_has_learned_no_table_is_refused(data: Path, store: Path, tmp_path: Path) -> None:
    make_bundle(CONFIG, ARM, data, str(store), tmp_path / "plain", 1, compiled=False)
    with pytest.raises(ConfigError, match="learned tables for no series: there must be one of users, one of items"):
        publish_tables(tmp_path / "plain", data, "cart")
    with pytest.raises(ConfigError, match="is no folder of `recsys bundle`: give its --out"):
        publish_tables(tmp_path, data, "cart")
    with pytest.raises(ConfigError, match="--name is 'a b'"):
        publish_tables(tmp_path / "plain", data, "a b")
