"""How an upstream's vectors are refreshed: aggregated over the days, checked, published."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys.config.aggregation import AGGREGATIONS
from recsys.config.rules import require

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a publish must pass to take the tag; a snapshot that does not stays, untagged. The defaults let all pass."""

    min_coverage: float = 0.0
    """Least share of the day's events whose entity the previous snapshot had, of users and of items."""
    max_drift: float = 2.0
    """Greatest 1 - median cosine of the day's entities that the previous snapshot has too (an absent entity keeps its
    vector; its cosine of 1 would hide a jump)."""
    max_skew: float = 1.0
    """Greatest relative ROC-AUC loss when one side of the pair is a version behind; the worse of both directions."""

    def __post_init__(self) -> None:
        for name, most in (("min_coverage", 1.0), ("max_drift", 2.0), ("max_skew", 1.0)):
            value = getattr(self, name)
            require(0 <= value <= most, f"refresh.gates.{name} is {value}; use a number from 0 to {most:g}")


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """One cycle: train on the new day, embed its entities, aggregate, publish, tag (papers.md section 1)."""

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
    """The tag of both series that a publish moves, if it passes the gates."""
    delta_below: float = 0.5
    """A snapshot is written as a delta of the one before where less than this share of its rows changed."""
    epochs: int = 1
    """Passes over a new day."""
    align: str = ""
    """What a cold retrain does with the old vectors: "" leaves them behind and embeds every entity anew; `procrustes`
    rotates them onto the new space, so that absent entities keep theirs and the moving average goes on."""
    gates: GateConfig = field(default_factory=GateConfig)
    """What a publish must pass to take the tag."""

    def __post_init__(self) -> None:
        for name, known in (("aggregation", AGGREGATIONS), ("dtype", DTYPES), ("align", ("", "procrustes"))):
            value = getattr(self, name)
            require(value in known, f"refresh.{name} is {value!r}; use one of {', '.join(map(repr, known))}")
        require(0 <= self.weight < 1, f"refresh.weight is {self.weight}; use 0 <= weight < 1")
        for name in ("time_to_live_days", "epochs"):
            require(getattr(self, name) > 0, f"refresh.{name} is {getattr(self, name)}; use 1 or more")
        require(0 <= self.delta_below <= 1, f"refresh.delta_below is {self.delta_below}; use a share from 0 to 1")
        require(bool(self.tag), "refresh.tag is empty; name the tag that readers follow, say 'prod'")
