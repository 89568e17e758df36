"""What is published of entities whose id no training event has."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.data.convert import table_rows
from recsys.folders import store_folder
from recsys.models.vocabulary import OwnedRows
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.first import load_towers
from recsys.train.distributed import Environment
from recsys.upstream import train_upstream
from tests.recsys.refresh.daily_example import DAILY, DAYS, daily_config, records, write_day
from tests.recsys.refresh.example import SCHEMA, user_rows, write_log

CONFIG = daily_config()
SEEN = -10
"""A user of the log's, whose row is one that its hash gives it."""
COLD = tuple(
    id for id in range(10**6, 10**6 + 1000) if table_rows(np.array([id]), 50) == table_rows(np.array([SEEN]), 50)
)
OTHER = next(id for id in range(10**7, 10**8) if table_rows(np.array([id]), 50) != table_rows(np.array([SEEN]), 50))
pytestmark = pytest.mark.usefixtures("no_pages")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> tuple[Path, Path]:
    """Data and run of an upstream trained on a source that has rows of users like user -10, but for one's age."""
    folder = tmp_path_factory.mktemp("trained")
    data, out = write_log(folder / "data"), folder / "out"
    alike = [SEEN, COLD[0], COLD[1], OTHER]
    rows = user_rows(alike)
    rows = pa.table({name: rows[name].take(pa.array([0] * 4)) for name in rows.column_names if name != "user_id"})
    older = rows.slice(0, 1).set_column(rows.column_names.index("age"), "age", pa.array([50.0], pa.float32()))
    rows = pa.concat_tables([rows, older]).append_column("user_id", pa.array([*alike, COLD[2]]))
    pq.write_table(rows, data / "users/part-0.parquet")
    train_upstream(CONFIG.upstream, data, out)
    refresh_upstream(replace(CONFIG, days=None), data, out)
    return data, out


def vectors(out: Path, ids: tuple[int, ...], owner: str = "user") -> list[torch.Tensor]:
    found, there = EmbeddingStore(store_folder(out)).series(f"{owner}_ctr").latest().load().lookup(torch.tensor(ids))
    assert there.all()
    return list(found)


def users(folder: Path, environment: Environment) -> OwnedRows:
    model, _ = load_towers(folder, CONFIG.upstream, SCHEMA, environment)
    table = model.vocabulary.tables["user"]
    assert isinstance(table, OwnedRows)
    return table


def rows_of(table: OwnedRows, ids: list[int]) -> list[int]:
    wanted = np.array(ids)
    return table.find(wanted, table_rows(wanted, table.unknown)).tolist()


def test_unseen_users_are_what_their_features_say(trained: tuple[Path, Path]) -> None:
    seen, same_row, same_row_too, elsewhere, older = vectors(trained[1], (SEEN, COLD[0], COLD[1], OTHER, COLD[2]))
    assert torch.equal(same_row, elsewhere), "the unknown row, wherever an id hashes to"
    assert torch.equal(same_row, same_row_too)
    assert not torch.allclose(seen, same_row, atol=1e-4), "nobody reads the row of a user that was trained"
    assert not torch.allclose(older, same_row, atol=1e-6), "their content counts"


def test_a_days_new_ids_own_rows_after_it(trained: tuple[Path, Path], environment: Environment, tmp_path: Path) -> None:
    """Two users of the day with equal last events: not the same vector any more."""
    data, out = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in trained)
    path = write_day(data, DAYS[0])
    table = pq.read_table(path)
    last = len(table) - 2
    rows = pa.concat_tables([table.slice(0, last + 1), table.slice(last, 1)])
    ids = rows["user_id"].to_numpy().copy()
    ids[-2:] = COLD[0], OTHER + 1
    pq.write_table(rows.set_column(rows.column_names.index("user_id"), "user_id", pa.array(ids)), path)
    before = users(out / "upstream/ctr/checkpoints", environment)
    days = replace(CONFIG, days=replace(DAILY, last=DAYS[0]))
    (record,) = refresh_upstream(days, data, out, every=True)
    after = users((out / record.checkpoint).parent, environment)
    old = pq.read_table(data / "events")["user_id"].unique().to_pylist()
    assert rows_of(before, [COLD[0], OTHER + 1]) == [50, 50]
    assert len(set(rows_of(after, [*old, COLD[0], OTHER + 1])) - {50}) == len(old) + 2
    assert rows_of(after, old) == rows_of(before, old)
    assert rows_of(after, [COLD[1]]) == [50]
    first, second = vectors(out, (COLD[0], OTHER + 1))
    assert not torch.allclose(first, second, atol=1e-4)
    assert [record.day for record in records(out)] == DAYS[:1]
