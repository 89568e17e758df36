import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import AsOfDecreasedError, EmbeddingStore, LocalStorage, Series, SeriesExistsError
from recsys.data.errors import DataError
from recsys.data.last_events import last_events
from recsys.data.schema import Schema
from recsys.folders import store_folder
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.embed import embed, source_files
from recsys.refresh.publish import owed, space_name
from recsys.stages import is_done
from recsys.train.checkpoint import CheckpointError, read_progress
from recsys.train.distributed import Environment
from tests.recsys.refresh.example import (
    LAST,
    MODEL,
    REFRESH,
    SCHEMA,
    SOURCE,
    UNTIMED,
    plain_model,
    save_checkpoint,
    user_rows,
    write_log,
)


class KilledError(Exception):
    """Stands for a kill -9."""


@pytest.fixture
def out(tmp_path: Path, environment: Environment) -> Path:
    """The folder of a run whose upstream has been trained for one step."""
    save_checkpoint(tmp_path / "out", 1, environment)
    return tmp_path / "out"


def pair(out: Path) -> tuple[Series, Series]:
    store = EmbeddingStore(store_folder(out))
    return store.series("user_ctr"), store.series("item_ctr")


def versions(out: Path) -> list[list[int]]:
    return [series.versions() for series in pair(out)]


def refresh_and_die(log: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, before_commit: int) -> None:
    """Refresh in a process that dies just before its `before_commit`-th commit of vectors."""
    put, count = LocalStorage.put_new, 0

    def put_or_die(storage: LocalStorage, path: str, data: bytes) -> None:
        nonlocal count
        count += path.startswith("manifests/") and not any(x in storage.locate(path) for x in (".activity", ".prior"))
        if count == before_commit:
            raise KilledError
        put(storage, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put_new", put_or_die)
        with pytest.raises(KilledError):
            refresh_upstream(REFRESH, log, out)


def assert_pair_is_of(out: Path, log: Path, seed: int, environment: Environment, schema: Schema = SCHEMA) -> None:
    """Both newest snapshots are the vectors of the model of this seed, one version, one time."""
    snapshots = [series.latest() for series in pair(out)]
    assert len({(snapshot.version, snapshot.as_of, snapshot.space) for snapshot in snapshots}) == 1
    assert snapshots[0].as_of == (LAST if schema.timed else 0)
    assert snapshots[0].space == space_name("ctr") == "ctr-1"
    for owner, snapshot in zip(("user", "item"), snapshots, strict=True):
        events = last_events(source_files(log, SOURCE, owner), schema, owner)
        ((ids, vectors, *_),) = embed(plain_model(seed, schema), schema, events, owner, environment)
        stored, found = snapshot.load().lookup(ids)
        assert found.all()
        assert snapshot.rows == len(ids)
        torch.testing.assert_close(stored, vectors)


def test_publishing_twice_publishes_once(log: Path, out: Path, environment: Environment) -> None:
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1], [1]]
    assert_pair_is_of(out, log, 0, environment)
    assert pair(out)[0].dim == MODEL.vector_dim
    assert is_done(out, "refresh-ctr")
    before = sorted(store_folder(out).rglob("*"))
    refresh_upstream(REFRESH, log, out)
    assert sorted(store_folder(out).rglob("*")) == before


def test_entities_come_from_the_log_and_from_entity_rows(log: Path, out: Path) -> None:
    refresh_upstream(REFRESH, log, out)
    users, items = (series.latest().load() for series in pair(out))
    assert {2**62, -(2**63), -10, 9} <= set(users.ids().tolist())
    events = pa.concat_tables([pq.read_table(path) for path in sorted((log / "events").iterdir())])
    assert set(items.ids().tolist()) == set(events["item_id"].to_pylist())
    _, found = users.lookup(torch.tensor([10**6, 0]))
    assert found.tolist() == [False, True]


def test_a_newer_checkpoint_publishes_both(log: Path, out: Path, environment: Environment) -> None:
    refresh_upstream(REFRESH, log, out)
    save_checkpoint(out, 2, environment, seed=5)
    refresh_upstream(REFRESH, log, out)
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1, 2], [1, 2]]
    assert_pair_is_of(out, log, 5, environment)


def test_newer_events_publish_both_as_of_their_time(log: Path, out: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(log, tmp_path / "log"))
    refresh_upstream(REFRESH, root, out)
    pq.write_table(user_rows([-10, 77], time=LAST + 1), root / "users/part-1.parquet")
    refresh_upstream(REFRESH, root, out)
    assert [[snapshot.as_of for snapshot in series.history()] for series in pair(out)] == [[LAST, LAST + 1]] * 2
    vectors, found = pair(out)[0].latest().load().lookup(torch.tensor([77, -10]))
    old, _ = pair(out)[0].version(1).load().lookup(torch.tensor([77, -10]))
    assert found.all()
    assert old[0].eq(0).all()
    assert not torch.equal(vectors[1], old[1])


def test_a_log_without_event_times_is_published_and_published_again(tmp_path: Path, environment: Environment) -> None:
    log, out = write_log(tmp_path / "log", UNTIMED), tmp_path / "untimed"
    for step, seed in ((1, 0), (2, 5)):
        save_checkpoint(out, step, environment, seed, UNTIMED)
        refresh_upstream(REFRESH, log, out)
        refresh_upstream(REFRESH, log, out)
        assert_pair_is_of(out, log, seed, environment, UNTIMED)
    assert versions(out) == [[1, 2], [1, 2]]
    assert [[snapshot.as_of for snapshot in series.history()] for series in pair(out)] == [[0, 0]] * 2
    assert [series.as_of(0).version for series in pair(out)] == [2, 2]
    assert [series.tags() for series in pair(out)] == [{"prod": 2}] * 2


@pytest.mark.parametrize("commit", [1, 2])
def test_a_crash_at_a_commit_is_mended(
    log: Path, out: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch, commit: int
) -> None:
    refresh_and_die(log, out, monkeypatch, before_commit=commit)
    assert sorted(map(len, versions(out))) == ([0, 0] if commit == 1 else [0, 1])
    assert not is_done(out, "refresh-ctr")
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1], [1]]
    assert_pair_is_of(out, log, 0, environment)
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1], [1]]


def test_a_crash_in_a_later_cycle_is_mended(
    log: Path, out: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh_upstream(REFRESH, log, out)
    save_checkpoint(out, 2, environment, seed=5)
    refresh_and_die(log, out, monkeypatch, before_commit=2)
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1, 2], [1, 2]]
    assert_pair_is_of(out, log, 5, environment)


def test_a_crash_followed_by_more_training_never_pairs_two_checkpoints(
    log: Path, out: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh_and_die(log, out, monkeypatch, before_commit=2)
    save_checkpoint(out, 2, environment, seed=5)
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1, 2], [1, 2]]
    assert_pair_is_of(out, log, 5, environment)


def test_a_bad_row_publishes_nothing(log: Path, out: Path, tmp_path: Path) -> None:
    """Not even the series whose rows are all good: every row is read before the store is touched."""
    root = Path(shutil.copytree(log, tmp_path / "log"))
    (root / "items").mkdir()
    items = {"timestamp": [LAST], "item_id": [3], "tags": pa.array([[None]], pa.list_(pa.int64()))}
    pq.write_table(pa.table(items), root / "items/part-0.parquet")
    source = replace(SOURCE, items=("items/*.parquet",))
    config = replace(REFRESH, upstream=replace(REFRESH.upstream, source=source))
    with pytest.raises(DataError, match=r"items/part-0.parquet: column 'tags', row 0: the list holds a null"):
        refresh_upstream(config, root, out)
    assert EmbeddingStore(store_folder(out)).list() == []
    assert not list(store_folder(out).rglob("*.arrow"))
    items["tags"] = pa.array([[1]])
    pq.write_table(pa.table(items), root / "items/part-0.parquet")
    refresh_upstream(config, root, out)
    assert versions(out) == [[1], [1]]


def test_older_events_than_published_are_refused(log: Path, out: Path, tmp_path: Path) -> None:
    refresh_upstream(REFRESH, log, out)
    root = Path(shutil.copytree(log, tmp_path / "log"))
    pq.write_table(user_rows([1], time=5), root / "users/part-0.parquet")
    with pytest.raises(AsOfDecreasedError):
        refresh_upstream(REFRESH, root, out)
    assert versions(out) == [[1], [1]]


def test_what_is_not_there(log: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train the model first"):
        refresh_upstream(REFRESH, log, tmp_path / "fresh")
    wider = replace(REFRESH, upstream=replace(REFRESH.upstream, model=replace(MODEL, out_dim=8)))
    with pytest.raises(CheckpointError, match="written by another model"):
        refresh_upstream(wider, log, out)
    EmbeddingStore(store_folder(out)).create("item_ctr", dim=3)
    with pytest.raises(SeriesExistsError, match="dim = 3"):
        refresh_upstream(REFRESH, log, out)
    assert EmbeddingStore(store_folder(out)).series("user_ctr").versions() == []


def test_the_record_says_what_was_published(log: Path, out: Path) -> None:
    refresh_upstream(REFRESH, log, out)
    record = out / "upstream/ctr/published.json"
    written = json.loads(record.read_text())
    loaded = read_progress(out / "upstream/ctr/checkpoints/step-00000001")
    assert written["key"] == {"step": 1, "id": loaded["id"]}
    assert written["as_of"] == LAST
    assert written["versions"] == {"user_ctr": 1, "item_ctr": 1}
    shutil.rmtree(store_folder(out))  # whoever deletes the store wants it filled again
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1], [1]]
    assert np.isfinite(pair(out)[0].latest().load().lookup(torch.tensor([-10]))[0].numpy()).all()


def test_the_tag_follows_what_is_published(log: Path, out: Path, environment: Environment) -> None:
    refresh_upstream(REFRESH, log, out)
    assert [series.tags() for series in pair(out)] == [{"prod": 1}] * 2
    save_checkpoint(out, 2, environment, seed=5)
    refresh_upstream(REFRESH, log, out)
    assert [series.tags() for series in pair(out)] == [{"prod": 2}] * 2


def test_a_model_trained_anew_to_the_same_step_is_published(log: Path, out: Path, environment: Environment) -> None:
    refresh_upstream(REFRESH, log, out)
    shutil.rmtree(out / "upstream/ctr/checkpoints")
    save_checkpoint(out, 1, environment, seed=5)
    refresh_upstream(REFRESH, log, out)
    assert versions(out) == [[1, 2], [1, 2]]
    vectors = [pair(out)[0].version(version).load().lookup(torch.tensor([-10]))[0] for version in (1, 2)]
    assert not torch.equal(*vectors)


@pytest.mark.parametrize(
    ("newest", "versions", "rounds"),
    [
        ({"u": 0, "i": 0}, {"u": 1, "i": 1}, [("u", "i")]),
        ({"u": 3, "i": 3}, {"u": 3, "i": 3}, []),
        ({"u": 4, "i": 3}, {"u": 4, "i": 4}, [("i",)]),
        ({"u": 4, "i": 3}, {"u": 5, "i": 5}, [("i",), ("u", "i")]),
        ({"u": 1, "i": 1, "v": 7, "j": 5}, {"u": 2, "i": 2, "v": 7, "j": 7}, [("j",), ("u", "i", "j")]),
    ],
)
def test_what_is_owed(newest: dict[str, int], versions: dict[str, int], rounds: list[tuple[str, ...]]) -> None:
    assert owed(newest, versions) == rounds
