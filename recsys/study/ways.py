"""The rankers of the daily report: an arm each way of aggregation, refreshed daily or once, on consecutive days.

Every arm joins the store's vectors as of each event's own time, so that a row that an upstream has learned from is read
with the vectors of the days before it.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from recsys.config import STUDIED, ArmConfig, RankerConfig, StudyConfig
from recsys.data.errors import DataError
from recsys.refresh.arms import arm_of, cross_series, series_of
from recsys.refresh.days import find_day
from recsys.study.ablation import ranker_job

JOB = "daily"
ONCE = "once"
"""The arm that reads the first snapshots alone: what the vectors are worth if nobody refreshes them."""
CROSSED = "cross"
"""The arm that reads cross representations beside the upstream's own way, where they are published."""


def study_arms(study: StudyConfig) -> tuple[ArmConfig, ...]:
    """The arms in the order of the report: `none`, the ways of aggregation, `cross`, `once`."""
    refresh = study.refresh
    own = arm_of(refresh)

    def series(arm: str) -> tuple[str, ...]:
        return tuple(name for upstream in study.upstreams for name in series_of(arm, upstream.name, refresh))

    ways = dict.fromkeys([*(STUDIED if refresh.study else ()), own])
    refreshed = [ArmConfig(name=arm, series=series(arm)) for arm in ways]
    if refresh.cross:
        added = tuple(name for upstream in study.upstreams for name in cross_series(upstream.name))
        refreshed.append(ArmConfig(name=CROSSED, series=series(own) + added))
    return (ArmConfig(name="none"), *refreshed, ArmConfig(name=ONCE, series=series(own), once=True))


def study_job(study: StudyConfig, data: Path) -> RankerConfig:
    """The study's rankers on its spans of days, as a job of their own; days that are not there are left out.

    Raises:
        DataError: a span has no day at all.
    """
    days, spans = study.daily()

    def files(span: str) -> tuple[str, ...]:
        first, last = getattr(spans, span)
        found = [path for day in days.between(first, last) for path in find_day(data, days, day)]
        if not found:
            raise DataError(f"no day of spans.{span} = {first} to {last} is there: deliver one, or choose other days")
        return tuple(glob.escape(str(path.relative_to(data))) for path in found)

    settings = replace(study.rankers, train=files("train"), validation=files("validation"), test=files("test"))
    return ranker_job(JOB, settings, study_arms(study))
