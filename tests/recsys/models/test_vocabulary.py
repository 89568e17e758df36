from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import ConfigError, ModelConfig
from recsys.data.convert import table_rows, to_batch
from recsys.data.schema import Feature, Schema, entity_schema
from recsys.data.stream import EventStream
from recsys.models.derm import DERM
from recsys.models.vocabulary import OwnedRows, Vocabulary, fingerprints, own_ids, table_features
from recsys.train.tables import draw_tables
from tests.recsys.models.support import SMALL
from tests.recsys.refresh.example import SCHEMA, events

IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 60) | st.sampled_from([0, -1, 2**63 - 1, -(2**63)])
SETS = st.lists(IDS, max_size=40, unique=True).map(partial(np.array, dtype=np.int64))


def find(table: OwnedRows, ids: np.ndarray) -> np.ndarray:
    return table.find(ids, table_rows(ids, table.unknown))


def filled(rows: int, *passes: np.ndarray) -> OwnedRows:
    table = OwnedRows(rows)
    for ids in passes:
        table.admit(ids)
    return table


@given(rows=st.integers(1, 60), first=SETS, second=SETS, others=SETS)
def test_who_owns_which_row(rows: int, first: np.ndarray, second: np.ndarray, others: np.ndarray) -> None:
    table = filled(rows, first)
    before = find(table, first)
    assert torch.equal(filled(rows, first[::-1].copy(), first).get_extra_state(), table.get_extra_state())
    table.admit(second)
    everybody = np.union1d(first, second)
    found, marks = find(table, everybody), fingerprints(everybody)
    kept = before < rows
    assert (find(table, first)[kept] == before[kept]).all(), "an owner stays"
    owners = {row: {mark} for row, mark in zip(found.tolist(), marks.tolist(), strict=True) if row < rows}
    for row, mark in zip(found.tolist(), marks.tolist(), strict=True):
        assert row == rows or owners[row] == {mark}, "one owner a row"
    for mark, row in zip(fingerprints(others).tolist(), find(table, others).tolist(), strict=True):
        assert row == rows or owners[row] == {mark}, "a stranger reads no row"


@given(rows=st.integers(1, 60), data=st.data())
def test_ids_within_the_table_keep_their_rows(rows: int, data: st.DataObject) -> None:
    ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), unique=True)), np.int64)
    table = filled(rows, ids)
    assert find(table, ids).tolist() == ids.tolist()
    assert (find(table, np.setdiff1d(np.arange(rows), ids)) == rows).all()
    assert (find(OwnedRows(rows), ids) == rows).all()


def test_few_ids_find_no_row() -> None:
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5000)
    table = filled(10_000, ids)
    alone = np.unique(table_rows(ids, 10_000), return_counts=True)[1] == 1
    assert alone.sum() < 3500
    assert (find(table, ids) < 10_000).mean() > 0.995
    strangers = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 100_000)
    assert (find(table, strangers) < 10_000).mean() < 2e-4


def test_what_has_an_unknown_row() -> None:
    schema = Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id", rows=20, table="u"),
            Feature(name="friend", owner="user", kind="id", rows=20, table="u"),
            Feature(name="u", owner="user", kind="dense"),
            Feature(name="item_id", owner="item", kind="ids", rows=7),
            Feature(name="city", owner="context", kind="id", rows=5, table="u"),
        )
    )
    assert set(own_ids(schema)) == {"user"}
    assert [feature.rows for feature in table_features(schema)] == [21, 21, 0, 7, 5]
    assert [feature.rows for feature in table_features(schema, ("context",))] == [5]
    sizes = {
        table.name: table.num_embeddings
        for table in DERM(SCHEMA, SMALL, ["click"]).user.tokens.bags._embedding_bag_configs
    }
    assert sizes == {"user_user_id": 51}


def test_without_dropout_known_ids_read_the_rows_they_read_before() -> None:
    table = events(200, users=10)
    table = table.set_column(table.column_names.index("user_id"), "user_id", pa.array(np.arange(200) % 50))
    plain, batch = (to_batch(table, SCHEMA) for _ in range(2))
    model = draw_tables(DERM(SCHEMA, SMALL, ["click"]), 0)
    model.vocabulary.admit({"user": np.arange(50), "item": np.unique(table["item_id"].to_numpy())})
    batch = model.vocabulary.resolve(batch)
    assert torch.equal(batch.sparse["user_id"].values(), plain.sparse["user_id"].values())
    for key in ("seen", "seen.age", "tags", "hour"):
        assert torch.equal(batch.sparse[key].values(), plain.sparse[key].values())


def test_rows_without_an_id_and_owners_without_features() -> None:
    table = events(6)
    model = DERM(SCHEMA, SMALL, ["click"])
    vocabulary, batch = model.vocabulary, to_batch(table, SCHEMA)
    values, lengths = batch.sparse["user_id"].values(), torch.tensor([1, 0, 1, 1, 0, 1])
    sparse = type(batch.sparse)(keys=["user_id"], values=values[lengths > 0], lengths=lengths)
    vocabulary.admit({"user": batch.user_ids[:3].numpy(), "item": np.empty(0, np.int64)})
    found = vocabulary.resolve(replace(batch, sparse=sparse)).sparse
    assert found.lengths().tolist() == lengths.tolist()
    known = torch.isin(batch.user_ids, batch.user_ids[:3])[lengths > 0]
    assert ((found.values() < 50) == known).all()
    items = to_batch(table.drop_columns(["user_id"]), entity_schema(SCHEMA, "item"))
    assert (vocabulary.resolve(items).sparse["item_id"].values() == 30).all()
    nothing = entity_schema(SCHEMA.select(features=("age",)), "user")
    assert len(Vocabulary(nothing).resolve(to_batch(table, nothing))) == 6


def drops(path: Path, **options: object) -> dict[tuple[int, ...], list[int]]:
    """Event -> whether its user and its item were dropped, pass by pass."""
    vocabulary = Vocabulary(SCHEMA)
    columns = pq.read_table(path)
    vocabulary.admit({"user": columns["user_id"].to_numpy(), "item": columns["item_id"].to_numpy()})
    position, options = int(options.pop("position", 0)), {"batch_size": 16, "epochs": 3, **options}
    stream = EventStream([path], SCHEMA, transform=partial(vocabulary.resolve, dropout=0.3, seed=7), **options)
    stream.seek(position)
    found: dict[tuple[int, ...], list[int]] = {}
    for batch in stream:
        gone = (batch.sparse["user_id"].values() == 50) + 2 * (batch.sparse["item_id"].values() == 30)
        columns = (x.tolist() for x in (batch.user_ids, batch.item_ids, batch.timestamps, gone))
        for user, item, time, lost in zip(*columns, strict=True):
            found.setdefault((user, item, time, batch.epoch), []).append(lost)
    return found


def test_what_is_dropped_hangs_on_the_event_and_the_pass_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(events(640), path, row_group_size=50)
    whole = drops(path)
    assert len(whole) > 1900
    assert all(len(set(lost)) == 1 for lost in whole.values())
    ranks = [drops(path, rank=rank, world_size=2, batch_size=8, shuffle_batches=3) for rank in range(2)]
    assert ranks[0] | ranks[1] == whole
    resumed = drops(path, position=70)
    assert resumed.items() <= whole.items()
    assert 700 < len(resumed) < 900
    lost = np.array([[whole[user, item, time, epoch][0] for epoch in range(3)] for user, item, time, _ in whole][::3])
    assert 0.25 < (lost & 1).mean() < 0.35
    assert 0.25 < (lost >> 1).mean() < 0.35
    assert 0.05 < (lost == 3).mean() < 0.13, "users and items apart"
    assert 0.3 < ((lost[:, 0] & 1) != (lost[:, 1] & 1)).mean() < 0.54, "other events in every pass"


def test_dropping_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"id_dropout is 1.0; use 0 <= id_dropout < 1"):
        ModelConfig(id_dropout=1.0)
