"""Vectors that rows are joined with on the device that a ranker trains on, rehearsed in copies on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from embedding_store import EmbeddingStore, NativeLibraryError, OpenTables
from recsys.config import ConfigError
from recsys.config.ranker import POOLINGS
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.data.stream import EventStream
from recsys.downstream import features as features_module
from recsys.downstream.features import PointInTimeSeries, StoreFeatures
from recsys.refresh.aggregator import activity_series
from recsys.train.distributed import Environment
from recsys.train.planning import topology_of
from recsys.train.predict import device_batches
from tests.recsys.downstream.example import CONFIG
from tests.recsys.downstream.test_features import SCHEMA, fill, publish, write_events

CUDA = torch.device("cuda", 0)
NAMES = ["user_ctr", "item_ctr"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    made = EmbeddingStore(tmp_path / "store")
    fill(made)
    activity = activity_series(made, "user_ctr")
    for as_of in (100, 200):
        publish(activity, as_of, {user: [as_of / 1000.0, 1.0, float(user)] for user in range(5)})
    return made


def batches(path: Path, features: StoreFeatures) -> list[Batch]:
    write_events(path)
    return list(EventStream([path], SCHEMA, batch_size=8, transform=features))


def assert_same(got: list[Batch], expected: list[Batch]) -> None:
    assert len(got) == len(expected) > 1
    for one, other in zip(got, expected, strict=True):
        for name in ("vectors", "found", "feed"):
            assert torch.equal(getattr(one, name).cpu(), getattr(other, name)), name


@pytest.mark.parametrize("pooling", POOLINGS)
def test_versions_that_come_and_go_give_the_same_batches(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    how = {"publish_delay_ms": 50, "history": 2, "pooling": pooling}
    expected = batches(tmp_path / "a.parquet", StoreFeatures(store, NAMES, **how))
    assert any(batch.feed.any() for batch in expected)
    largest = max(x.device_bytes for name in NAMES for x in store.series(name).history())
    monkeypatch.setattr(features_module, "_on_device", lambda *_: OpenTables("cpu", 2 * largest))
    features = StoreFeatures(store, NAMES, **how)
    assert {id(series.tables) for series in features.series} == {id(features.series[0].tables)}
    assert not features.series[0].tables.mapped
    assert_same(batches(tmp_path / "a.parquet", features), expected)


def test_where_vectors_are_looked_up(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU whose eighth holds all versions, those of companions too, or that is to hold what it can."""
    made: list[tuple[torch.device, int]] = []
    monkeypatch.setattr(features_module, "OpenTables", lambda device, room: made.append((device, room)) or "tables")
    series = [PointInTimeSeries(store.series("user_ctr"), activity=store.series("user_ctr.activity"))]
    every = [x for name in ("user_ctr", "user_ctr.activity") for x in store.series(name).history()]
    bytes = sum(snapshot.device_bytes for snapshot in every)
    assert series[0].device_bytes == bytes
    largest = max(every, key=lambda snapshot: snapshot.device_bytes)
    for total, gpu_bytes, expected in (
        (8 * bytes, 0, [(CUDA, bytes)]),
        (8 * bytes - 1, 0, []),
        (8 * bytes - 1, largest.device_bytes, [(CUDA, largest.device_bytes)]),
    ):
        made.clear()
        has(monkeypatch, total)
        tables = features_module._on_device(series, CUDA, gpu_bytes)
        assert tables == ("tables" if expected else None)
        assert made == expected
    for gpu_bytes, told in (
        (largest.device_bytes - 1, rf"version {largest.version} of series {largest.series!r} takes .*: give as many"),
        (8 * bytes, rf"gpu_bytes is {8 * bytes}, but cuda:0 has {8 * bytes - 1}: give fewer, or 0"),
    ):
        with pytest.raises(DataError, match=told):
            features_module._on_device(series, CUDA, gpu_bytes)
    assert features_module._on_device(series, torch.device("cpu"), 7) is None


def test_where_lookups_do_not_run_on_the_gpu(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say of a store that was built without CUDA: rows are joined on the CPU, unless the GPU was asked for."""

    def refuse(*_: object) -> None:
        raise NativeLibraryError("not built")

    monkeypatch.setattr(features_module, "OpenTables", refuse)
    has(monkeypatch, 2**40)
    with pytest.warns(UserWarning, match="rows are joined with vectors on the CPU: not built"):
        features = StoreFeatures(store, NAMES, device=CUDA)
    assert features.series[0].tables is None
    assert features.device_bytes == 0
    with pytest.raises(NativeLibraryError):
        StoreFeatures(store, NAMES, device=CUDA, gpu_bytes=2**30)


def test_what_versions_take_is_not_for_tables(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(x.device_bytes for name in NAMES for x in store.series(name).history())
    every = sum(each.device_bytes for each in StoreFeatures(store, NAMES).series)
    for room, taken in ((2 * largest, 2 * largest), (2**30, every)):
        monkeypatch.setattr(features_module, "_on_device", lambda *_, room=room: OpenTables("cpu", room))
        assert StoreFeatures(store, NAMES).device_bytes == taken
    has(monkeypatch, 1000)
    environment = Environment(rank=0, world_size=1, local_world_size=1, device=CUDA)
    for taken, left in ((0, 800), (125, 675), (900, 0)):
        assert topology_of(environment, taken=taken).devices[0].storage.hbm == left


def has(monkeypatch: pytest.MonkeyPatch, bytes: int) -> None:
    """The GPU has so much memory."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=bytes))


def test_how_many_bytes_cannot_be() -> None:
    with pytest.raises(ConfigError, match="gpu_bytes is -1; use bytes, or 0"):
        replace(CONFIG, gpu_bytes=-1)
    with pytest.raises(ConfigError, match="gpu_bytes is 5: with spread_vectors"):
        replace(CONFIG, gpu_bytes=5, spread_vectors=True)


@needs_gpu
@pytest.mark.parametrize("gpu_bytes", [0, 10_000])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_cuda_gives_batches_the_same_vectors(
    store: EmbeddingStore, tmp_path: Path, pooling: str, gpu_bytes: int
) -> None:
    how = {"publish_delay_ms": 50, "history": 2, "pooling": pooling}
    expected = batches(tmp_path / "a.parquet", StoreFeatures(store, NAMES, **how))
    features = StoreFeatures(store, NAMES, **how, device=CUDA, gpu_bytes=gpu_bytes)
    environment = Environment(rank=0, world_size=1, local_world_size=1, device=CUDA)
    stream = EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=8, transform=features, pin_memory=True)
    got = list(device_batches(stream, environment))
    for batch in got:
        assert batch.user_ids.is_pinned()
        assert batch.vectors.device == batch.found.device == batch.feed.device == CUDA
        there = batch.to(CUDA, non_blocking=True)
        assert there.vectors.data_ptr() == batch.vectors.data_ptr()
    assert [batch.found.cpu().tolist() for batch in got] == [batch.found.tolist() for batch in expected]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.vectors.cpu(), other.vectors, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.feed.cpu(), other.feed, rtol=1e-6, atol=1e-6)
