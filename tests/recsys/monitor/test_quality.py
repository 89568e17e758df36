import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

import recsys.monitor.quality as quality_module
from embedding_store import EmbeddingStore
from recsys.data.errors import DataError
from recsys.data.schema import Label, Schema
from recsys.monitor.quality import lineage, measure, measure_series, neighbour_overlap
from recsys.monitor.sample import draw, quantiles, sample_ids
from tests.recsys.monitor.publishing import (
    DIM,
    ITEMS,
    USERS,
    day_events,
    publish,
    read_traffic,
    replay,
    seen,
    vectors_of,
)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path)


def slow_overlap(new: np.ndarray, old: np.ndarray, k: int) -> float:
    shares = []
    for row in range(len(new)):
        nearest = []
        for vectors in (new, old):
            cosines = [
                -2.0 if other == row else a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                for other, (a, b) in enumerate(zip([vectors[row]] * len(vectors), vectors, strict=True))
            ]
            nearest.append(set(np.argsort(cosines)[::-1][:k].tolist()))
        shares.append(len(nearest[0] & nearest[1]) / k)
    return float(np.mean(shares))


def test_first_snapshot_has_nothing_to_be_held_against(store: EmbeddingStore) -> None:
    quality = replay(store, 1)
    for measured in quality.series.values():
        assert measured.coverage is not None
        assert (measured.coverage.by_entity, measured.coverage.by_event, measured.drift) == (None, None, None)
        assert measured.coverage.events == 3_000
        assert measured.staleness is not None
        assert measured.staleness.active_today == 1.0
    assert quality.pair is not None
    assert quality.pair.skew.loss is None
    assert quality.pair.skew.auc[0][0] is not None
    assert [age.auc is None for age in quality.pair.ageing] == [False] + [True] * 6
    assert quality.pair.ageing[0].current_auc is None
    text = json.dumps(quality.as_dict(), allow_nan=False)
    assert json.loads(text)["series"]["user_ctr"]["drift"] is None


def test_coverage_counts_entities_and_events(store: EmbeddingStore) -> None:
    publish(store, "user_ctr", torch.tensor([1, 2, 5]), vectors_of(3, 0), day=0)
    version = publish(store, "user_ctr", torch.tensor([1, 2, 3, 4, 5]), vectors_of(5, 0), day=1)
    ids = torch.tensor([1, 1, 1, 2, 3, 4, 4, 9])
    coverage = measure_series(lineage(store.series("user_ctr"), version), seen(ids), activity=None).coverage
    assert coverage is not None
    assert (coverage.entities, coverage.events) == (5, 8)
    assert coverage.by_entity == pytest.approx(2 / 5)
    assert coverage.by_event == pytest.approx(4 / 8)
    without = measure_series(lineage(store.series("user_ctr"), version), seen(ids[:0]), activity=None).coverage
    assert without is not None
    assert (without.entities, without.events, without.by_entity, without.by_event) == (0, 0, None, None)


def test_drift_against_a_slow_reference(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_module, "NEIGHBOURS", 5)
    old = torch.randn(60, DIM, generator=torch.Generator().manual_seed(3))
    new = old.clone()
    new[:20] += 0.7 * torch.randn(20, DIM, generator=torch.Generator().manual_seed(4))
    ids = torch.randperm(10_000, generator=torch.Generator().manual_seed(5))[:60] - 5_000
    publish(store, "user_ctr", ids, old, day=0)
    added = torch.cat([ids, torch.tensor([77_777])])
    version = publish(store, "user_ctr", added, torch.cat([new, torch.ones(1, DIM)]), day=1)
    of_day = torch.cat([ids[:10], ids[:10], torch.tensor([77_777, 88_888])])
    measured = measure_series(lineage(store.series("user_ctr"), version), seen(of_day), activity=None)
    drift, cosine = measured.drift, F.cosine_similarity(new, old).double().numpy()
    assert drift is not None
    assert drift.cosine is not None
    assert drift.day_cosine is not None
    assert (drift.version, drift.shared, drift.day_shared) == (1, 60, 10)
    for level, value in drift.cosine.items():
        assert value == pytest.approx(np.quantile(cosine, float(level)), abs=1e-6)
    assert drift.day_cosine["0.5"] == pytest.approx(np.median(cosine[:10]), abs=1e-6)
    assert drift.cosine["0.5"] == pytest.approx(1.0)  # what stayed hides what moved
    assert drift.day_cosine["0.5"] < 0.97
    assert drift.neighbour_overlap == pytest.approx(slow_overlap(new.numpy(), old.numpy(), 10), abs=1e-9)
    assert measured.norms is not None
    assert measured.norms["0.5"] == pytest.approx(np.median(np.append(new.norm(dim=1).numpy(), DIM**0.5)), abs=1e-5)
    assert measured.dimensions is not None
    whole = torch.cat([new, torch.ones(1, DIM)]).double().numpy()
    np.testing.assert_allclose(measured.dimensions.mean, whole.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(measured.dimensions.std, whole.std(axis=0), atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbour_overlap_of_equal_and_of_unrelated_vectors(k: int) -> None:
    old, new = vectors_of(40, 1), vectors_of(40, 2)
    assert neighbour_overlap(old, 3 * old, k=k) == 1.0  # lengths do not matter
    assert neighbour_overlap(new, old, k=k) == pytest.approx(slow_overlap(new.numpy(), old.numpy(), k))
    assert neighbour_overlap(old[:1], old[:1]) is None
    assert neighbour_overlap(old[:0], old[:0]) is None
    assert neighbour_overlap(old[:2], new[:2]) == 1.0


def test_an_entity_is_not_its_own_neighbour_among_equal_ones() -> None:
    same = torch.ones(30, DIM)
    found = quality_module._nearest(F.normalize(same, dim=1), torch.arange(30), 5)
    assert found.shape == (30, 5)
    assert not (found == torch.arange(30)[:, None]).any()


def test_zero_vectors_have_a_cosine(store: EmbeddingStore) -> None:
    publish(store, "user_ctr", torch.arange(3), torch.zeros(3, DIM), day=0)
    version = publish(store, "user_ctr", torch.arange(3), torch.ones(3, DIM), day=1)
    drift = measure_series(lineage(store.series("user_ctr"), version), seen(torch.arange(3)), activity=None).drift
    assert drift is not None
    assert drift.cosine is not None
    assert set(drift.cosine.values()) == {0.0}


def test_staleness_counts_days_since_the_last_activity(store: EmbeddingStore) -> None:
    quality = replay(store, 4)
    staleness = quality.series["user_ctr"].staleness
    assert staleness is not None
    assert staleness.quantiles is not None
    assert staleness.active_today == 0.5
    assert staleness.mean == pytest.approx(1.5)
    assert staleness.quantiles["0.95"] == 3.0
    assert quality.series["user_ctr"].coverage is not None
    assert quality.series["user_ctr"].coverage.by_event == 1.0


def test_staleness_reads_the_activity_that_goes_with_the_vectors(store: EmbeddingStore) -> None:
    """A crash between the two commits leaves a newer activity: it is not the vectors' own."""
    version = publish(store, "user_ctr", torch.arange(4), vectors_of(4, 0), day=0)
    publish(store, "user_ctr.activity", torch.arange(4), torch.tensor([[5.0, 1]] * 2 + [[3.0, 1]] * 2), day=0)
    publish(store, "user_ctr.activity", torch.arange(4), torch.tensor([[9.0, 2]] * 4), day=1)
    staleness = measure(store, "ctr", {"user_ctr": version}, day_events().traffic).series["user_ctr"].staleness
    assert staleness is not None
    assert staleness.mean == 1.0


def test_a_correction_is_held_against_the_day_before(store: EmbeddingStore) -> None:
    for day, seed in ((0, 1), (1, 2), (1, 1)):
        version = publish(store, "user_ctr", USERS, vectors_of(len(USERS), seed), day)
    history = lineage(store.series("user_ctr"), version)
    assert [snapshot.version for snapshot in history] == [3, 1]
    drift = measure_series(history, seen(USERS), activity=None).drift
    assert drift is not None
    assert drift.version == 1
    assert drift.day_cosine is not None
    assert drift.day_cosine["0.5"] == pytest.approx(1.0)
    publish(store, "user_ctr", USERS, vectors_of(len(USERS), 3), day=2)
    assert [snapshot.version for snapshot in lineage(store.series("user_ctr"), 3)] == [3, 1]  # not what came later
    assert [snapshot.version for snapshot in lineage(store.series("user_ctr"), 4)] == [4, 3, 1]


def test_two_spaces_are_never_compared(store: EmbeddingStore) -> None:
    replay(store, 1)
    versions = {
        name: publish(store, name, ids, vectors_of(len(ids), seed), day=1, space="ctr-2")
        for name, ids, seed in (("user_ctr", USERS, 1), ("item_ctr", ITEMS, 2))
    }
    quality = measure(store, "ctr", versions, day_events().traffic)
    for measured in quality.series.values():
        assert measured.drift is None
        assert measured.coverage is not None
        assert measured.coverage.by_event == 1.0
    assert quality.pair is not None
    assert quality.pair.skew.auc[0][1] is None
    assert quality.pair.ageing[1].auc is None


def test_variants_are_measured_in_norms_and_drift_alone(store: EmbeddingStore) -> None:
    replay(store, 1)
    publish(store, "item_ctr.latest", ITEMS, vectors_of(len(ITEMS), 2), day=0)
    variant = publish(store, "item_ctr.latest", ITEMS, -vectors_of(len(ITEMS), 2), day=1)
    quality = measure(store, "ctr", {"item_ctr.latest": variant}, day_events().traffic)
    measured = quality.series["item_ctr.latest"]
    assert (measured.coverage, measured.staleness, quality.pair) == (None, None, None)
    assert measured.drift is not None
    assert measured.drift.day_cosine is not None
    assert measured.drift.day_cosine["0.5"] == pytest.approx(-1.0)


def test_an_empty_snapshot_measures_as_none(store: EmbeddingStore) -> None:
    publish(store, "user_ctr", USERS[:0], torch.empty(0, DIM), day=0)
    version = publish(store, "user_ctr", USERS[:0], torch.empty(0, DIM), day=1)
    measured = measure_series(lineage(store.series("user_ctr"), version), seen(USERS), activity=None)
    assert (measured.rows, measured.norms, measured.dimensions) == (0, None, None)
    assert measured.drift is not None
    assert (measured.drift.shared, measured.drift.cosine, measured.drift.neighbour_overlap) == (0, None, None)
    assert measured.coverage is not None
    assert measured.coverage.by_event == 0.0


def test_samples_are_bounded_and_follow_entities() -> None:
    ids = torch.randperm(5_000, generator=torch.Generator().manual_seed(0)) - 2_500
    sampled = sample_ids(ids, 100)
    assert len(sampled) == len(sampled.unique()) == 100
    assert torch.equal(sample_ids(ids.flip(0), 100), sampled)
    survivors = ids[ids != sampled[0]]
    assert set(sampled[1:].tolist()) < set(sample_ids(survivors, 100).tolist())
    assert torch.equal(sample_ids(ids[:50], 100).sort().values, ids[:50].sort().values)
    assert abs(float(sample_ids(ids, 1000).double().mean())) < 200  # not the smallest ids
    assert draw(0, 5, seed=0).tolist() == []
    assert torch.equal(draw(1000, 10, seed=1), draw(1000, 10, seed=1))
    assert quantiles(torch.empty(0)) is None


def test_read_traffic(tmp_path: Path) -> None:
    schema = Schema(
        timestamp="timestamp", user_id="user_id", item_id="item_id", labels=(Label(name="click"), Label(name="buy"))
    )
    path = tmp_path / "part.parquet"
    columns = {"timestamp": [1, 2, 3], "user_id": [-5, 2**62, 0], "item_id": [1, 1, 2], "click": [1, 0, 0]}
    pq.write_table(pa.table({**columns, "buy": [0, 0, 1]}), path)
    traffic = read_traffic([path], schema, "buy")
    assert [x.tolist() for x in traffic.users] == [[-5, 0, 2**62], [1, 1, 1]]
    assert [x.tolist() for x in traffic.items] == [[1, 2], [2, 1]]
    assert traffic.judged.users.tolist() == [-5, 2**62, 0]
    assert traffic.judged.items.tolist() == [1, 1, 2]
    assert traffic.judged.labels.tolist() == [0.0, 0.0, 1.0]
    assert (traffic.choosers.tolist(), traffic.chosen.tolist()) == ([0], [2])
    assert read_traffic([path], schema, "click").choosers.tolist() == [-5]
    with pytest.raises(DataError, match="gone"):
        read_traffic([tmp_path / "gone.parquet"], schema, "buy")
