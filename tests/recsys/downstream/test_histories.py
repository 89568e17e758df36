"""What batches hold of an entity's last versions, for the ranker to read their mean or to attend to them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import EmbeddingStore
from recsys.config.ranker import POOLINGS
from recsys.data.stream import EventStream
from recsys.dates import DAY_MS
from recsys.downstream.features import POOLED, PointInTimeSeries, StoreFeatures, mean_of
from tests.recsys.downstream.test_features import EVENTS, SCHEMA, SNAPSHOTS, fill, ints, publish, write_events


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "store")


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 8), k=st.integers(1, 4), seed=st.integers(0, 1000))
def test_the_mean_of_a_history(rows: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, k, generator=generator) < 0.6
    vectors = torch.randn(rows, k, 3, generator=generator) * mask.unsqueeze(2)
    ages = torch.randint(0, 9 * DAY_MS, (rows, k), generator=generator) * mask
    means, found, feed = mean_of(vectors, mask, ages)
    assert found.tolist() == mask.any(1).tolist()
    for row in range(rows):
        held = mask[row]
        if held.any():
            torch.testing.assert_close(means[row], vectors[row][held].mean(0))
            days = ages[row][held].double().mean().item() / DAY_MS
            assert feed[row].tolist() == pytest.approx([days, held.sum().item()])
        else:
            assert not means[row].any()
            assert not feed[row].any()


def test_histories_lie_behind_the_newest_vectors(store: EmbeddingStore, tmp_path: Path) -> None:
    """The mean over the versions that were visible; no leak: it sees what the newest sees, and what was before."""
    fill(store)
    write_events(tmp_path / "a.parquet")
    plain = StoreFeatures(store, ["user_ctr", "item_ctr"], publish_delay_ms=50)
    features = StoreFeatures(store, ["user_ctr", "item_ctr"], publish_delay_ms=50, history=2)
    assert [(x.name, x.dim) for x in features.specs[2:]] == [("user_ctr last 2", 2), ("item_ctr last 2", 3)]
    assert {x.space for x in features.specs[2:]}.isdisjoint(x.space for x in plain.specs)
    for with_, without in zip(*(EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=8, transform=x)
                                for x in (features, plain)), strict=True):  # fmt: skip
        assert torch.equal(with_.vectors[:, :5], without.vectors)
        assert torch.equal(with_.found[:, :2], without.found)
        seen = (without.timestamps >= 150).long() + (without.timestamps >= 250).long()  # versions, of the users 1 and 2
        mean = torch.where(seen == 2, 1.5, seen.double()).float() * without.found[:, 0]
        assert with_.vectors[:, 6].tolist() == mean.tolist()
        assert with_.feed[:, 2, 1].tolist() == (seen * without.found[:, 0]).tolist()


def test_a_history_to_attend_to_is_every_version_with_its_age(store: EmbeddingStore, tmp_path: Path) -> None:
    fill(store)
    write_events(tmp_path / "a.parquet")
    how = {"publish_delay_ms": 50, "history": 3}
    features = StoreFeatures(store, ["user_ctr", "item_ctr"], **how, pooling="attention")
    means = StoreFeatures(store, ["user_ctr", "item_ctr"], **how)
    assert [(x.name, x.dim, x.versions) for x in features.specs[1:3]] == [
        ("item_ctr", 3, 1),
        ("user_ctr last 3 attended", 2, 3),
    ]
    assert len({x.name for x in (*features.specs, *means.specs)}) == 6
    streams = (EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=8, transform=x) for x in (features, means))
    for each, pooled in zip(*streams, strict=True):
        assert (each.vectors.shape[1], each.found.shape[1], each.feed.shape[1:]) == (5 + 6 + 9, 2 + 6, (2 + 6, 2))
        assert torch.equal(each.vectors[:, :5], pooled.vectors[:, :5])
        versions = each.vectors[:, 5:11].unflatten(1, (3, 2))
        seen = (each.timestamps >= 150).long() + (each.timestamps >= 250).long()
        for row in range(len(each)):
            user, time = each.user_ids[row].item(), each.timestamps[row].item()
            held = range(seen[row].item(), 0, -1) if user < 5 else ()  # newest first
            assert versions[row].tolist() == [[user, x] for x in held] + [[0, 0]] * (3 - len(held))
            assert each.found[row, 2:5].tolist() == [True] * len(held) + [False] * (3 - len(held))
            assert each.feed[row, 2:5, 1].tolist() == [1.0] * len(held) + [0.0] * (3 - len(held))
            ages = [(time - 100 * version) / DAY_MS for version in held] + [0.0] * (3 - len(held))
            assert each.feed[row, 2:5, 0].tolist() == pytest.approx(ages)


@settings(max_examples=30, deadline=None)
@given(
    snapshots=SNAPSHOTS, events=EVENTS, delay=st.integers(0, 4), k=st.integers(1, 4), pooling=st.sampled_from(POOLINGS)
)
def test_no_history_reads_a_version_later_than_its_event(
    snapshots: list[tuple[int, list[int]]], events: list[tuple[int, int]], delay: int, k: int, pooling: str
) -> None:
    """Versions published later, and what they hold, change nothing; before the first nothing is found."""
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot[0])
    for who, time in events:
        answers = []
        for shown in (snapshots, [x for x in snapshots if x[0] + delay <= time]):
            with tempfile.TemporaryDirectory() as folder:
                series = EmbeddingStore(folder).create("user_ctr", dim=1)
                for version, (as_of, ids) in enumerate(shown, start=1):
                    publish(series, as_of, {each: [float(version)] for each in ids})
                history = PointInTimeSeries(series, delay).history(ints([who]), ints([time]), k)
                answers.append(POOLED[pooling](*history))
        assert all(torch.equal(x, y) for x, y in zip(*answers, strict=True))
        vectors, found, feed = answers[0]
        known = any(who in ids for _, ids in [*{x: (x, y) for x, y in shown}.values()][-k:])
        assert found.any().item() == known
        if not known:
            assert not vectors.any()
            assert not feed.any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("delay", [0, 50])
def test_a_planted_leak_does_not_come_through_the_loader(
    store: EmbeddingStore, tmp_path: Path, pooling: str, delay: int
) -> None:
    """The last version holds each event's label and can be read 1 ms after it; the one after the event 1 ms later."""
    now, users = 1_700_000_000_000, list(range(40))
    events = write_events(tmp_path / "a.parquet").to_pydict() | {"user_id": users}
    series = store.create("user_ctr", dim=1)
    for before in (DAY_MS, 0):
        publish(series, now - before - delay, {user: [0.5] for user in users})
    publish(series, now - delay + 1, {user: [float(events["click"][user])] for user in users})
    features = StoreFeatures(store, ["user_ctr"], publish_delay_ms=delay, history=3, pooling=pooling)
    for time, leaks in ((now, False), (now + 1, True)):
        pq.write_table(pa.table(events | {"timestamp": [time] * 40}), tmp_path / "a.parquet", row_group_size=6)
        batches = list(EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=8, transform=features, drop_last=False))
        assert sum(map(len, batches)) == 40
        values = torch.cat([batch.vectors[batch.found] for batch in batches])
        assert (set(values.tolist()) == {0.5}) is not leaks
