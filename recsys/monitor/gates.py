"""Whether a publish may take the tag that downstream jobs read."""

from __future__ import annotations

from collections.abc import Iterator

from recsys.config import GateConfig
from recsys.monitor.quality import Quality, SeriesQuality
from recsys.monitor.skew import Worth

ENOUGH = 100
"""Positives, and negatives, of a day below which its ROC-AUC says too little to stop anything: a quiet Sunday's."""


def check(quality: Quality, gates: GateConfig) -> list[str]:
    """Why the publish must not take the tag, one sentence a reason; empty: it may.

    The publish is held against what the tag points to, which after a refusal is older than the previous snapshot: else
    a jump would take the tag a day late. What could not be measured stops nothing: a first snapshot has nothing to be
    held against. Coverage and drift are asked of the pair's two series, not of a study's variants.
    """
    quality = quality.tagged or quality
    reasons = [
        f"{name}: {reason}"
        for name, measured in quality.series.items()
        if measured.coverage is not None  # the variants have none
        for reason in _refused(measured, gates)
    ]
    if quality.pair:
        reasons += _no_better_than_chance(quality.pair.worth, gates)
    loss = quality.pair.skew.loss if quality.pair else None
    if loss is not None and loss > gates.max_skew:
        reasons.append(
            f"a pair of new and old vectors loses {loss:.2%} of its ROC-AUC; gates.max_skew allows {gates.max_skew:.2%}"
        )
    return reasons


def _no_better_than_chance(worth: Worth, gates: GateConfig) -> Iterator[str]:
    enough = min(worth.positives, worth.negatives) >= ENOUGH
    if gates.min_auc and enough and worth.auc is not None and worth.auc <= gates.min_auc:
        yield (
            f"the inner product of users and items ranks the day's events ({worth.positives:,} positive of "
            f"{worth.positives + worth.negatives:,}) at a ROC-AUC of {worth.auc:.4f}; gates.min_auc asks for more than "
            f"{gates.min_auc:.4f}"
        )


def _refused(measured: SeriesQuality, gates: GateConfig) -> Iterator[str]:
    covered = measured.coverage.by_event if measured.coverage else None
    if covered is not None and covered < gates.min_coverage:
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
