"""What the rankers of one task predicted for the test events, and what can be measured of it, arm by arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys.dates import iso_day
from recsys.downstream.validation import REFERENCE, Validation
from recsys.evaluate.bootstrap import METRICS, Resampled, resample
from recsys.evaluate.metrics import calibration, log_loss, normalized_entropy, pr_auc, reliability, roc_auc
from recsys.evaluate.per_user import group_auc, ndcg


class ReportError(ValueError):
    """Results that do not fit together, or a report that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """What every arm of the ablation predicted for the test events of one task."""

    labels: np.ndarray  # [N], 0 or 1
    users: np.ndarray  # int64 [N]
    arms: Mapping[str, np.ndarray]
    """Arm -> logits [S, N], one line a seed; `none` first, then in the order to show."""
    seeds: tuple[int, ...]
    """The S training seeds, the same for every arm."""
    oracle: np.ndarray | None = None  # [N]
    """True probabilities of the synthetic market (or anything that ranks like them)."""
    validation: Mapping[str, Sequence[Validation]] = field(default_factory=dict)
    """Arm -> what its rankers came to on the validation rows, seed by seed; empty if nobody knows."""
    days: np.ndarray | None = None  # int64 [N], numbers of days; None without event times
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Owner -> int8 [N], see `recsys.study.segments.assign`; empty: not wanted."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        require(next(iter(self.arms), "") == REFERENCE, f"arms are {list(self.arms)}; put {REFERENCE!r} first")
        require(len(self.users) == n, f"users has {len(self.users)} entries for {n} labels; give one a row")
        require(bool(np.isin(self.labels, (0, 1)).all()), "labels hold values besides 0 and 1; leave out invalid rows")
        for arm, scores in self.arms.items():
            shape = (len(self.seeds), n)
            require(scores.shape == shape, f"arm {arm!r}: logits are {scores.shape}; expected [seeds, rows] = {shape}")
            require(bool(np.isfinite(scores).all()), f"arm {arm!r}: logits hold NaN or infinity: its training diverged")
        columns = {"oracle": self.oracle, "days": self.days, **self.segments}
        for name, shape in {name: x.shape for name, x in columns.items() if x is not None}.items():
            require(shape == (n,), f"{name} is {shape}; expected [rows] = {(n,)}")


def resample_arms(scores: TaskScores, samples: int = 1000, seed: int = 0) -> dict[str, dict[str, Resampled]]:
    """Arm -> metric -> its values on the same draws for every arm, so that any two arms can be compared."""
    return {
        arm: resample(scores.labels, scores.users, logits, samples=samples, seed=seed)
        for arm, logits in scores.arms.items()
    }


def measure_arms(
    scores: TaskScores,
    samples: int = 1000,
    seed: int = 0,
    resampled: Mapping[str, Mapping[str, Resampled]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every metric of every arm, and the lifts over `none` with their intervals: `tasks.<task>` of the document.

    Args:
        scores: the arms' predictions.
        samples: draws of the paired bootstrap.
        seed: of the bootstrap.
        resampled: what `resample_arms` gave for these scores, if it is there already.
    """
    arms: dict[str, dict[str, Any]] = {}
    resampled = resample_arms(scores, samples, seed) if resampled is None else resampled
    for arm, logits in scores.arms.items():
        by_seed = {
            name: [metric(scores.labels, line) for line in logits]
            for name, metric in {"auc": roc_auc, "ne": normalized_entropy, "calibration": calibration}.items()
        }
        measured: dict[str, Any] = {
            **{name: float(np.mean(values)) for name, values in by_seed.items()},
            **{f"{name}_by_seed": values for name, values in by_seed.items()},
            "pr_auc": float(np.mean([pr_auc(scores.labels, line) for line in logits])),
            "log_loss": float(np.mean([log_loss(scores.labels, line) for line in logits])),
            "gauc": float(np.mean([group_auc(scores.labels, line, scores.users) for line in logits])),
            "ndcg_5": float(np.mean([ndcg(scores.labels, line, scores.users, 5) for line in logits])),
            "reliability": reliability(scores.labels, logits.mean(axis=0)),
            "calibration_by_day": _by_day(scores, logits, calibration),
            "ne_by_day": _by_day(scores, logits, normalized_entropy),
            **_validation(scores.validation, arm),
            "seeds": list(scores.seeds),
            "rows": len(scores.labels),
            "positives": int(np.sum(scores.labels == 1)),
            "users": len(np.unique(scores.users)),
        }
        for metric in METRICS if arm != REFERENCE else ():
            interval = resampled[arm][metric].lift_over(resampled[REFERENCE][metric])
            measured[f"{metric}_lift"] = interval.lift
            measured[f"{metric}_lift_ci95"] = [interval.low, interval.high]
        if arm != REFERENCE:
            measured["auc_gain"] = measured["auc"] - arms[REFERENCE]["auc"]
        arms[arm] = measured
    return arms


def _by_day(
    scores: TaskScores, logits: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float]
) -> dict[str, float]:
    """ISO date -> the metric of logits [S, N] on that day's rows, mean over seeds."""
    found = {}
    for day in np.unique(scores.days) if scores.days is not None else ():
        rows = scores.days == day
        values = [metric(scores.labels[rows], line[rows]) for line in logits]
        found[iso_day(int(day))] = float(np.mean(values))
    return found


def _validation(found: Mapping[str, Sequence[Validation]], arm: str) -> dict[str, Any]:
    """`validation` and `pays` of an arm, if they are known."""
    if arm not in found:
        return {}
    figures: dict[str, Any] = {
        name: float(np.mean([getattr(seed, name) for seed in found[arm]]))
        for name in ("ne", "auc", "calibration", "raw_calibration")
    }
    figures |= {name: getattr(found[arm][0], name) for name in ("rows", "positives")}
    figures["passes"] = {"best": [seed.best_pass for seed in found[arm]], "most": found[arm][0].most_passes}
    figures["reads"] = [seed.reads for seed in found[arm]]
    if arm == REFERENCE:
        return {"validation": figures}
    figures["tried"] = dict(found[arm][0].tried)
    return {"validation": figures, "pays": any(figures["reads"])}


def require(condition: bool, message: str) -> None:
    """Raise ReportError with this message unless the condition holds."""
    if not condition:
        raise ReportError(message)
