import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import LossConfig, TrainConfig
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.data.schema import Feature, Label, Schema, SchemaError
from recsys.data.strings import read_column
from recsys.folders import upstream_folder
from recsys.models.derm import DermOutput
from recsys.models.losses import DermLoss
from recsys.positives import count_positives
from recsys.source import upstream_schema
from recsys.stages import is_done, read_stages
from recsys.train.checkpoint import CheckpointError
from recsys.train.distributed import process_group
from recsys.upstream import train_upstream
from tests.recsys.refresh.example import CONFIG, LAST, SCHEMA, write_log

BUY = Schema(
    features=(Feature(name="x", owner="item", kind="dense"),),
    labels=(Label(name="click"), Label(name="buy", valid="click")),
    item_id="what",
)
ITEMS = st.sampled_from([0, 3, -1, 2**63 - 1, -(2**63)])
ROWS = st.lists(st.tuples(ITEMS, st.integers(0, 1), st.integers(0, 1), st.booleans()), min_size=1, max_size=8)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """One process group for all runs of this module."""
    with process_group():
        yield


def _write(path: Path, rows: list[tuple[Any, int, int, bool]], kind: pa.DataType) -> Path:
    """Rows of (item, click, buy, null where invalid)."""
    table = {
        "timestamp": pa.array(range(len(rows)), pa.int64()),
        "user_id": pa.array(range(len(rows)), pa.int64()),
        "what": pa.array([row[0] for row in rows]),
        "x": pa.nulls(len(rows)),
        "click": pa.array([row[1] for row in rows], pa.int8()).cast(kind),
        # where nobody clicked, anything may stand, a 1 too
        "buy": pa.array([None if row[3] and not row[1] else row[2] for row in rows], pa.int8()).cast(kind),
    }
    pq.write_table(pa.table(table), path, row_group_size=3)
    return path


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(ROWS, min_size=1, max_size=3),
    label=st.sampled_from(["click", "buy"]),
    kind=st.sampled_from([pa.int8(), pa.int64(), pa.float32(), pa.bool_()]),
)
def test_count_positives_against_a_loop(
    files: list[list[tuple[int, int, int, bool]]], label: str, kind: pa.DataType
) -> None:
    counts: dict[int, int] = {}
    for item, click, buy, _ in (row for rows in files for row in rows):
        if click and (buy or label == "click"):
            counts[item] = counts.get(item, 0) + 1
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write(Path(folder, f"{index}.parquet"), rows, kind) for index, rows in enumerate(files)]
        if not counts:
            assert count_positives(paths, BUY, (label,)) is None
            return
        found = count_positives(paths, BUY, (label,))
    assert found.ids.tolist() == sorted(counts)
    share = torch.tensor([counts[item] for item in sorted(counts)]).double() / sum(counts.values())
    torch.testing.assert_close(found.log_probability, share.log().float())


def test_string_items_are_counted_by_their_hash(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", [("x", 1, 0, False), ("y", 1, 0, False), ("x", 1, 0, False)], pa.int8())
    found = count_positives([path], BUY, ("click",))
    ids = read_column(pa.array(["x", "y"]), pa.string()).to_pylist()
    torch.testing.assert_close(found(torch.tensor(ids)).exp(), torch.tensor([2 / 3, 1 / 3]))


def test_bad_labels_name_file_and_row(tmp_path: Path) -> None:
    good = _write(tmp_path / "a.parquet", [(1, 1, 0, False)] * 5, pa.int8())
    bad = _write(tmp_path / "b.parquet", [(1, 1, 0, False)] * 3 + [(1, 2, 0, False)], pa.int8())
    with pytest.raises(DataError, match=r"b.parquet: column 'click', row 3: the label is 2; it must be 0 or 1"):
        count_positives([good, bad], BUY, ("click",))
    with pytest.raises(SchemaError, match=r"unknown label 'like'.*; the schema has: click, buy"):
        count_positives([good], BUY, ("like",))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


def config(**training: Any):
    """The example's config, to be trained for two passes of seven steps."""
    (upstream,) = CONFIG.upstreams
    values: dict[str, Any] = {"epochs": 2, "batch_size": 8, "shuffle_batches": 2, "log_every": 1} | training
    return replace(upstream, training=TrainConfig(**values))


def metrics(out: Path) -> list[dict[str, float]]:
    lines = (upstream_folder(out, "ctr") / "metrics.jsonl").read_text().splitlines()
    timed = ("samples_per_second", "input_wait_fraction")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_training_leaves_checkpoint_figures_and_stage(log: Path, tmp_path: Path) -> None:
    train_upstream(config(), log, tmp_path)
    folder = upstream_folder(tmp_path, "ctr")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last-good", "step-00000014"]
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 14
    passes = {"done": 2, "most": 2, "best": 2, "held_out": 0}  # too few events
    assert result["passes"] == passes | {"validation_ne": [], "validation_mrr": []}
    assert 0 <= result["input_wait_fraction"] <= 1
    assert len(metrics(tmp_path)) == 14
    assert is_done(tmp_path, "upstream-ctr")
    assert read_stages(tmp_path)["upstream-ctr"]["peak_rss_bytes"] > 2**20
    assert list((folder / "tensorboard").iterdir())


def test_a_killed_training_goes_on_to_the_same_losses(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_upstream(config(checkpoint_every=4), log, tmp_path / "whole")
    saves = 0

    def save(self: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            raise KeyboardInterrupt
        kept(self)

    from recsys.train import trainer

    kept = trainer.Run.save
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train_upstream(config(checkpoint_every=4), log, tmp_path / "broken")
    assert not is_done(tmp_path / "broken", "upstream-ctr")
    train_upstream(config(checkpoint_every=4), log, tmp_path / "broken")
    broken = {line["step"]: line for line in metrics(tmp_path / "broken")}
    assert broken == {line["step"]: line for line in metrics(tmp_path / "whole")}
    checkpoints = [
        sorted((upstream_folder(tmp_path / name, "ctr") / "checkpoints").iterdir()) for name in ("whole", "broken")
    ]
    assert [path.name for path in checkpoints[0]] == [path.name for path in checkpoints[1]]


def interrupted(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, upstream: Any = None) -> None:
    """Train until the first checkpoint is written."""
    from recsys.train import trainer

    def save(self: Any) -> None:
        kept(self)
        raise KeyboardInterrupt

    kept = trainer.Run.save
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train_upstream(upstream or config(checkpoint_every=4), data, out)


def test_a_training_is_not_continued_as_another(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = Path(shutil.copytree(log, tmp_path / "data")), tmp_path / "out"
    interrupted(data, out, monkeypatch)
    with pytest.raises(CheckpointError, match=r"config: training.sparse_lr was 0.02, is 0.5. Give the files and the"):
        train_upstream(config(checkpoint_every=4, sparse_lr=0.5), data, out)
    heads = replace(config(), model=replace(config().model, heads=4))  # the same shapes
    with pytest.raises(CheckpointError, match=r"model.heads was 2, is 4"):
        train_upstream(heads, data, out)
    table = pq.read_table(data / "events/part-1.parquet")
    pq.write_table(table, tmp_path / "kept.parquet")
    clicks = pa.array(1 - table["click"].to_numpy(), table["click"].type)
    changed = table.set_column(table.column_names.index("click"), "click", clicks)
    pq.write_table(changed, data / "events/part-1.parquet", row_group_size=7)  # as many rows
    with pytest.raises(CheckpointError, match=r"files: events/part-1.parquet was \d+ bytes, \w+, is"):
        train_upstream(config(checkpoint_every=4), data, out)
    shutil.copy(log / "events/part-1.parquet", data / "events/part-1.parquet")
    moved = data.rename(tmp_path / "moved")
    train_upstream(config(checkpoint_every=3, log_every=2), moved, out)
    assert json.loads((upstream_folder(out, "ctr") / "result.json").read_text())["steps"] == 14


def test_other_code_is_a_warning(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    interrupted(log, tmp_path, monkeypatch)
    monkeypatch.setattr("recsys.train.run.code_version", lambda: "99")
    train_upstream(config(checkpoint_every=4), log, tmp_path)
    assert re.search(r"version \S+ of this\s+package\s+wrote\s+it,\s+this\s+is\s+99", capsys.readouterr().out)


def test_a_contrasted_label_that_is_never_positive(log: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("events", "users"):
        (data / name).mkdir(parents=True)
    SCHEMA.save(data / "schema.toml")
    shutil.copy(log / "users/part-0.parquet", data / "users")
    table = pq.read_table(log / "events/part-0.parquet")
    pq.write_table(
        table.set_column(table.column_names.index("click"), "click", pa.array(np.zeros(len(table), np.int8))),
        data / "events/part-0.parquet",
    )
    with pytest.raises(DataError, match="label 'click' is never 1 in 1 files: contrast another label"):
        train_upstream(config(), data, tmp_path / "out")
    assert not is_done(tmp_path / "out", "upstream-ctr")


def test_without_contrast_no_row_is_counted(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.surveying.frequencies_of", lambda *_: pytest.fail("counted for nothing"))
    train_upstream(replace(config(), loss=LossConfig(contrastive_weight=0)), log, tmp_path)
    assert "contrastive" not in " ".join(metrics(tmp_path)[-1])
    assert is_done(tmp_path, "upstream-ctr")


def with_items(log: Path, folder: Path) -> tuple[Path, Any]:
    """The example with rows of four items, two of which have no event, of these one and of those one withdrawn, and 16
    negatives a step."""
    data = Path(shutil.copytree(log, folder / "data"))
    replace(SCHEMA, withdrawn="gone").save(data / "schema.toml")
    (data / "items").mkdir()
    columns = {"item_id": [0, 3**30, 77, 78], "tags": [[1], [2], [2, 3], [4]], "gone": [0, 1, 0, 1]}
    pq.write_table(pa.table({"timestamp": [LAST] * 4, **columns}), data / "items/part-0.parquet")
    upstream = replace(config(checkpoint_every=4), loss=LossConfig(uniform_negatives=16))
    return data, replace(upstream, source=replace(upstream.source, items=("items/*.parquet",)))


def test_negatives_are_drawn_from_all_items_and_after_a_stop_too(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, upstream = with_items(log, tmp_path)
    drawn, kept = Counter[int](), DermLoss.forward

    def forward(self: DermLoss, output: DermOutput, batch: Batch) -> Any:
        assert len(batch) == 8
        assert self.items == 9
        drawn.update(batch.negatives.tolist())
        return kept(self, output, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DermLoss, "forward", forward)
        train_upstream(upstream, data, tmp_path / "whole")
    assert set(drawn) == {77, *(3**30 * item for item in range(9) if item != 1)}
    assert drawn.total() == 14 * 16
    interrupted(data, tmp_path / "broken", monkeypatch, upstream)
    with pytest.raises(CheckpointError, match=r"files: items/part-0.parquet was \d+ bytes, \w+, is not there"):
        train_upstream(replace(upstream, source=config().source), data, tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"config: loss.uniform_negatives was 16, is 17"):
        train_upstream(replace(upstream, loss=LossConfig(uniform_negatives=17)), data, tmp_path / "broken")
    train_upstream(upstream, data, tmp_path / "broken")
    last = metrics(tmp_path / "whole")[-1]
    assert last["loss/contrastive"] > 0
    assert metrics(tmp_path / "broken")[-1] == last


def test_tables_without_a_size_get_one_that_stays(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, upstream = Path(shutil.copytree(log, tmp_path / "data")), config(epochs=1)
    sizes = {"user_id": 0, "seen": 0, "item_id": 0}
    replace(SCHEMA, features=tuple(replace(x, rows=sizes.get(x.name, x.rows)) for x in SCHEMA.features)).save(
        data / "schema.toml"
    )
    with pytest.raises(DataError, match=r"tables.json does not say how many rows .* train the upstream first"):
        upstream_schema(upstream, data, tmp_path)
    train_upstream(upstream, data, tmp_path)
    assert "upstream ctr: tables of user.user_id 36, user.seen 74, item.item_id 18 rows" in capsys.readouterr().out
    rows = {feature.name: feature.rows for feature in upstream_schema(upstream, data, tmp_path).features}
    assert rows == {"user_id": 36, "seen": 74, "age": 0, "item_id": 18, "tags": 9, "hour": 24}
    shutil.rmtree(upstream_folder(tmp_path, "ctr") / "checkpoints")
    pq.write_table(pq.read_table(data / "events/part-2.parquet").slice(0, 3), data / "events/part-2.parquet")
    train_upstream(upstream, data, tmp_path)  # its events are others now, its tables are not
    assert "tables of" not in capsys.readouterr().out


def test_what_the_upstream_reads(log: Path, tmp_path: Path) -> None:
    (upstream,) = CONFIG.upstreams
    assert upstream_schema(upstream, log) == SCHEMA
    narrow = upstream_schema(replace(upstream, features=("age", "tags"), tasks=("click",)), log)
    assert [feature.name for feature in narrow.features] == ["age", "tags"]
    with pytest.raises(SchemaError, match="unknown feature 'nope'; the schema has: user_id, seen"):
        upstream_schema(replace(upstream, features=("nope",)), log)
    with pytest.raises(SchemaError, match=r"unknown label 'like'.*; the schema has: click"):
        upstream_schema(replace(upstream, tasks=("like",)), log)
    with pytest.raises(DataError, match=r"schema.toml: no such schema; correct source.schema in the config"):
        upstream_schema(upstream, tmp_path)
    other = replace(upstream, loss=LossConfig(contrastive_label="hour"))
    with pytest.raises(SchemaError, match="unknown label 'hour'"):
        train_upstream(replace(other, training=TrainConfig(batch_size=8)), log, tmp_path)
