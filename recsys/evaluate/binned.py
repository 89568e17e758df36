"""Metrics of many weightings of the users of a log at once, from counts alone: what a bootstrap draws.

Rows are counted by bucket of users and bin of scores. A weighting of the buckets then gives weighted counts of the
positives and negatives in each bin by a matrix product, and these ROC-AUC and average precision; it reads no row again.
Of 1,000 draws the products are 8 GFLOP, of a thousand rows as of a hundred million.

Buckets of users, drawn as one, have the variance of users: the sum over a random bucket has the same ratio of variance
to size. What B buckets add to the noise of a width is 1 / sqrt(2 B), 2.2 %, half of what 1,000 draws leave.
Within a bin scores count as level. Bins of equal numbers of rows keep what that changes below 1 / H^2 of ROC-AUC and
about 1 / H of average precision, which is then scaled away: see `BinnedScores.metrics`.
"""

from __future__ import annotations

import math

import numpy as np

from recsys.evaluate.entropy import relative_to_rate

BUCKETS = 1024
"""Of users; fewer users have one each."""
BINS = 2048
"""Of scores; fewer different ones have one each."""
_SAMPLE = 2**20
"""Scores that the bins are laid by."""
_AT_ONCE = 128
"""Weightings that are multiplied out at a time: 2 MB each of positives and negatives."""


def bucket_of(user_ids: np.ndarray) -> tuple[np.ndarray, int]:
    """The bucket of each row's user, int64 [N], by a hash of its id where there are many; and how many there are.

    Args:
        user_ids: int [N]
    """
    users, user = np.unique(user_ids, return_inverse=True)
    if len(users) <= BUCKETS:
        return user, len(users)
    return _hash(users)[user], BUCKETS


class BinnedScores:
    """One model's scores, counted once.

    Args:
        labels: [N], 0 or 1.
        buckets: int [N], in [0, count).
        count: B, of buckets.
        scores: [N]
    """

    def __init__(self, labels: np.ndarray, buckets: np.ndarray, count: int, scores: np.ndarray) -> None:
        sample = np.sort(scores[:: max(1, len(scores) // _SAMPLE)])
        levels = np.unique(sample)
        if len(levels) > BINS:
            levels = np.unique(sample[np.arange(1, BINS) * len(sample) // BINS])
        positive, bins = labels == 1, len(levels) + 1
        place = buckets * bins + np.searchsorted(levels, scores, side="right")
        self._positives, self._negatives = (
            np.bincount(place[rows], minlength=count * bins).reshape(count, bins).astype(np.float64)
            for rows in (positive, ~positive)
        )
        z, y = np.asarray(scores, np.float64), positive.astype(np.float64)
        columns = (np.logaddexp(0.0, z) - y * z, None, y)
        self._sums = np.stack([np.bincount(buckets, column, minlength=count) for column in columns], axis=1)  # [B, 3]

    def metrics(
        self,
        weights: np.ndarray,  # float64 [D, B]
        names: tuple[str, ...],
        whole: np.ndarray,  # [M]
    ) -> np.ndarray:  # float64 [D, M]
        """Metrics in which each row counts as often as its bucket, for every weighting; NaN if a class has no weight.

        Args:
            weights: of the buckets.
            names: "auc", "pr_auc" or "ne", see `recsys.evaluate.bootstrap`.
            whole: the same metrics of the rows themselves, each counted once. What the bins make of these is scaled to
                them, and every weighting with it.
        """
        found = np.concatenate([self._metrics(part, names) for part in np.array_split(weights, _parts(len(weights)))])
        binned = self._metrics(np.ones((1, weights.shape[1])), names)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return found * np.where(np.isfinite(whole) & (binned != 0), whole / binned, 1.0)

    def _metrics(self, weights: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        loss, rows, labels = (weights @ self._sums).T
        sums = zip(loss, rows, labels, strict=True)
        result = {"ne": np.array([relative_to_rate(x / n, y / n) if n else math.nan for x, n, y in sums])}
        if {"auc", "pr_auc"} & set(names):
            positives, negatives = weights @ self._positives, weights @ self._negatives  # [D, H]
            with np.errstate(divide="ignore", invalid="ignore"):
                hits, misses = (np.cumsum(x[:, ::-1], axis=1)[:, ::-1] for x in (positives, negatives))
                all_hits, all_misses = hits[:, :1], misses[:, :1]
                below = all_misses - misses + negatives / 2
                result["auc"] = (positives * below).sum(1) / (all_hits * all_misses)[:, 0]
                precision = hits / np.maximum(hits + misses, 1e-300)
                averaged = (positives * precision).sum(1) / all_hits[:, 0]
            result["pr_auc"] = np.where(all_misses[:, 0] > 0, averaged, math.nan)
        both = (labels > 0) & (rows > labels)
        return np.stack([np.where(both, result[name], math.nan) for name in names], axis=1)


def _parts(draws: int) -> int:
    return -(-draws // _AT_ONCE)


def _hash(ids: np.ndarray) -> np.ndarray:
    """Bucket of each id, int64 [U]: splitmix64's last step, since this room knows no other."""
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % np.uint64(BUCKETS)).astype(np.int64)
