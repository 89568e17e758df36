"""Confidence intervals of relative lifts: a paired bootstrap over users, and over training seeds if there are several.

Rows of one user are alike, so users are drawn and not rows: every resample draws as many users as there are, with
replacement, and weights each row by how often its user came up. Of more users than `recsys.evaluate.binned.BUCKETS`
buckets of users are drawn, so that a draw costs the same whatever there is to draw from. Both models are measured on
the same draw (paired), so what makes an event hard or easy for both cancels out of the lift.

With several seeds a figure is the mean over seeds of each seed's metric, which says what *one* training run is worth.
A resample then also draws seeds, the same ones for both models. Of S seeds it draws S - 1 with replacement: drawing S
would shrink the variance of a mean of few by (S - 1) / S (McCarthy & Snowden 1985; Rao & Wu 1988). The interval thus
covers the choice of users and of seeds; with one seed it covers users alone. Where all seeds read the vectors of one
training of each upstream, what another one would bring is in no interval. With `StudyConfig.upstream_seeds` a seed also
chooses the training that it reads, so that the interval covers both; seeds that share one are drawn as if they did not,
which makes it too narrow: give as many of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recsys.evaluate.binned import BinnedScores, bucket_of
from recsys.evaluate.entropy import relative_to_rate

METRICS = ("auc", "pr_auc", "ne")


@dataclass(frozen=True)
class Interval:
    """A relative lift and its 95 % percentile interval, as fractions: 0.021 is +2.1 %."""

    lift: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """One model's metric on the data themselves and on each bootstrap draw."""

    value: float
    draws: np.ndarray  # float64 [samples]

    def lift_over(self, baseline: Resampled) -> Interval:
        """Relative lift over `baseline`, which must come from the same labels, users, samples and seed.

        Draws that hold one class only count for nothing; without any other the bounds are NaN.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            lifts = self.draws / baseline.draws - 1.0
        lifts = lifts[np.isfinite(lifts)]
        low, high = np.quantile(lifts, (0.025, 0.975)) if len(lifts) else (math.nan, math.nan)
        return Interval(
            self.value / baseline.value - 1.0 if baseline.value else math.nan, low=float(low), high=float(high)
        )


def paired_bootstrap(
    labels: np.ndarray,  # [N]
    user_ids: np.ndarray,  # [N]
    baseline_scores: np.ndarray,  # [N] or [S, N]
    variant_scores: np.ndarray,  # [N] or [S, N]
    metric: str = "auc",
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Relative lift of one model over another on the same events, with a 95 % interval.

    Args:
        labels: 0 or 1.
        user_ids: whom each row belongs to; any integers.
        baseline_scores: one score a row, or one line of them for each of S training seeds.
        variant_scores: the other model's, seed by seed beside the baseline's.
        metric: "auc" (ROC-AUC), "pr_auc" (average precision), or "ne" (normalized entropy of logits: less is better).
        samples: bootstrap draws.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: shapes that do not fit together, an unknown metric, or samples < 1.
    """
    if np.shape(baseline_scores) != np.shape(variant_scores):
        raise ValueError(
            f"baseline_scores are {np.shape(baseline_scores)} and variant_scores {np.shape(variant_scores)}: "
            "score the same rows with the same seeds"
        )
    baseline, variant = (
        resample(labels, user_ids, scores, metrics=(metric,), samples=samples, seed=seed)[metric]
        for scores in (baseline_scores, variant_scores)
    )
    return variant.lift_over(baseline)


def resample(
    labels: np.ndarray,  # [N]
    user_ids: np.ndarray,  # [N]
    scores: np.ndarray,  # [N] or [S, N]
    *,
    metrics: tuple[str, ...] = METRICS,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Metrics of one model on every bootstrap draw; the same labels, user_ids, samples and seed give the same draws.

    The values are of the rows as they are; the draws are of counts by bucket and bin, see `recsys.evaluate.binned`.

    Raises:
        ValueError: shapes that do not fit together, an unknown metric, or samples < 1.
    """
    labels, user_ids, scores = np.asarray(labels), np.asarray(user_ids), np.atleast_2d(scores)
    _check(labels, user_ids, scores, metrics, samples)
    buckets, count = bucket_of(user_ids)
    user_rng, seed_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    weights = np.stack([_draw(user_rng, count) for _ in range(samples)])
    values, draws = np.empty((len(metrics), len(scores))), np.empty((samples, len(metrics), len(scores)))
    for s, line in enumerate(scores):
        values[:, s] = RankedScores(labels, np.zeros(len(labels), np.int64), line).metrics(np.ones(1), metrics)
        draws[:, :, s] = BinnedScores(labels, buckets, count, line).metrics(weights, metrics, values[:, s])
    drawn = seed_rng.integers(len(scores), size=(samples, 1, max(1, len(scores) - 1)))
    draws = np.take_along_axis(draws, drawn, axis=2).mean(axis=2)  # [samples, M]
    return {name: Resampled(float(values[m].mean()), draws[:, m]) for m, name in enumerate(metrics)}


class RankedScores:
    """One model's scores, sorted once, so that weighted metrics are a few passes over the rows for any user weights."""

    def __init__(
        self,
        labels: np.ndarray,  # [N]
        users: np.ndarray,  # int64 [N], in [0, U)
        scores: np.ndarray,  # [N]
    ) -> None:
        order = np.argsort(scores, kind="stable")
        positive = labels[order] == 1
        ascending = scores[order]
        positives, negatives = ascending[positive], ascending[~positive]
        self._users = users[order][positive], users[order][~positive]
        # for every positive: negatives strictly below, negatives below or level, positives strictly below
        self._below = np.searchsorted(negatives, positives, side="left")
        self._level = np.searchsorted(negatives, positives, side="right")
        self._positives_below = np.searchsorted(positives, positives, side="left")
        z, y = np.asarray(scores, np.float64), labels == 1
        self._loss = np.bincount(users, np.logaddexp(0.0, z) - y * z)  # [U], as the next: summed over a user's rows
        self._rows, self._positives = np.bincount(users), np.bincount(users, y)

    def metrics(self, user_weights: np.ndarray, names: tuple[str, ...]) -> list[float]:
        """Metrics in which row i counts `user_weights[users[i]]` times (float64 [U]); NaN if a class has no weight.

        Equal to scikit-learn's roc_auc_score and average_precision_score with that `sample_weight`; `ne` to
        `normalized_entropy` of rows that are there so many times.
        """
        weights = user_weights[self._users[0]]
        negatives = _cumulative(user_weights[self._users[1]])  # [negatives + 1]
        total = weights.sum()
        if total == 0 or negatives[-1] == 0:
            return [math.nan] * len(names)
        below = negatives[self._below]
        result = {}
        if "auc" in names:
            won = np.sum(weights * (below + negatives[self._level]))  # not `@`: BLAS threads cost more than they bring
            result["auc"] = won / (2 * total * negatives[-1])
        if "pr_auc" in names:  # sum over positives of the precision among all rows that score at least as high
            hits = total - _cumulative(weights)[self._positives_below]
            retrieved = hits + (negatives[-1] - below)
            result["pr_auc"] = np.sum(weights * hits / np.maximum(retrieved, 1e-300)) / total
        if "ne" in names:
            loss, rows, positives = (
                np.sum(user_weights[: len(x)] * x) for x in (self._loss, self._rows, self._positives)
            )
            result["ne"] = relative_to_rate(loss / rows, positives / rows)
        return [float(result[name]) for name in names]


def _draw(rng: np.random.Generator, users: int) -> np.ndarray:
    drawn = rng.integers(max(1, users), size=users)
    return np.bincount(drawn, minlength=users).astype(np.float64)


def _cumulative(values: np.ndarray) -> np.ndarray:
    result = np.zeros(len(values) + 1)
    np.cumsum(values, out=result[1:])
    return result


def _check(
    labels: np.ndarray, user_ids: np.ndarray, scores: np.ndarray, metrics: tuple[str, ...], samples: int
) -> None:
    if not len(labels) == len(user_ids) == scores.shape[1]:
        raise ValueError(
            f"{len(labels)} labels, {len(user_ids)} user_ids, scores for {scores.shape[1]} rows: give one of each a row"
        )
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"metric is {unknown[0]!r}; use one of {', '.join(METRICS)}")
    if samples < 1:
        raise ValueError(f"samples is {samples}; use 1 or more")
