"""Whether a publish may take the tag that downstream jobs read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from recsys.config import CROSS, GateConfig
from recsys.monitor.quality import Quality, SeriesQuality
from recsys.monitor.worth import NORMAL, Worth

ENOUGH = 100
"""Positives, and negatives, of a day below which its ROC-AUC says too little to stop anything."""


def check(quality: Quality, gates: GateConfig) -> list[str]:
    """Why the publish must not take the tag, one sentence a reason; empty: it may.

    The publish is held against what the tag points to, which after a refusal is older than the previous snapshot: else
    a jump would take the tag a day late. What could not be measured stops nothing: a first snapshot has nothing to be
    held against. Nor does what a quiet day's few events may show by chance, in coverage and ROC-AUC. Coverage and drift
    are asked of the pair's two series, not of a study's variants; of cross representations drift alone, since only who
    had an event has one, however good the vectors beside it.
    """
    quality = quality.tagged or quality
    reasons = [
        f"{name}: {reason}"
        for name, measured in quality.series.items()
        if measured.coverage is not None  # the variants have none
        for reason in _refused(measured, gates, covers=not name.endswith(CROSS))
    ]
    if quality.pair:
        reasons += _ranks_worse(quality.pair.worth, gates)
    loss = quality.pair.skew.loss if quality.pair else None
    if loss is not None and loss > gates.max_skew:
        reasons.append(
            f"a pair of new and old vectors loses {loss:.2%} of its ROC-AUC; gates.max_skew allows {gates.max_skew:.2%}"
        )
    return reasons


def check_progressive(
    figures: Mapping[str, Mapping[str, float | None]], max_ne: float, key: str = "gates.max_ne"
) -> list[str]:
    """Why what the model of before says of new events must keep their vectors from the tag, or a ranker from learning
    of them, see recsys/progressive.py. `key`: of `max_ne`, 0 for any, in the config."""
    reasons = []
    for task, found in figures.items():
        value = "deviance" in found
        loss, rows, positives = found["deviance" if value else "ne"], found["rows"] or 0, found["positives"] or 0
        asked = max_ne > 0 and min(positives, ENOUGH if value else rows - positives) >= ENOUGH
        if asked and loss is not None and loss > max_ne:
            reasons.append(
                f"task {task!r}: the model of before scores the {rows:,} new events with a normalized "
                f"{'deviance' if value else 'entropy'} of {loss:.4f}; {key} allows {max_ne:.4f}"
            )
    return reasons


def _ranks_worse(worth: Worth, gates: GateConfig) -> Iterator[str]:
    enough = min(worth.positives, worth.negatives) >= ENOUGH
    if enough and worth.auc_ci95 is not None and worth.auc_ci95[1] < gates.min_auc:
        low, high = worth.auc_ci95
        yield (
            f"the inner product of users and items ranks the day's events ({worth.positives:,} of "
            f"{worth.positives + worth.negatives:,} positive) at a ROC-AUC of {worth.auc:.4f} ({low:.4f} to "
            f"{high:.4f}); gates.min_auc asks for {gates.min_auc:.4f}"
        )


def _refused(measured: SeriesQuality, gates: GateConfig, *, covers: bool) -> Iterator[str]:
    coverage = measured.coverage if covers else None
    covered = coverage.by_event if coverage else None
    if coverage and covered is not None and _at_most(covered, coverage.events) < gates.min_coverage:
        yield (
            f"the snapshot before had a vector for {covered:.2%} of the day's events; "
            f"gates.min_coverage asks for {gates.min_coverage:.2%}"
        )
    drift = measured.drift
    if drift is not None and drift.day_cosine is not None and 1 - drift.day_cosine["0.5"] > gates.max_drift:
        yield (
            f"the day's entities moved by 1 - median cosine = {1 - drift.day_cosine['0.5']:.4f} since version "
            f"{drift.version}; gates.max_drift allows {gates.max_drift:.4f}"
        )


def _at_most(share: float, events: int) -> float:
    """The upper end of the 95 % interval of a share of so many events (Wilson 1927)."""
    spread = NORMAL**2 / events
    half = NORMAL * math.sqrt(share * (1 - share) / events + spread / (4 * events))
    return (share + spread / 2 + half) / (1 + spread)
