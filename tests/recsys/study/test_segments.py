import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluate.bootstrap import paired_bootstrap
from recsys.evaluate.metrics import normalized_entropy, roc_auc
from recsys.study.segments import BUCKETS, ENOUGH, HEAD, SEGMENTS, TAIL, assign, assign_bucket, measure_segments


def test_segments_by_hand() -> None:
    """Of ten training rows two are of items that were met once: a fifth, the tail. One that was met twice is head."""
    training = np.array([7, 7, 7, 7, 7, 7, -1, -1, 3, 2**62])
    test = np.array([7, -1, 3, 2**62, 5, -(2**63), 7])
    assert [SEGMENTS[x] for x in assign(training, test)] == ["head", "head", "tail", "tail", "new", "new", "head"]


def test_entities_that_were_met_equally_often_share_a_segment() -> None:
    assert assign(np.arange(10), np.arange(10)).tolist() == [2] * 10, "all of them are more than a fifth"
    assert assign(np.zeros(0, np.int64), np.array([1, 2])).tolist() == [0, 0]
    assert assign(np.array([1]), np.zeros(0, np.int64)).tolist() == []


@settings(max_examples=50, deadline=None)
@given(training=st.lists(st.integers(-3, 8), max_size=60), test=st.lists(st.integers(-5, 10), max_size=20))
def test_segments_against_a_loop(training: list[int], test: list[int]) -> None:
    met = {who: training.count(who) for who in training}
    rare = 0
    for often in sorted(set(met.values())):
        if sum(count for count in met.values() if count <= often) <= TAIL * len(training):
            rare = often
    wanted = [0 if who not in met else 1 if met[who] <= rare else 2 for who in test]
    assert assign(np.array(training, np.int64), np.array(test, np.int64)).tolist() == wanted


def test_buckets_by_hand() -> None:
    """Of twelve rows seven and then ten are of the two most frequent items, two of the rarest."""
    training = np.repeat([7, 5, 3, 2], [5, 3, 2, 2])
    assert [BUCKETS[x] for x in assign_bucket(training, np.array([7, 5, 3, 2, 99]))] == [
        "head", "head", "middle", "middle", "tail",
    ]  # fmt: skip
    training = np.repeat([7, 5, 3, 2], [8, 3, 2, 1])
    assert [BUCKETS[x] for x in assign_bucket(training, np.array([7, 5, 3, 2]))] == ["head", "middle", "middle", "tail"]
    assert assign_bucket(np.arange(10), np.arange(10)).tolist() == [0] * 10
    assert assign_bucket(np.zeros(0, np.int64), np.array([1])).tolist() == [2]


@settings(max_examples=50, deadline=None)
@given(training=st.lists(st.integers(-3, 8), max_size=60))
def test_buckets_against_a_loop(training: list[int]) -> None:
    met = {who: training.count(who) for who in training}
    for item, bucket in zip(met, assign_bucket(np.array(training, np.int64), np.array([*met], np.int64)), strict=True):
        more = sum(count for count in met.values() if count > met[item])
        fewer = sum(count for count in met.values() if count <= met[item])
        wanted = "head" if more < HEAD * len(training) else "tail" if fewer <= TAIL * len(training) else "middle"
        assert BUCKETS[bucket] == wanted


def test_figures_are_of_the_segment_alone() -> None:
    rng = np.random.default_rng(0)
    labels, users = rng.integers(0, 2, 900), rng.integers(0, 50, 900)
    arms = {name: labels * gain + rng.normal(size=(2, 900)) for name, gain in (("none", 0.5), ("rich", 1.0))}
    numbers = np.repeat([0, 1, 2], [400, 350, 150])
    found = measure_segments(labels, users, arms, {"item": numbers}, samples=20)["item"]
    rows = numbers == 1
    lines = {arm: scores[:, rows] for arm, scores in arms.items()}
    tail = found["tail"]
    assert (tail["rows"], tail["positives"]) == (350, labels[rows].sum())
    assert tail["users"] == len(np.unique(users[rows]))
    assert tail["arms"]["rich"]["auc"] == pytest.approx(np.mean([roc_auc(labels[rows], x) for x in lines["rich"]]))
    assert tail["arms"]["none"]["ne"] == pytest.approx(
        np.mean([normalized_entropy(labels[rows], x) for x in lines["none"]])
    )
    expected = paired_bootstrap(labels[rows], users[rows], lines["none"], lines["rich"], samples=20)
    assert tail["arms"]["rich"]["auc_lift"] == expected.lift
    assert tail["arms"]["rich"]["auc_lift_ci95"] == [expected.low, expected.high]
    assert "auc_lift" not in tail["arms"]["none"]
    assert labels[numbers == 2].sum() < ENOUGH
    assert found["head"] == {"rows": 150, "users": 48, "positives": 81, "enough": False}
