"""What a ranker's tables and batches are: of the training rows."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_store import EmbeddingStore
from recsys.config import ConfigError, RankerTrainConfig
from recsys.data.convert import table_rows
from recsys.data.files import check_files, find_files
from recsys.data.schema import Schema
from recsys.downstream.ranking import ranker_schema, table_bytes, train_ranker, train_rankers
from recsys.downstream.validation import Validation
from recsys.train.distributed import Environment
from tests.recsys.downstream.example import CONFIG, NONE, RANKERS, SPLIT


def test_new_items_are_all_one_to_a_ranker(data: Path, out: Path, tmp_path: Path, environment: Environment) -> None:
    """By its own table: they read nobody's row, wherever they hash to."""
    changed = Path(shutil.copytree(data, tmp_path / "changed"))
    rankers = replace(RANKERS, features=("item_id",))
    rows = ranker_schema(rankers, data, ()).feature("item_id").rows
    trained = np.concatenate(
        [pq.ParquetFile(path).read(["item_id"])["item_id"].to_numpy() for path in find_files(data, SPLIT.train)]
    )
    candidates = np.arange(10**6, 10**6 + 10 * rows)
    taken = np.isin(table_rows(candidates, rows), table_rows(trained, rows))
    new = [*candidates[taken][:5], *candidates[~taken][:2]]
    path = find_files(changed, SPLIT.test)[0]
    table = pq.ParquetFile(path).read()
    items = table["item_id"].to_numpy().copy()
    items[: len(new)] = new
    pq.write_table(table.set_column(table.column_names.index("item_id"), "item_id", pa.array(items)), path)
    train_ranker(NONE, rankers, changed, out, environment)
    logits = NONE.read(out, "ctr")["logits"]
    assert len(set(logits[: len(new)].tolist())) == 1
    assert len(set(logits.tolist())) > 20


def test_tables_of_an_arms_own_count_and_need_an_id(data: Path, store: Path, tmp_path: Path) -> None:
    learned = replace(CONFIG.arms[-1], tables={"user_ctr": "fine_tuned", "item_ctr": "scratch"})
    config, opened = replace(CONFIG, arms=(CONFIG.arms[0], learned)), EmbeddingStore(store)
    schema = ranker_schema(config, data, ())
    plain = table_bytes(CONFIG, data, {}, opened)
    rows = schema.feature("user_id").rows + schema.feature("item_id").rows
    assert table_bytes(config, data, {}, opened) == plain + 4 * 7 * rows  # six dimensions and the optimizer's
    nameless = replace(config, features=("item_id", "price"))
    told = r"arms.ctr_user_item.tables names 'user_ctr', but 'user_id' is not among the rankers' features as an id"
    with pytest.raises(ConfigError, match=told):
        train_rankers(nameless, data, tmp_path, store)


def test_what_is_left_out_follows_from_the_training_rows(
    data: Path, out: Path, tmp_path: Path, environment: Environment, capsys: pytest.CaptureFixture
) -> None:
    changed = Path(shutil.copytree(data, tmp_path / "changed"))
    schema = Schema.load(changed / RANKERS.schema)
    bare = tuple(replace(x, rows=0) if x.name in ("item_id", "hour") else x for x in schema.features)
    replace(schema, features=bare).save(changed / RANKERS.schema)
    config = replace(CONFIG, tasks={"ctr": "click"}, seeds=(0,), arms=CONFIG.arms[:1], training=RankerTrainConfig())
    train_rankers(config, changed, out)
    said = capsys.readouterr().out
    rows = check_files(find_files(data, SPLIT.train), schema)
    assert f"rankers: {rows:,} rows, so batches of 128: {rows // 128} a pass" in said
    assert re.search(r"^ranker 1/1 tasks/none/seed 0: validation ne ctr \d\.\d{4}$", said, re.MULTILINE)
    items = np.unique(
        np.concatenate(
            [pq.ParquetFile(x).read(["item_id"])["item_id"].to_numpy() for x in find_files(data, SPLIT.train)]
        )
    )
    assert f"rankers: tables of context.hour 42, item.item_id {2 * len(items)} rows, by" in said
    found = Validation.load(NONE.validation(out, "ctr"))
    assert 1 <= found.best_pass <= found.most_passes == RankerTrainConfig().epochs
