"""Downstream models: rankers and retrieval, which read the store's vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys.config.rules import SEEDS, is_word, require
from recsys.config.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The DLRM-style downstream ranker."""

    embedding_dim: int = 16
    """Width of the ranker's own tables."""
    projection_dim: int = 32
    """Width every series' vector is projected to before the dot interactions."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the top MLP."""
    dropout: float = 0.1
    """Dropout in the top MLP."""
    entity_dropout: float = 0.0
    """Probability with which a training row loses one series' vector, as if the entity were new."""

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "projection_dim"):
            require(getattr(self, name) > 0, f"ranker.{name} is {getattr(self, name)}; use 1 or more")
        require(
            self.embedding_dim % 4 == 0, f"ranker.embedding_dim is {self.embedding_dim}; tables need a multiple of 4"
        )
        require(all(width > 0 for width in self.hidden), f"ranker.hidden is {self.hidden}; use widths of 1 or more")
        for name in ("dropout", "entity_dropout"):
            require(0 <= getattr(self, name) < 1, f"ranker.{name} is {getattr(self, name)}; use 0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig:
    """The ranking tasks on one population of events, each with and without the store's vectors."""

    schema: str
    """Path of the schema TOML."""
    train: tuple[str, ...]
    """Glob patterns of the Parquet files to train on."""
    validation: tuple[str, ...]
    """Files that choose the number of epochs."""
    test: tuple[str, ...]
    """Files the result is measured on, once."""
    tasks: dict[str, str]
    """Task name -> label: {ctr = "is_click", cvr = "long_view"}."""
    features: tuple[str, ...] = ()
    """Features the ranker reads; empty: all features of the schema."""
    publish_delay_ms: int = 0
    """A snapshot may be read by events later than its `as_of` plus this delay."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained once a seed; figures are means, intervals cover the seeds' mean prediction."""
    ranker: RankerConfig = field(default_factory=RankerConfig)
    """The network."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """The training runs; `epochs` is the greatest number, the validation files choose the best."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            require(len(getattr(self, name)) > 0, f"downstream.{name} is empty; give at least one glob pattern")
        require(len(self.tasks) > 0, 'downstream.tasks is empty; name at least one, say {ctr = "is_click"}')
        for task in self.tasks:
            require(is_word(task), f"downstream.tasks names {task!r}; use letters, digits and _ (it names a folder)")
        require(len(self.seeds) > 0, "downstream.seeds is empty; give at least one")
        distinct = len(set(self.seeds)) == len(self.seeds) and all(0 <= seed < SEEDS for seed in self.seeds)
        require(distinct, f"downstream.seeds is {self.seeds}; use different ones, 0 <= seed < 2^32")
        require(self.publish_delay_ms >= 0, f"downstream.publish_delay_ms is {self.publish_delay_ms}; use 0 or more")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Exact top-k by inner product of one upstream's user and item vectors."""

    upstream: str = "ctr"
    """Whose vectors."""
    label: str = ""
    """Label whose positives in the test files are to be found; empty: the first downstream task's."""
    k: tuple[int, ...] = (10, 50)
    """Cut-offs of recall."""

    def __post_init__(self) -> None:
        require(len(self.k) > 0 and min(self.k) > 0, f"retrieval.k is {self.k}; give cut-offs of 1 or more")
