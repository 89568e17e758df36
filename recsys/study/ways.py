"""The rankers of the daily report: an arm each way of aggregation, refreshed daily or once, on consecutive days.

Every arm joins the store's vectors as of each event's own time, so that a row that an upstream has learned from is read
with the vectors of the days before it.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from recsys.config import STUDIED, DownstreamConfig, RunConfig
from recsys.data.errors import DataError
from recsys.dates import dates
from recsys.downstream.ranking import Ranker, train_each
from recsys.refresh.arms import arm_of, series_of
from recsys.refresh.days import find_day

POPULATION = "daily"
ONCE = "once"
"""The arm that reads the first snapshots alone: what the vectors are worth if nobody refreshes them."""


def study_arms(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Arm -> the series it reads, in the order of the report: `none`, the ways of aggregation, `once`."""
    first = config.upstreams[0].refresh
    ways = [*(STUDIED if config.days().study else ()), arm_of(first)]
    arms: dict[str, tuple[str, ...]] = {"none": ()}
    for arm in dict.fromkeys(ways):
        own = arm == arm_of(first)  # every upstream's own way, which need not be the same
        arms[arm] = tuple(
            name
            for upstream in config.upstreams
            for name in series_of(arm_of(upstream.refresh) if own else arm, upstream.name, upstream.refresh)
        )
    return arms | {ONCE: arms[arm_of(first)]}


def study_rankers(config: RunConfig) -> Iterator[Ranker]:
    """Every ranker of the report."""
    for task in config.downstream.tasks:
        for arm, series in study_arms(config).items():
            for seed in config.downstream.seeds:
                yield Ranker(POPULATION, task, arm, series, seed, once=arm == ONCE)


def study_downstream(config: RunConfig, data: Path) -> DownstreamConfig:
    """The config's rankers on the splits of its `daily` section; days that are not there are left out.

    Raises:
        DataError: a split has no day at all.
    """
    daily = config.days()

    def files(split: str, first: str, last: str) -> tuple[str, ...]:
        found = [path for day in dates(first, last) for path in find_day(data, daily, day)]
        if not found:
            raise DataError(f"no day of daily.{split} = {first} to {last} is there: deliver one, or choose other days")
        return tuple(glob.escape(str(path.relative_to(data))) for path in found)

    return replace(
        config.downstream,
        train=files("train", *daily.train),
        validation=files("validation", *daily.validation),
        test=files("test", *daily.test),
        publish_delay_ms=daily.publish_delay_ms,
    )


def train_study(config: RunConfig, data: Path, out: Path) -> None:
    """Train every ranker of the report that has not left its predictions yet; one rank of a job.

    Raises:
        SchemaError, DataError, KeyError: a file, feature, label or series is not there.
    """
    train_each(list(study_rankers(config)), {POPULATION: study_downstream(config, data)}, data, out, "rankers")
