"""A study: upstreams, their refresh and the rankers that read what they publish, from events to a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from recsys.config.aggregation import CROSS
from recsys.config.days import DaysConfig, check_day
from recsys.config.ranker import ArmConfig, RankerSettings, RetrievalConfig
from recsys.config.refresh import RefreshConfig, RefreshSettings, check_cross
from recsys.config.rules import ConfigError, check_seeds, require
from recsys.config.toml import Config
from recsys.config.two_tower import TwoTowerConfig, TwoTowerSettings
from recsys.config.upstream import UpstreamConfig
from recsys.mistakes import meant


@dataclass(frozen=True, kw_only=True)
class SpansConfig:
    """The days that the rankers of a study day by day are trained and tested on."""

    train: tuple[str, ...]
    """First and last day that they train on."""
    validation: tuple[str, ...]
    """First and last day that choose the number of epochs."""
    test: tuple[str, ...]
    """First and last day that the result is measured on, once."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            span = getattr(self, name)
            require(len(span) == 2, f"{name} is {list(span)}; give its first and its last day")
            for day in span:
                check_day(day, name, 1 if "T" in day else 24)  # how long days are, `refresh.days` says
            require(span[0] <= span[1], f"{name} begins on {span[0]}, after its end {span[1]}: swap them")
        ordered = self.train[1] < self.validation[0] and self.validation[1] < self.test[0]
        require(
            ordered,
            f"train is {list(self.train)}, validation {list(self.validation)}, test {list(self.test)}: they must "
            "follow one another without a common day",
        )


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Config):
    """What `recsys run` and `recsys daily` go through, job by job; each job is started with a config of its own."""

    MOVED: ClassVar = {
        "downstream": "it is [rankers] now, and [downstream.ranker] is [rankers.network]",
        "daily": "events, utc_offset_hours, first and last are in [refresh.days] now; train, validation and test in "
        "[spans]; publish_delay_ms in [rankers]; study in [refresh]",
    }

    name: str
    """Shown in the report."""
    note: str = ""
    """What a reader of the report must know about the data: synthetic or real, how rows were split."""
    upstreams: tuple[UpstreamConfig, ...]
    """In the order in which the ablation adds them."""
    upstream_seeds: tuple[int, ...] = ()
    """Every upstream is trained and published once with each of these seeds, and the rankers of their first seed, the
    second, ... read the vectors of the first of these, the second, ...; after the last it begins again. The intervals
    then cover the trainings of the upstreams too, best with as many seeds here as the rankers have. The first training
    keeps the upstream's name, the others add their seed to it: `ctr`, `ctr_s1`. Empty: every upstream is trained once,
    with the seed of its `training`."""
    refresh: RefreshSettings = field(default_factory=RefreshSettings)
    """How each of them is refreshed."""
    rankers: RankerSettings
    """The rankers."""
    arms: tuple[ArmConfig, ...] = ()
    """What the rankers of `recsys run` read, arm by arm; one without vectors comes first in any case. Empty: the first
    upstream's users, then users and items of every upstream alone, and of all up to it."""
    fragment: RankerSettings | None = None
    """The same rankers on one surface alone, if there are several."""
    retrieval: RetrievalConfig | None = None
    """Retrieval figures, if wanted."""
    two_tower: TwoTowerSettings | None = None
    """A two-tower model of the rankers' training files, as one more row of them, if wanted."""
    spans: SpansConfig | None = None
    """The rankers' days, for `recsys daily`."""
    store: str = ""
    """Where the run keeps its embedding store: the whole path of a folder, or a URL, s3://bucket/prefix say, which no
    other run has; empty: OUT/store."""
    ranks: int = 2
    """Processes of a job: GPUs, or gloo ranks on a CPU."""

    def __post_init__(self) -> None:
        require(len(self.upstreams) > 0, "upstreams is empty; give at least one")
        self._check_upstream_seeds()
        names = [upstream.name for upstream in self.trainings()]
        require(len(set(names)) == len(names), f"upstreams are named {names}; make the names different")
        for upstream in self.upstreams:
            check_cross(self.refresh.cross, upstream)
        self._check_anchors()
        self._check_arms(names)
        whole = not self.store or "://" in self.store or self.store.startswith("/")
        require(whole, f"store is {self.store!r}; give a whole path, /mnt/runs/store say, or a URL, s3://bucket/prefix")
        require(self.ranks > 0, f"ranks is {self.ranks}; use 1 or more")
        if self.retrieval is not None:
            require(
                self.retrieval.upstream in names,
                f"retrieval.upstream is {self.retrieval.upstream!r}; use one of {', '.join(names)}",
            )
        if self.spans is not None:
            self._check_spans(self.spans)
        if self.two_tower is not None:
            require(self.retrieval is not None, "retrieval is missing: it is what a two_tower is measured by")
            require(
                self.two_tower.name not in names,
                f"two_tower.name is {self.two_tower.name!r}, as an upstream is called: choose another name",
            )

    def _check_anchors(self) -> None:
        """Series that a graph is anchored to are published by the upstreams in front of it."""
        later = dict[str, str]()
        for upstream in reversed(self.upstreams):
            later |= {f"{owner}_{upstream.name}": upstream.name for owner in ("user", "item")}
            for name, series in upstream.graph.anchors.items():
                by = later.get(series, "")
                require(
                    not by,
                    f"upstreams.{upstream.name}.graph.anchors.{name} names {series!r}, which upstream {by!r} publishes "
                    f"{'itself' if by == upstream.name else 'later'}: name series of one in front of it",
                )

    def _check_arms(self, upstreams: Sequence[str]) -> None:
        arms = [arm.name for arm in self.arms]
        require(len(set(arms)) == len(arms), f"arms are named {arms}; make the names different")
        known = [f"{owner}_{name}" for name in upstreams for owner in ("user", "item")]
        for arm in self.arms:
            for series in arm.series:
                plain = series.removesuffix(CROSS) if self.refresh.cross else series
                require(
                    plain in known,
                    f"arms.{arm.name}.series names {series!r}, which no upstream publishes{meant(series, known)}; use "
                    f"some of {', '.join(known)}",
                )

    def _check_upstream_seeds(self) -> None:
        check_seeds(self.upstream_seeds, "upstream_seeds")
        for name, rankers in (("rankers", self.rankers), ("fragment", self.fragment)):
            require(
                rankers is None or len(self.upstream_seeds) <= len(rankers.seeds),
                f"upstream_seeds is {self.upstream_seeds}: {name}.seeds are fewer, and nobody would read the last of "
                f"them; give {name} as many seeds, or leave some out here",
            )

    def _check_spans(self, spans: SpansConfig) -> None:
        days = self.refresh.days
        if days is None or not days.last:
            raise ConfigError("refresh.days.last is missing: spans are of days that the upstreams are refreshed on")
        for name in ("train", "validation", "test"):
            span = getattr(spans, name)
            require(
                days.has(span[0]) and days.has(span[1]),
                f"spans.{name} is {span[0]} to {span[1]}; choose days from refresh.days.first = {days.first} to "
                f"refresh.days.last = {days.last}",
            )
        require(
            self.refresh.retention.keeps_all,
            "refresh.retention lets versions go that the rankers of spans read: leave it out of a study",
        )

    def daily(self) -> tuple[DaysConfig, SpansConfig]:
        """The days, and the rankers' among them. Raises ConfigError where there are none, or with `upstream_seeds`."""
        if self.upstream_seeds:
            raise ConfigError(
                f"upstream_seeds is {self.upstream_seeds}: day by day every upstream is trained and refreshed once; "
                "leave it out, or use `recsys run`"
            )
        if self.two_tower is not None:
            raise ConfigError(
                f"two_tower is given, named {self.two_tower.name!r}: it is trained once; leave it out of what goes on "
                "day by day, or use `recsys run`"
            )
        if self.arms:
            raise ConfigError(
                f"arms are {', '.join(arm.name for arm in self.arms)}: day by day the ways of refreshing are compared; "
                "leave them out, or use `recsys run`"
            )
        if self.refresh.days is None or self.spans is None:
            raise ConfigError(
                "refresh.days or spans is missing: say in [refresh.days] where days of events lie, and in [spans] "
                "which of them the rankers are trained and tested on"
            )
        return self.refresh.days, self.spans

    def seed_suffixes(self) -> tuple[str, ...]:
        """What each seed's training adds to the names of an upstream and of its series; the first one nothing."""
        return ("", *(f"_s{seed}" for seed in self.upstream_seeds[1:]))

    def trainings(self) -> tuple[UpstreamConfig, ...]:
        """Every upstream once a seed, as it is trained and named; those of the first seed first."""
        if not self.upstream_seeds:
            return self.upstreams
        return tuple(
            replace(upstream, name=upstream.name + suffix, training=replace(upstream.training, seed=seed))
            for seed, suffix in zip(self.upstream_seeds, self.seed_suffixes(), strict=True)
            for upstream in self.upstreams
        )

    def without_test(self) -> StudyConfig:
        """The same, measured on the validation files: no test file is named by it, and none of its jobs opens one."""
        rankers = replace(self.rankers, test=self.rankers.validation)
        return replace(self, rankers=rankers, fragment=None, retrieval=None, two_tower=None)

    def two_tower_job(self) -> TwoTowerConfig | None:
        """The two-tower model as a job of its own, of the rankers' rows; None where none is wanted."""
        if self.two_tower is None or self.retrieval is None:
            return None
        settings = {entry.name: getattr(self.two_tower, entry.name) for entry in fields(self.two_tower)}
        return TwoTowerConfig(
            schema=self.rankers.schema,
            train=self.rankers.train,
            validation=self.rankers.validation,
            label=self.retrieval.label or next(iter(self.rankers.tasks.values())),
            publish_delay_ms=self.rankers.publish_delay_ms,
            **settings,
        )

    def refresh_of(self, upstream: UpstreamConfig) -> RefreshConfig:
        """The refresh of one of the upstreams, as a job of its own."""
        settings = {entry.name: getattr(self.refresh, entry.name) for entry in fields(self.refresh)}
        return RefreshConfig(upstream=upstream, **settings)
