"""Upstream models: what they learn from, the network, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from recsys.config.aggregation import CROSS
from recsys.config.contrastive import ContrastiveConfig
from recsys.config.graph import GraphConfig
from recsys.config.rules import NO_STUDY, check_layers, check_value_loss, is_word, require
from recsys.config.toml import Config
from recsys.config.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where one log of events lies and how to read it."""

    schema: str
    """Path of the schema TOML."""
    events: tuple[str, ...]
    """Glob patterns of the Parquet files, in time order: `market/events/day=0[0-6]/*.parquet`."""
    users: tuple[str, ...] = ()
    """Optional Parquet with one row a user as of the end of the log: user features, the user id, and `timestamp` if the
    events have it. Without it the refresh takes each user's last event."""
    items: tuple[str, ...] = ()
    """The same for items."""

    def __post_init__(self) -> None:
        require(bool(self.schema), "schema is empty: give the path of a schema TOML")
        require(len(self.events) > 0, "events is empty: give at least one glob pattern of Parquet files")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """DERM: three towers with DHEN backbones (arXiv 2509.04337; sizes are our choice, the paper names none)."""

    token_dim: int = 16
    """Width d of every token and of every embedding table."""
    layers: tuple[tuple[str, ...], ...] = (("masknet", "mlp"), ("transformer", "mlp"))
    """Interaction modules of each DHEN layer, side by side: masknet, dcnv2, transformer, mlp."""
    tokens: int = 8
    """Tokens m that every DHEN layer puts out."""
    heads: int = 2
    """Attention heads of every Transformer; divides `token_dim`."""
    sequence_layers: int = 1
    """Transformer layers over each sequence feature."""
    out_tokens: int = 4
    """Tokens of the entity vector; flattened and L2-normalised."""
    out_dim: int = 16
    """Width of each of them: the vector has out_tokens * out_dim dimensions."""
    dropout: float = 0.0
    """Dropout inside the interaction modules."""
    id_dropout: float = 0.1
    """Share of the training rows whose user, and of those whose item, is read without its own id, as a new one is: what
    a new one's vector is made of is learned from them (PinFM's share)."""

    def __post_init__(self) -> None:
        for name in ("token_dim", "tokens", "heads", "out_tokens", "out_dim"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use 1 or more")
        require(self.sequence_layers >= 0, f"sequence_layers is {self.sequence_layers}; use 0 or more")
        require(
            self.token_dim % self.heads == 0,
            f"heads is {self.heads}; it must divide token_dim = {self.token_dim}",
        )
        require(self.token_dim % 4 == 0, f"token_dim is {self.token_dim}; tables need a multiple of 4")
        check_layers(self.layers)
        for name in ("dropout", "id_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; use 0 <= {name} < 1")

    @property
    def vector_dim(self) -> int:
        """D, the dimension of user and item vectors."""
        return self.out_tokens * self.out_dim

    @property
    def cross_dim(self) -> int:
        """H, the dimension of cross representations."""
        return self.tokens * self.token_dim


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Supervised multi-task loss + contrastive loss between user and item vectors (arXiv 2509.04337)."""

    contrastive_label: str = ""
    """Label whose positives are contrasted; empty: the first task."""
    positives: dict[str, float] = field(default_factory=dict)
    """Labels whose rows are contrasted, and what such a row weighs (one of several labels: their sum); empty: those of
    `contrastive_label`, with weight 1. Retrieval, its prior and the gates are of `contrastive_label` all the same."""
    contrastive_weight: float = 0.1
    """Factor of the contrastive term; our choice, the paper reports a plain sum (1.0). 0 turns it off."""
    temperature: float = 0.1
    """tau in softmax(u.p / tau - log Q(p)); our choice, the paper names none."""
    log_q: bool = True
    """Whether the softmax is corrected by log Q. Without, it takes popular items, which are in most batches, for less
    wanted than they are, and the prior must not be added to what it learns; to see what the correction is worth."""
    value_loss: str = "poisson"
    """By what labels that are values are learned: `poisson`, or `weighted`, a logistic regression whose positives weigh
    their value. Both make the prediction the expected value; `weighted` takes great values less to heart."""
    uniform_negatives: int = 0
    """Items that every rank draws uniformly from all of the source's (a day's) for every step, as candidates beside the
    items of the batches' positives (Yang et al. 2020), less those that were withdrawn before; 0: none."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature is {self.temperature}; use more than 0")
        require(self.contrastive_weight >= 0, f"contrastive_weight is {self.contrastive_weight}; use 0 or more")
        check_value_loss(self.value_loss)
        for label, weight in self.positives.items():
            require(weight > 0, f"positives.{label} is {weight}; use more than 0, or leave the label out")
        require(self.uniform_negatives >= 0, f"uniform_negatives is {self.uniform_negatives}; use 0 or more")

    def contrasted(self, tasks: Sequence[str]) -> dict[str, float]:
        """The labels whose rows are contrasted, and their weights; these are all of the upstream's."""
        return dict(self.positives) or {self.contrastive_label or tasks[0]: 1.0}


KINDS = {"derm": "model", "contrastive": "contrastive", "graph": "graph"}
"""What an upstream may be, and the key that has the settings of its network."""


@dataclass(frozen=True, kw_only=True)
class UpstreamConfig(Config):
    """One upstream model, a job of its own: `recsys upstream --config ctr.toml`.

    Its refresh publishes the series `user_<name>` and `item_<name>`, and `user_<name>_cross` and `item_<name>_cross`
    where `refresh.cross` says so.
    """

    MOVED: ClassVar = {
        "refresh": "its keys are in [refresh] of the study now, for all upstreams, and `epochs` in [refresh.days]",
        "upstreams": NO_STUDY,
    }

    name: str
    """Name of the upstream, say `ctr`."""
    kind: str = "derm"
    """`derm`: towers over all features, [model] has their sizes. `contrastive`: tables of ids alone, [contrastive].
    `graph`: entities that relations join, [graph]."""
    source: SourceConfig
    """The events it learns from. They must end before the first event a downstream trains on."""
    tasks: tuple[str, ...] = ()
    """Labels it predicts; empty: all labels of the schema."""
    features: tuple[str, ...] = ()
    """Features it reads; empty: all features of the schema, of kind `contrastive` the own ids of users and items. A
    graph reads the columns of its relations."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network of kind `derm`."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """The tables of kind `contrastive`."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    """The relations of kind `graph`."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """The training run."""
    held_out: float = 0.05
    """Share of the source's events, at most 100,000, that none of `training.epochs` passes trains on: after each pass
    their normalized entropy, mean over tasks, says whether it was the last. All train, and every pass is made, where
    this is 0, where there is but one pass, and where a twentieth of the events would tell too little."""

    def __post_init__(self) -> None:
        require(
            is_word(self.name),
            f"name is {self.name!r}; use up to 100 of a-z, A-Z, 0-9 and _ (it becomes part of series' names)",
        )
        require(
            not self.name.endswith(CROSS),
            f"name is {self.name!r}; let it end otherwise: user_ctr{CROSS} is a series of upstream ctr (refresh.cross)",
        )
        require(0 <= self.held_out <= 0.5, f"held_out is {self.held_out}; use a share from 0 to 0.5")
        require(len(set(self.tasks)) == len(self.tasks), f"tasks is {self.tasks}; name each label once")
        require(self.kind in KINDS, f"kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        for kind, key in KINDS.items():
            given = getattr(self, key)
            require(
                self.kind == kind or given == type(given)(),
                f"{key} has settings of an upstream of kind {kind!r}, but kind is {self.kind!r}: leave them out",
            )
        require(
            self.kind != "contrastive" or self.loss.contrastive_weight > 0,
            "loss.contrastive_weight is 0, but nothing else teaches an upstream of kind 'contrastive': use more than 0",
        )

        if self.kind == "graph":
            self._check_graph()

    def _check_graph(self) -> None:
        for owner in ("user", "item"):
            require(
                owner in self.graph.node_types,
                f"graph.relations have the node types {list(self.graph.node_types)}, and no {owner!r}: name the type "
                f"of {owner}s so, whose vectors are published",
            )
        require(not self.features, f"features is {self.features}; a graph reads columns of relations, leave it out")

    @property
    def network(self) -> ModelConfig | ContrastiveConfig | GraphConfig:
        """The settings of its kind: all have `vector_dim`, D of user and item vectors."""
        return getattr(self, KINDS[self.kind])
