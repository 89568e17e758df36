from pathlib import Path

import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore
from recsys.config import GateConfig
from recsys.monitor.gates import check, check_progressive
from recsys.monitor.quality import measure
from tests.recsys.monitor.publishing import DIM, ITEMS, USERS, DayEvents, day_events, publish, replay, vectors_of

STRICT = GateConfig(min_coverage=0.9, max_drift=0.1, max_skew=0.05)
TURN = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9))).Q


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path)


def turned(owner: str, day: int, vectors: Tensor) -> Tensor:
    return vectors @ TURN if day == 2 else vectors


def test_a_steady_publish_passes(store: EmbeddingStore) -> None:
    assert check(replay(store, 3), STRICT) == []


def test_a_first_snapshot_passes_the_strictest_gates(store: EmbeddingStore) -> None:
    assert check(replay(store, 1), GateConfig(min_coverage=1.0, max_drift=0.0, max_skew=0.0)) == []


def test_planted_drift_and_skew_are_refused_and_named(store: EmbeddingStore) -> None:
    quality = replay(store, 3, turned)
    users, items, pair = check(quality, STRICT)
    assert users.startswith("user_ctr: the day's entities moved by 1 - median cosine = ")
    assert items.startswith("item_ctr: ")
    assert users.endswith("since version 2; gates.max_drift allows 0.1000")
    assert pair.startswith("a pair of new and old vectors loses ")
    assert pair.endswith("gates.max_skew allows 5.00%")
    assert check(quality, GateConfig(max_drift=2.0)) == []  # the other gates stand open


def test_drift_of_a_few_is_not_hidden_by_those_who_were_absent(store: EmbeddingStore) -> None:
    """One user in ten is there today; all of these turned round."""
    replay(store, 1)
    vectors = vectors_of(len(USERS), 1)
    vectors[:20] *= -1
    publish(store, "user_ctr", USERS, vectors, day=1)
    publish(store, "item_ctr", ITEMS, vectors_of(len(ITEMS), 2), day=1)
    events = day_events()
    today = torch.isin(events.users, USERS[:20])
    events = DayEvents(events.users[today], events.items[today], events.labels[today], events.mask[today])
    quality = measure(store, "ctr", {"user_ctr": 2, "item_ctr": 2}, events.traffic)
    (reason,) = check(quality, GateConfig(max_drift=0.5, min_auc=0))
    assert reason.startswith("user_ctr: the day's entities moved by 1 - median cosine = 2.0000 ")


def test_what_a_few_events_say_of_the_model_before_stops_nothing() -> None:
    figures = {"ne": 2.5, "auc": 0.4, "calibration": 3.0, "rows": 1000, "positives": 99}
    assert check_progressive({"click": figures}, GateConfig().max_ne) == []
    (reason,) = check_progressive({"click": {**figures, "positives": 100}}, GateConfig().max_ne)
    assert reason.endswith("a normalized entropy of 2.5000; gates.max_ne allows 2.0000")
    assert check_progressive({"click": {**figures, "positives": 100}}, 0) == []
    assert (
        check_progressive({"click": {**figures, "ne": None, "rows": 100, "positives": 100}}, GateConfig().max_ne) == []
    )


def test_low_coverage_is_refused(store: EmbeddingStore) -> None:
    publish(store, "user_ctr", USERS[:20], vectors_of(20, 1), day=0)
    publish(store, "item_ctr", ITEMS, vectors_of(len(ITEMS), 2), day=0)
    quality = replay(store, 1, first=1)
    (reason,) = check(quality, GateConfig(min_coverage=0.9))
    coverage = quality.series["user_ctr"].coverage
    assert coverage is not None
    assert coverage.by_event == pytest.approx(0.1, abs=0.02)
    assert reason == (
        f"user_ctr: the snapshot before had a vector for {coverage.by_event:.2%} of the day's events; "
        "gates.min_coverage asks for 90.00%"
    )


def test_by_default_hardly_any_coverage_is_refused_unless_the_day_is_quiet(store: EmbeddingStore) -> None:
    publish(store, "user_ctr", USERS[:2], vectors_of(2, 1), day=0)
    publish(store, "item_ctr", ITEMS, vectors_of(len(ITEMS), 2), day=0)
    (reason,) = check(replay(store, 1, first=1), GateConfig())
    assert reason.startswith("user_ctr: the snapshot before had a vector for 1.")
    events = day_events(10)
    unknown = DayEvents(USERS[2:12], events.items, events.labels, events.mask)
    versions = {name: store.series(name).latest().version for name in ("user_ctr", "item_ctr")}
    assert check(measure(store, "ctr", versions, unknown.traffic), GateConfig()) == [], (
        "of ten events none may be by chance"
    )


def test_by_default_a_pair_that_ranks_the_wrong_way_round_is_refused(store: EmbeddingStore) -> None:
    quality = replay(store, 2, lambda owner, day, vectors: vectors if owner == "user" else -vectors)
    assert quality.pair is not None
    worth = quality.pair.worth
    (reason,) = check(quality, GateConfig())
    assert reason.startswith(
        f"the inner product of users and items ranks the day's events ({worth.positives:,} of 3,000 positive) at a "
        f"ROC-AUC of {worth.auc:.4f} ("
    )
    assert reason.endswith("); gates.min_auc asks for 0.5000")
    assert check(quality, GateConfig(min_auc=0)) == []
    few = day_events(100)
    assert check(measure(store, "ctr", {"user_ctr": 2, "item_ctr": 2}, few.traffic), GateConfig()) == [], (
        "too few to tell"
    )


def test_a_jump_does_not_take_the_tag_a_day_late(store: EmbeddingStore) -> None:
    """Version 3 was refused, the tag stayed on 2; version 4 hardly differs from 3 but would jump all the same."""
    later = lambda owner, day, vectors: turned(owner, min(day, 2), vectors)  # noqa: E731
    replay(store, 4, later)
    versions = {"user_ctr": 4, "item_ctr": 4}
    assert check(measure(store, "ctr", versions, day_events().traffic), STRICT) == []
    quality = measure(store, "ctr", versions, day_events().traffic, served={"user_ctr": 2, "item_ctr": 2})
    reasons = check(quality, STRICT)
    assert len(reasons) == 3
    assert "since version 2;" in reasons[0]
    drift = quality.series["user_ctr"].drift
    assert drift is not None
    assert drift.version == 3  # what is shown stays version against version


def test_a_good_version_after_a_refused_one_passes(store: EmbeddingStore) -> None:
    replay(store, 4, turned)  # version 3 alone is turned
    versions, served = {"user_ctr": 4, "item_ctr": 4}, {"user_ctr": 2, "item_ctr": 2}
    assert check(measure(store, "ctr", versions, day_events().traffic), STRICT) != []
    assert check(measure(store, "ctr", versions, day_events().traffic, served=served), STRICT) == []


def test_a_tag_on_the_version_before_changes_nothing(store: EmbeddingStore) -> None:
    replay(store, 3)
    versions = {"user_ctr": 3, "item_ctr": 3}
    for tags in ({"user_ctr": 2, "item_ctr": 2}, {"user_ctr": None, "item_ctr": None}, None):
        assert measure(store, "ctr", versions, day_events().traffic, served=tags).tagged is None


def test_variants_stop_nothing(store: EmbeddingStore) -> None:
    for day in (0, 1):
        version = publish(store, "user_ctr.latest", USERS, vectors_of(len(USERS), day), day)
    quality = measure(store, "ctr", {"user_ctr.latest": version}, day_events().traffic)
    drift = quality.series["user_ctr.latest"].drift
    assert drift is not None
    assert drift.day_cosine is not None
    assert 1 - drift.day_cosine["0.5"] > 0.5
    assert check(quality, STRICT) == []
