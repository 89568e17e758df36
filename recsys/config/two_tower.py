"""A two-tower retrieval model: a downstream model that reads store vectors as features, and publishes vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys.config.ranker import ArmConfig, RankerConfig
from recsys.config.refresh import RefreshConfig
from recsys.config.rules import is_word, require
from recsys.config.toml import Config
from recsys.config.training import RankerTrainConfig
from recsys.config.upstream import LossConfig, ModelConfig, SourceConfig, UpstreamConfig
from recsys.dates import HOUR_MS


@dataclass(frozen=True, kw_only=True)
class TwoTowerSettings:
    """User tower and item tower of features and store vectors, taught by a sampled softmax over mixed negatives."""

    name: str = "two_tower"
    """It publishes the series `user_<name>` and `item_<name>`."""
    series: tuple[str, ...] = ()
    """Series that the towers read, each the tower of its owner: ["user_ctr", "item_ctr"]; empty: features alone."""
    features: tuple[str, ...] = ()
    """Features of users and items that the towers read; empty: all of the schema."""
    users: tuple[str, ...] = ()
    """Optional Parquet with one row a user as of the end of the training files, as an upstream's `source.users`: who is
    there has a vector with or without an event."""
    items: tuple[str, ...] = ()
    """The same for items; negatives are drawn from them too."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The towers, as those of an upstream."""
    temperature: float = 0.1
    """tau in softmax(u.v / tau - log Q(v)); retrieve with the same one."""
    uniform_negatives: int = 256
    """Items that every rank draws uniformly from all there are for every step, as candidates beside the items of the
    batches' positives (Yang et al. 2020); 0: none."""
    training: RankerTrainConfig = field(default_factory=RankerTrainConfig)
    """The training run; its rows are the positives."""

    def __post_init__(self) -> None:
        require(is_word(self.name), f"name is {self.name!r}; use letters, digits and _ (it is part of series' names)")
        require(len(set(self.series)) == len(self.series), f"series is {self.series}; give each once")
        own = [name for name in self.series if name in (f"user_{self.name}", f"item_{self.name}")]
        require(not own, f"series names {own}, which are what it publishes: choose another name")
        require(self.temperature > 0, f"temperature is {self.temperature}; use more than 0")
        require(self.uniform_negatives >= 0, f"uniform_negatives is {self.uniform_negatives}; use 0 or more")


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(TwoTowerSettings, Config):
    """A two-tower model, a job of its own: `recsys towers two_tower.toml`."""

    schema: str
    """Path of the schema TOML."""
    train: tuple[str, ...]
    """Glob patterns of the Parquet files to train on, in time order."""
    validation: tuple[str, ...]
    """Files whose positives choose the number of passes."""
    label: str
    """Label whose positives are learned from."""
    publish_delay_ms: int = 6 * HOUR_MS
    """A snapshot may be read by events later than its `as_of` plus this delay, as by those of rankers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "validation"):
            require(len(getattr(self, name)) > 0, f"{name} is empty; give at least one glob pattern")
        require(bool(self.label), "label is empty: name the label whose positives are to be retrieved")
        require(self.publish_delay_ms >= 0, f"publish_delay_ms is {self.publish_delay_ms}; use 0 or more")

    def upstream(self) -> UpstreamConfig:
        """As an upstream of another kind: what is shared with those is done by the same code."""
        return UpstreamConfig(
            name=self.name,
            source=SourceConfig(schema=self.schema, events=self.train, users=self.users, items=self.items),
            tasks=(self.label,),
            features=self.features,
            model=self.model,
            loss=LossConfig(temperature=self.temperature, uniform_negatives=self.uniform_negatives),
            training=self.training,
        )

    def refresh(self) -> RefreshConfig:
        """How it is published: once, as it was learned."""
        return RefreshConfig(upstream=self.upstream())

    def population(self) -> RankerConfig:
        """The rankers that would read the same rows and series, by which these are checked."""
        return RankerConfig(
            name=self.name,
            schema=self.schema,
            train=self.train,
            validation=self.validation,
            test=self.validation,
            tasks={self.name: self.label},
            features=self.features,
            publish_delay_ms=self.publish_delay_ms,
            training=self.training,
            arms=(ArmConfig(name=self.name, series=self.series),),
        )
