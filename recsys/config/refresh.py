"""How an upstream's vectors are refreshed: aggregated over the days, checked, published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from recsys.config.aggregation import AGGREGATIONS
from recsys.config.days import DaysConfig
from recsys.config.rules import NO_STUDY, ConfigError, require
from recsys.config.toml import Config
from recsys.config.upstream import UpstreamConfig

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a publish must pass to take the tag; a snapshot that does not stays, untagged. The defaults refuse what
    nobody should read: vectors that hardly any event could, and those that rank it the wrong way round."""

    min_coverage: float = 0.05
    """Least share of the day's events whose entity the previous snapshot had, of users and of items; a quiet day must
    miss it by more than its few events may by chance. 0: any."""
    min_auc: float = 0.5
    """ROC-AUC below which, by more than chance, the inner product of users and items must not rank the day's events for
    the contrastive label; 0: any. 0.5 is that of no knowledge. Asked of days with a hundred positives and negatives."""
    max_drift: float = 2.0
    """Greatest 1 - median cosine of the day's entities that the previous snapshot has too (an absent entity keeps its
    vector; its cosine of 1 would hide a jump)."""
    max_skew: float = 1.0
    """Greatest relative ROC-AUC loss when one side of the pair is a version behind; the worse of both directions."""
    max_ne: float = 2.0
    """Greatest normalized entropy (of values: deviance) of the day's events by the model of the day before, of any task
    with a hundred positives and negatives; 1 is that of the day's rate. 0: any."""

    def __post_init__(self) -> None:
        limits = {"min_coverage": 1.0, "min_auc": 1.0, "max_drift": 2.0, "max_skew": 1.0, "max_ne": 100.0}
        for name, most in limits.items():
            value = getattr(self, name)
            require(0 <= value <= most, f"{name} is {value}; use a number from 0 to {most:g}")


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Which versions a cycle lets go once it has published: those that all rules given here allow, never the newest nor
    a tagged one. Without a rule all stay. Rankers that join as of each event need the versions of all their days."""

    keep_last: int | None = None
    """So many of the newest stay; and in any case the one that a correction of the newest day would go on from."""
    keep_days: float | None = None
    """What was published less than so many days ago stays."""

    def __post_init__(self) -> None:
        if self.keep_last is not None:
            require(self.keep_last >= 1, f"keep_last is {self.keep_last}; use 1 or more")
        if self.keep_days is not None:
            require(self.keep_days >= 0, f"keep_days is {self.keep_days}; use 0 or more")

    @property
    def keeps_all(self) -> bool:
        """Whether there is no rule."""
        return self.keep_last is None and self.keep_days is None


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The items' prior, published as `item_<upstream>.prior`: the log of an item's share of the newest positives of the
    contrastive label. Retrieval adds it to the inner product (recsys/downstream/retrieval.py)."""

    hours: float = 72.0
    """How far back from its time positives count; 0: all of them."""

    def __post_init__(self) -> None:
        require(self.hours >= 0, f"hours is {self.hours}; use more than 0, or 0: all positives count")


@dataclass(frozen=True, kw_only=True)
class RefreshSettings:
    """One cycle: train on the new day, embed its entities, aggregate, publish, tag (arXiv 2509.04337)."""

    MOVED: ClassVar = {"epochs": "it is in [refresh.days] now"}

    days: DaysConfig | None = None
    """The days to go on with; without them the vectors are published once, as the upstream learned them."""
    aggregation: str = "ma"
    """`ma`: weight * previous + (1 - weight) * today's; `latest`: today's; `average`: the mean of all days' vectors.
    Entities that are absent today keep theirs in every case."""
    weight: float = 0.8
    """Of the previous vector in the moving average; the paper's best is 0.8."""
    time_to_live_days: int = 90
    """An entity without an event for this many days leaves the snapshots."""
    renormalise: bool = False
    """Bring aggregated vectors back to unit length. The paper does not say; averages of unit vectors are shorter, and
    the length tells how much an entity's days agree, so the default keeps it."""
    dtype: str = "float16"
    """How the series store vectors: float32, float16, bfloat16, int8, int4."""
    tag: str = "prod"
    """The tag of these series that a publish moves, if it passes the gates."""
    delta_below: float = 0.5
    """A snapshot is written as a delta of the one before where less than this share of its rows changed."""
    align: str = ""
    """What a cold retrain does with the old vectors: "" leaves them behind and embeds every entity anew; `procrustes`
    rotates them onto the new space, so that absent entities keep theirs and the moving average goes on."""
    cross: bool = False
    """Also publish `user_<upstream>_cross` and `item_<upstream>_cross`: of each entity the mean over its events of the
    interaction tower's last hidden layer (LFM4Ads, arXiv 2508.14948). It takes one more pass of the model over a
    cycle's events; the first publication, and a cold retrain, pass over all events there are."""
    cross_decay: float = 0.99
    """What an event weighs there beside the entity's next one."""
    gates: GateConfig = field(default_factory=GateConfig)
    """What a publish must pass to take the tag."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    """Which versions go."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """The items' prior."""
    study: bool = False
    """Publish the paper's other ways of aggregation too, as `user_<upstream>.latest`, `.ma_0.2`, ...: for a report."""

    def __post_init__(self) -> None:
        for name, known in (("aggregation", AGGREGATIONS), ("dtype", DTYPES), ("align", ("", "procrustes"))):
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; use one of {', '.join(map(repr, known))}")
        require(0 <= self.weight < 1, f"weight is {self.weight}; use 0 <= weight < 1")
        require(0 <= self.cross_decay < 1, f"cross_decay is {self.cross_decay}; use 0 <= cross_decay < 1")
        require(self.time_to_live_days > 0, f"time_to_live_days is {self.time_to_live_days}; use 1 or more")
        require(0 <= self.delta_below <= 1, f"delta_below is {self.delta_below}; use a share from 0 to 1")
        require(bool(self.tag), "tag is empty; name the tag that readers follow, say 'prod'")


def check_cross(cross: bool, upstream: UpstreamConfig) -> None:
    """Tell a ConfigError if cross representations are wanted of an upstream that has none."""
    require(
        not cross or upstream.kind == "derm",
        f"cross is true, but upstream {upstream.name!r} is of kind {upstream.kind!r}, which has no hidden layer "
        "of user and item together: set cross = false",
    )


@dataclass(frozen=True, kw_only=True)
class RefreshConfig(RefreshSettings, Config):
    """The refresh of one upstream, a job of its own: `recsys refresh --config refresh-ctr.toml`."""

    MOVED: ClassVar = {"epochs": "it is in [days] now", "upstreams": NO_STUDY}

    upstream: UpstreamConfig
    """Whose vectors: what it was trained as."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cross(self.cross, self.upstream)

    def day_by_day(self) -> DaysConfig:
        """The days. Raises ConfigError where there are none."""
        if self.days is None:
            raise ConfigError("days is missing: give the config a [days] section that says where days of events lie")
        return self.days
