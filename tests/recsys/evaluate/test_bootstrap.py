import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

import recsys.evaluate.binned as binned_module
from recsys.evaluate.bootstrap import RankedScores, paired_bootstrap, resample
from recsys.evaluate.metrics import normalized_entropy


def events(rows: int, users: int, seed: int = 0, gain: float = 0.2) -> tuple[np.ndarray, ...]:
    """Labels, users, a baseline's and a better variant's scores."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.4).astype(np.float32)
    baseline = labels + rng.normal(size=rows)
    return labels, rng.integers(0, users, rows), baseline, baseline + gain * labels


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_weighted_metrics_equal_scikit_learn_ties_included(data):
    rows = data.draw(st.integers(2, 60))

    def integers(low: int, high: int, size: int) -> np.ndarray:
        return np.array(data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))

    labels, users = integers(0, 1, rows), integers(0, 4, rows)
    labels[:2] = 0, 1
    scores = integers(0, 6, rows).astype(np.float32)  # many ties
    weights = integers(0, 3, 5).astype(np.float64)
    of_row = weights[users]
    auc, pr_auc = RankedScores(labels, users, scores).metrics(weights, ("auc", "pr_auc"))
    if of_row[labels == 1].sum() == 0 or of_row[labels == 0].sum() == 0:
        assert math.isnan(auc)
        assert math.isnan(pr_auc)
    else:
        assert auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=of_row), abs=1e-9)
        assert pr_auc == pytest.approx(average_precision_score(labels, scores, sample_weight=of_row), abs=1e-9)


def slow_draws(labels: np.ndarray, users: np.ndarray, scores: np.ndarray, metric: str, samples: int) -> np.ndarray:
    """Users drawn one by one, and every row read for each draw."""
    ranked, count = RankedScores(labels, users, scores), int(users.max()) + 1
    rng = np.random.default_rng(np.random.SeedSequence(0).spawn(2)[0])
    drawn = [np.bincount(rng.integers(count, size=count), minlength=count).astype(float) for _ in range(samples)]
    return np.array([ranked.metrics(weights, (metric,))[0] for weights in drawn])


@pytest.mark.parametrize("metric", ["auc", "pr_auc", "ne"])
def test_of_few_users_and_scores_the_draws_are_exact(metric):
    labels, users, scores, _ = events(900, 60)
    _, users = np.unique(users, return_inverse=True)
    draws = resample(labels, users * 7 - 99, scores, metrics=(metric,), samples=40)[metric].draws
    np.testing.assert_allclose(draws, slow_draws(labels, users, scores, metric, 40), rtol=1e-12)


@pytest.mark.parametrize("metric", ["auc", "pr_auc", "ne"])
def test_of_many_users_the_intervals_agree_with_those_of_a_loop_over_users(metric):
    """5,000 users in 1,024 buckets, 40,000 scores in 2,048 bins; a width of 1,500 draws is known to some 4 %."""
    labels, users, baseline, variant = events(40_000, 5_000)
    _, users = np.unique(users, return_inverse=True)
    fast = paired_bootstrap(labels, users, baseline, variant, metric=metric, samples=1500)
    slow = [slow_draws(labels, users, scores, metric, 1500) for scores in (baseline, variant)]
    low, high = np.quantile(slow[1] / slow[0] - 1, (0.025, 0.975))
    assert fast.high - fast.low == pytest.approx(high - low, rel=0.15)
    assert fast.low == pytest.approx(low, abs=0.15 * (high - low))
    assert fast.high == pytest.approx(high, abs=0.15 * (high - low))


def test_weightings_are_multiplied_out_in_parts(monkeypatch):
    labels, users, scores, _ = events(300, 20)
    whole = resample(labels, users, scores, samples=10)["auc"].draws
    monkeypatch.setattr(binned_module, "_AT_ONCE", 3)
    np.testing.assert_allclose(resample(labels, users, scores, samples=10)["auc"].draws, whole, rtol=1e-12)


@pytest.mark.parametrize(("metric", "truth"), [("auc", roc_auc_score), ("pr_auc", average_precision_score)])
def test_the_lift_is_the_plain_relative_one_and_lies_inside(metric, truth):
    labels, users, baseline, variant = events(2000, 300)
    found = paired_bootstrap(labels, users, baseline, variant, metric=metric, samples=200)
    assert found.lift == pytest.approx(truth(labels, variant) / truth(labels, baseline) - 1)
    assert 0 < found.low < found.lift < found.high


def test_normalized_entropy_is_that_of_rows_that_are_there_so_many_times():
    labels, users, logits, _ = events(200, 20)
    weights = np.random.default_rng(3).integers(0, 4, 20).astype(np.float64)
    repeated = np.repeat(np.arange(200), weights[users].astype(int))
    (ne,) = RankedScores(labels, users, logits).metrics(weights, ("ne",))
    assert ne == pytest.approx(normalized_entropy(labels[repeated], logits[repeated]))


def test_pairing_beats_two_intervals_side_by_side():
    labels, users, baseline, variant = events(2000, 300, gain=0.05)
    paired = paired_bootstrap(labels, users, baseline, variant, samples=200)
    alone = resample(labels, users, baseline, metrics=("auc",), samples=200)["auc"]
    spread = np.quantile(alone.draws, 0.975) - np.quantile(alone.draws, 0.025)
    assert paired.high - paired.low < spread / 4
    assert paired_bootstrap(labels, users, baseline, baseline, samples=20) == type(paired)(0.0, 0.0, 0.0)


def test_users_are_drawn_not_rows():
    labels, _, baseline, variant = events(200, 1)
    rows = np.arange(200)
    as_rows = paired_bootstrap(labels, rows, baseline, variant, samples=400)
    tenfold = [np.tile(column, 10) for column in (labels, rows, baseline, variant)]  # no new information
    as_users = paired_bootstrap(*tenfold, samples=400)
    pretended = paired_bootstrap(tenfold[0], np.arange(2000), *tenfold[2:], samples=400)
    assert as_users.high - as_users.low == pytest.approx(as_rows.high - as_rows.low)
    assert pretended.high - pretended.low < 0.5 * (as_rows.high - as_rows.low)


def test_interval_width_agrees_with_fresh_samples():
    lifts = []
    for seed in range(60):
        labels, _, baseline, variant = events(400, 1, seed=seed)
        lifts.append(roc_auc_score(labels, variant) / roc_auc_score(labels, baseline) - 1)
    labels, _, baseline, variant = events(400, 1, seed=99)
    found = paired_bootstrap(labels, np.arange(400), baseline, variant, samples=400)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(lifts), rel=0.35)


def test_several_seeds_average_and_widen_the_interval():
    labels, users, baseline, variant = events(3000, 400)
    rng = np.random.default_rng(1)
    # variants that differ a lot from seed to seed
    strengths = (0.0, 0.3, 0.6)
    variants = np.stack([variant + strength * labels for strength in strengths])
    baselines = np.stack([baseline + 0.01 * rng.normal(size=3000) for _ in strengths])
    found = paired_bootstrap(labels, users, baselines, variants, samples=300)
    auc = [[roc_auc_score(labels, line) for line in lines] for lines in (baselines, variants)]
    assert found.lift == pytest.approx(np.mean(auc[1]) / np.mean(auc[0]) - 1)
    one = paired_bootstrap(labels, users, baselines[1], variants[1], samples=300)
    assert found.high - found.low > 2 * (one.high - one.low)


def test_seed_part_has_the_variance_of_a_mean():
    labels, _, baseline, _ = events(3000, 1)
    lines = np.stack([baseline + strength * labels for strength in (0.0, 0.2, 0.4)])
    drawn = resample(labels, np.zeros(3000), lines, metrics=("auc",), samples=4000)["auc"]  # one user: seeds alone vary
    of_seed = [roc_auc_score(labels, line) for line in lines]
    assert np.var(drawn.draws) == pytest.approx(np.var(of_seed, ddof=1) / 3, rel=0.1)


def test_same_seed_same_interval():
    data = events(500, 50)
    assert paired_bootstrap(*data, samples=50, seed=3) == paired_bootstrap(*data, samples=50, seed=3)
    assert paired_bootstrap(*data, samples=50, seed=3) != paired_bootstrap(*data, samples=50, seed=4)


@pytest.mark.parametrize("labels", [np.zeros(0), np.zeros(5), np.ones(5)])
def test_one_class_or_no_rows_gives_nan(labels):
    found = paired_bootstrap(labels, np.arange(len(labels)), labels, labels, samples=5)
    assert all(math.isnan(bound) for bound in (found.lift, found.low, found.high))


def test_draws_of_one_class_are_left_out():
    # two users with one class each: half of all draws hold one class only
    found = paired_bootstrap(np.array([0, 1]), np.array([7, 8]), np.zeros(2), np.array([0.0, 1.0]), samples=50)
    assert (found.lift, found.low, found.high) == (1.0, 1.0, 1.0)


def test_bad_input_is_named():
    labels, users, baseline, variant = events(20, 3)
    with pytest.raises(ValueError, match=r"metric is 'ndcg'; use one of auc, pr_auc, ne"):
        paired_bootstrap(labels, users, baseline, variant, metric="ndcg")
    with pytest.raises(ValueError, match=r"20 labels, 19 user_ids, scores for 20 rows"):
        paired_bootstrap(labels, users[1:], baseline, variant)
    with pytest.raises(ValueError, match=r"same rows with the same seeds"):
        paired_bootstrap(labels, users, baseline, np.stack([variant, variant]))
    with pytest.raises(ValueError, match=r"samples is 0"):
        paired_bootstrap(labels, users, baseline, variant, samples=0)
