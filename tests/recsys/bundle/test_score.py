"""`recsys score` and `recsys repin`, as their users meet them."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.bundle import command
from recsys.bundle import score as score_module
from recsys.bundle.bundle import Bundle, load_bundle
from recsys.bundle.manifest import BundleError, Manifest
from recsys.bundle.repin import repin
from recsys.bundle.write import train_bundle
from recsys.config import ArmConfig, ConfigError
from recsys.data.errors import DataError
from recsys.folders import bundle_folder
from tests.recsys.bundle.conftest import CONFIG
from tests.recsys.downstream.example import SPLIT, publish_vectors

FILES = SPLIT.test[0]


def scores_of(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.rglob("*.parquet"))])


def score(made: Path, data: Path, out: Path, files: str = FILES, store: str = "") -> pa.Table:
    command.score(made, data, files, out, store, 1, "cpu")
    return scores_of(out)


def test_files_are_scored_row_by_row(
    made: Path, bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = score(made, data, tmp_path)
    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(data.glob(FILES))])
    assert found.column_names == ["user_id", "item_id", "timestamp", "ctr", "cvr"]
    for name in ("user_id", "item_id", "timestamp"):
        assert found[name].equals(rows[name])
    for task, wanted in bundle.predict(rows).items():
        assert found[task].type == pa.float32()
        np.testing.assert_allclose(found[task].to_numpy(), wanted.numpy(), rtol=1e-6)
    said = capsys.readouterr().out
    assert f"{len(rows):,} rows scored" in said
    assert "rows/s" in said
    assert "before the pinned vectors' time" not in said


def test_any_number_of_ranks_and_units_say_the_same(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(made, data, tmp_path / "1")
    monkeypatch.setattr(score_module, "UNIT_ROWS", 1)
    monkeypatch.setattr(score_module, "BATCH_ROWS", 7)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        command.score(made, data, FILES, tmp_path / "3", "", 3, "cpu")
    found = scores_of(tmp_path / "3")
    for name in whole.column_names:
        np.testing.assert_allclose(found[name].to_numpy(), whole[name].to_numpy(), rtol=1e-5)


def test_row_groups_are_of_many_batches(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "BATCH_ROWS", 7)
    monkeypatch.setattr(score_module, "GROUP_ROWS", 20)
    score(made, data, tmp_path)
    paths = list(tmp_path.rglob("*.parquet"))
    assert paths
    for path in paths:
        stored = pq.read_metadata(path)
        groups = [stored.row_group(number).num_rows for number in range(stored.num_row_groups)]
        assert set(groups[:-1]) == {21}
        assert sum(groups) > 21


def test_a_disk_that_is_full_is_said_and_half_a_file_is_never_seen(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(score_module, "BATCH_ROWS", 7)
    monkeypatch.setattr(score_module._Writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        score(made, data, tmp_path)
    assert not list(tmp_path.rglob("*.parquet*"))


@pytest.mark.long
def test_a_fresh_process_says_the_same_on_two_ranks(made: Path, data: Path, tmp_path: Path) -> None:
    whole = score(made, data, tmp_path / "1")
    options = ("--data", str(data), "--files", FILES, "--out", str(tmp_path / "2"), "--ranks", "2")
    command_line = (sys.executable, "-m", "recsys.cli", "score", str(made), *options)
    done = subprocess.run(command_line, capture_output=True, text=True, check=True)
    assert f"{len(whole):,} rows in {tmp_path / '2'}" in done.stdout
    found = scores_of(tmp_path / "2")
    for name in whole.column_names:
        np.testing.assert_allclose(found[name].to_numpy(), whole[name].to_numpy(), rtol=1e-6)


def test_what_is_missing_is_scored_and_nothing_else(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = score(made, data, tmp_path)
    first, *_ = sorted(tmp_path.rglob("*.parquet"))
    rows = pq.read_metadata(first).num_rows
    first.unlink()
    capsys.readouterr()
    assert score(made, data, tmp_path).equals(whole)
    assert f"{rows:,} rows scored" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds scores of another bundle or of other files"):
        score(made, data, tmp_path, SPLIT.test[1])


def test_a_row_that_cannot_be_read_is_named_and_half_a_file_is_never_seen(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "BATCH_ROWS", 16)
    rows = pq.ParquetFile(next(iter(sorted(data.glob(FILES))))).read()
    ids = rows["item_id"].to_pylist()
    ids[37] = None
    place = rows.schema.get_field_index("item_id")
    (tmp_path / "in").mkdir()
    pq.write_table(rows.set_column(place, "item_id", pa.array(ids, pa.int64())), tmp_path / "in/a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'item_id', row 37: .*Mend the row"):
        score(made, tmp_path / "in", tmp_path / "out", "*.parquet")
    assert not list((tmp_path / "out").rglob("*.parquet*"))
    pq.write_table(rows.drop_columns(["price"]), tmp_path / "in/a.parquet")
    with pytest.raises(DataError, match="price"):
        score(made, tmp_path / "in", tmp_path / "out", "*.parquet")


def test_rows_of_before_the_vectors_are_told_of(
    copied: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = copied
    publish_vectors(data, store, later_ms=30 * 86_400_000)
    assert len(repin(folder, store=store)) == 2
    found = score(folder, data, tmp_path / "out", store=str(store))
    assert f"{len(found):,} of them are of before the pinned vectors' time" in capsys.readouterr().out


def test_a_newer_version_of_the_same_space_is_pinned(
    copied: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = copied
    rows = pq.ParquetFile(next(iter(sorted(data.glob(FILES))))).read()
    before = load_bundle(folder, store=store).predict(rows)
    command.move(folder, str(store), 0.5)
    assert "reads the newest versions already" in capsys.readouterr().out
    publish_vectors(data, store, later_ms=1000, turned=0.2)
    command.move(folder, str(store), 0.5)
    said = capsys.readouterr().out
    assert "user_ctr: version 1 to 2, 1 - median cosine 0.0" in said
    manifest = Manifest.load(folder)
    assert [pin.version for pin in manifest.pins] == [2, 2]
    assert Path(manifest.store) == store
    after = load_bundle(folder).predict(rows)  # the store is noted, and the files are sound
    assert not torch.equal(before["ctr"], after["ctr"])
    EmbeddingStore(store).series("item_ctr").expire(keep_last=1, dry_run=False)
    load_bundle(folder)
    publish_vectors(data, store, later_ms=2000)
    EmbeddingStore(store).series("item_ctr").expire(keep_last=1, dry_run=False)
    moves = {move.after.series: move for move in repin(folder)}
    assert moves["item_ctr"].drift is None  # gone: nothing to be held against
    assert moves["user_ctr"].drift is not None


def test_cross_representations_are_pinned_beside_the_vectors(data: Path, tmp_path: Path) -> None:
    """Each pair of one time and one space, and moved on together."""
    store, series = tmp_path / "store", ("user_ctr", "item_ctr", "user_ctr_cross", "item_ctr_cross")

    def publish(later_ms: int, turned: float = 0.0, space: str = "ctr-1") -> None:
        publish_vectors(data, store, later_ms=later_ms, turned=turned, space=space)
        crossed = {"space": f"{space}-cross", "upstream": "ctr_cross", "dim": 8}
        publish_vectors(data, store, later_ms=later_ms, turned=turned, **crossed)

    publish(0)
    job = replace(CONFIG, arms=(ArmConfig(name="none"), ArmConfig(name="crossed", series=series)))
    train_bundle(job, "crossed", data, tmp_path / "out", str(store))
    folder = bundle_folder(tmp_path / "out")
    rows = pq.ParquetFile(next(iter(sorted(data.glob(FILES))))).read()
    before = load_bundle(folder).predict(rows)
    assert [(pin.space, pin.version) for pin in Manifest.load(folder).pins] == [("ctr-1", 1)] * 2 + [
        ("ctr-1-cross", 1)
    ] * 2
    publish(1000, turned=0.2)
    assert [move.after.series for move in repin(folder)] == list(series)
    assert [pin.version for pin in Manifest.load(folder).pins] == [2] * 4
    assert not torch.equal(load_bundle(folder).predict(rows)["ctr"], before["ctr"])
    publish(2000, space="ctr-2")
    with pytest.raises(BundleError, match="series 'user_ctr' moved from space 'ctr-1'"):
        repin(folder, max_drift=2)
    shutil.rmtree(next(store.rglob("item_ctr_cross")))
    with pytest.raises(BundleError, match="item_ctr_cross"):
        load_bundle(folder)


def test_vectors_that_have_moved_too_far_are_not_pinned(copied: tuple[Path, Path], data: Path) -> None:
    folder, store = copied
    publish_vectors(data, store, later_ms=1000, turned=1.0)
    before = (folder / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match=r"more than 1 - median cosine = 0.5000: user_ctr by .*Train the ranker anew"):
        repin(folder, store=store)
    assert (folder / "bundle.json").read_bytes() == before
    assert len(repin(folder, store=store, max_drift=2)) == 2


def test_another_space_is_never_pinned(copied: tuple[Path, Path], data: Path) -> None:
    folder, store = copied
    publish_vectors(data, store, later_ms=1000, space="ctr-2")
    with pytest.raises(BundleError, match="series 'user_ctr' moved from space 'ctr-1', dim 6, to 'ctr-2', dim 6"):
        repin(folder, store=store, max_drift=2)
    assert load_bundle(folder, store=store).manifest.pins[0].version == 1


def test_users_and_items_are_pinned_as_of_one_time(copied: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    """A version that only the users have waits for that of the items; a refused one is never read."""
    folder, store = copied
    publish_vectors(data, store, later_ms=1000)
    series = EmbeddingStore(store).series("user_ctr")
    with series.write(as_of=series.latest().as_of + 1000, space="ctr-1") as writer:
        writer.append(torch.tensor([1]), torch.ones(1, 6))
    repin(folder, store=store, max_drift=2)
    assert [pin.version for pin in Manifest.load(folder).pins] == [2, 2]
    publish_vectors(data, store, later_ms=5000)
    EmbeddingStore(store).series("item_ctr").refuse(3, ["it jumped"])
    repin(folder, store=store, max_drift=2)
    assert [pin.version for pin in Manifest.load(folder).pins] == [2, 2]
    shutil.rmtree(store)
    with pytest.raises(KeyError, match="user_ctr"):
        repin(folder, store=store)
    assert json.loads((folder / "bundle.json").read_text())["format"] == 1


def test_ranks_take_the_gpus_of_their_machine_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert command._of_rank("cuda") == "cuda:0"
    for rank, device in enumerate(["cuda:0", "cuda:1", "cuda:0"]):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert command._of_rank("cuda") == device
        assert (command._of_rank("cuda:1"), command._of_rank("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert command._of_rank("cuda") == "cuda"  # what is wrong with it is said when it is used
