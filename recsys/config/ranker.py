"""Downstream models: rankers and retrieval, which read the store's vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from recsys.config.aggregation import CROSS
from recsys.config.rules import NO_STUDY, ConfigError, check_layers, check_seeds, check_value_loss, is_word, require
from recsys.config.toml import Config
from recsys.config.training import RankerTrainConfig
from recsys.dates import HOUR_MS
from recsys.mistakes import meant

RANKERS = ("dlrm", "dcnv2", "dhen")
"""What `network.kind` may be."""
JOINS = ("each", "raw", "together")
"""What `network.join` may be."""
POOLINGS = ("mean", "attention")
"""What an arm's `history_pooling` may be."""
TABLES = ("fine_tuned", "scratch", "attention")
"""What an arm's `tables` may make of a series."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network of a ranker."""

    kind: str = "dlrm"
    """`dlrm`; `dcnv2`, the paper's CTR ranker: crosses, experts that the tasks share, a Transformer over each sequence;
    `dhen`, its CVR ranker: layers of interaction modules, and the Transformer too."""
    embedding_dim: int = 16
    """Width of the ranker's own tables, and of its tokens."""
    projection_dim: int = 32
    """Width every series' vector is projected to before the dot interactions."""
    join: str = "each"
    """What of the vectors joins at the concatenation layer: `each`, every series' projection to `projection_dim`;
    `raw`, the vectors as they are; `together`, one projection of all of them side by side (arXiv 2509.04337)."""
    join_dim: int = 512
    """Width of that one projection, of `together`. It spares work below V h / (V + h), of V values side by side and
    h = `hidden[0]`: the vectors meet that layer alone."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the top MLP of each task; of a `dcnv2` the first is what its experts take, the others are theirs."""
    cross_layers: int = 2
    """Of a `dcnv2`."""
    experts: int = 4
    """Of a `dcnv2`."""
    layers: tuple[tuple[str, ...], ...] = (("masknet", "mlp"), ("transformer", "mlp"))
    """Interaction modules of each layer of a `dhen`, side by side: masknet, dcnv2, transformer, mlp."""
    tokens: int = 8
    """Tokens that each of these layers puts out."""
    heads: int = 2
    """Attention heads of every Transformer; divides `embedding_dim`."""
    sequence_layers: int = 1
    """Transformer layers over each sequence, of a `dcnv2` or `dhen`; a `dlrm` takes the mean of a sequence."""
    dropout: float = 0.1
    """Dropout in the top MLP, and in the interaction modules."""
    vector_dropout: float = 0.3
    """Dropout of what the ranker makes of the vectors, in front of the layer that starts at zero."""
    entity_dropout: float = 0.0
    """Probability with which a training row loses one series' vector, as if the entity were new."""
    table_rate: float = 0.1
    """Of an arm's `fine_tuned` tables: share of the tables' learning rate with which they go on learning (PinFM)."""
    frequency_adaptive: bool = False
    """Whether a row of an arm's `tables` learns at log(F + 1) / max log(F + 1) times its rate, F being how many
    training rows its id has (FAL, arXiv 2505.05605)."""
    id_dropout: float = 0.1
    """Share of the training rows whose user, and of those whose item, is read without its own id, as a new one is."""

    def __post_init__(self) -> None:
        kinds = f"{meant(self.kind, RANKERS)}; use one of {', '.join(RANKERS)}"
        require(self.kind in RANKERS, f"kind is {self.kind!r}{kinds}")
        joins = f"{meant(self.join, JOINS)}; use one of {', '.join(JOINS)}"
        require(self.join in JOINS, f"join is {self.join!r}{joins}")
        for name in ("embedding_dim", "projection_dim", "join_dim", "cross_layers", "experts", "tokens", "heads"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use 1 or more")
        require(self.sequence_layers >= 0, f"sequence_layers is {self.sequence_layers}; use 0 or more")
        require(self.embedding_dim % 4 == 0, f"embedding_dim is {self.embedding_dim}; tables need a multiple of 4")
        if self.heads > 0:
            divides = self.embedding_dim % self.heads == 0
            require(divides, f"heads is {self.heads}; it must divide embedding_dim = {self.embedding_dim}")
        require(all(width > 0 for width in self.hidden), f"hidden is {self.hidden}; use widths of 1 or more")
        enough = self.kind != "dcnv2" or len(self.hidden) > 1
        require(enough, f"hidden is {self.hidden}; a dcnv2 needs two widths or more: the last ones are its experts'")
        check_layers(self.layers)
        require(0 < self.table_rate <= 1, f"table_rate is {self.table_rate}; use a share above 0, up to 1")
        for name in ("dropout", "vector_dropout", "entity_dropout", "id_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; use 0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class RankerSettings:
    """Rankers of some tasks on one population of events."""

    MOVED: ClassVar = {"ranker": "it is `network` now"}

    schema: str
    """Path of the schema TOML."""
    train: tuple[str, ...]
    """Glob patterns of the Parquet files to train on."""
    validation: tuple[str, ...]
    """Files that choose the number of epochs, and whether an arm reads its vectors."""
    test: tuple[str, ...]
    """Files the result is measured on, once."""
    tasks: dict[str, str]
    """Task name -> label: {ctr = "is_click", cvr = "long_view"}."""
    features: tuple[str, ...] = ()
    """Features the ranker reads; empty: all features of the schema."""
    entire_space: bool = False
    """Where one model learns several tasks: a label that exists only where another task's is 1 is learned from all of
    that one's rows, as the product of both (ESMM), and not from the few for which it exists."""
    value_loss: str = "poisson"
    """By what labels that are values are learned: `poisson`, or `weighted`, a logistic regression whose positives weigh
    their value. Both make the prediction the expected value; `weighted` takes great values less to heart."""
    publish_delay_ms: int = 6 * HOUR_MS
    """A snapshot may be read by events later than its `as_of` plus this delay: what a cycle needs to publish a day that
    has ended. 0 where nothing is published by days; it must be 0 where the schema has no event times."""
    spread_vectors: bool = False
    """Whether the ranks that train a ranker hold the store's vectors spread over them, each its part of every version
    that some row may read, and exchange what they look up. Else each maps the whole files, which is faster where these
    are on its disk and in its memory."""
    gpu_bytes: int = 0
    """Bytes of a GPU's memory for versions of the store's vectors, which rows are joined with there. Versions that do
    not fit beside each other come and go, and are read anew each time. 0: an eighth of its memory, where all versions
    fit into that; else they stay in the host's. Tables get what is left."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained once a seed; figures are means, intervals cover the seeds' mean prediction."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    training: RankerTrainConfig = field(default_factory=RankerTrainConfig)
    """The training runs."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            require(len(getattr(self, name)) > 0, f"{name} is empty; give at least one glob pattern")
        require(len(self.tasks) > 0, 'tasks is empty; name at least one, say {ctr = "is_click"}')
        for task in self.tasks:
            require(is_word(task), f"tasks names {task!r}; use letters, digits and _ (it names a folder)")
        require(len(self.seeds) > 0, "seeds is empty; give at least one")
        check_seeds(self.seeds, "seeds")
        check_value_loss(self.value_loss)
        require(self.publish_delay_ms >= 0, f"publish_delay_ms is {self.publish_delay_ms}; use 0 or more")
        require(
            self.gpu_bytes >= 0, f"gpu_bytes is {self.gpu_bytes}; use bytes, or 0 to leave it to the versions' size"
        )
        either = not (self.gpu_bytes and self.spread_vectors)
        require(
            either, f"gpu_bytes is {self.gpu_bytes}: with spread_vectors no GPU holds versions; leave one of them out"
        )


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """What the rankers of one arm read; the arms of a job differ in nothing else."""

    name: str
    """Shown in the report, and part of the predictions' file name."""
    series: tuple[str, ...] = ()
    """Series of the store, say ["user_ctr", "item_ctr"]; empty: no vectors."""
    once: bool = False
    """Read the series' first snapshots alone: what the vectors are worth if nobody refreshes them."""
    history: int = 0
    """Also read, of each series, an entity's vectors in so many of its newest versions, pooled to one (LoopFM,
    arXiv 2605.29280); 0: the newest version alone."""
    history_pooling: str = "mean"
    """How: their `mean`, or by `attention`, a weighted mean whose weights depend on the row, the vectors and their
    ages."""
    tables: dict[str, str] = field(default_factory=dict)
    """Series -> what the ranker makes of it where it does not leave the vectors as they are: a table that is
    `fine_tuned`, beginning with the store's vectors; the same with `attention` of the candidate to what the relations
    of the graph make of them (TransRA, arXiv 2508.02609); or one from `scratch`, of as many rows and columns, to see
    what the vectors are worth beyond its size. Rows are those of the entity's own id, which must be one of the
    features."""

    def __post_init__(self) -> None:
        for name, table in self.tables.items():
            place = f"tables.{name} is {table!r}"
            require(name in self.series, f"{place}, but series are {list(self.series)}{meant(name, self.series)}")
            require(table in TABLES, f"{place}{meant(table, TABLES)}; use one of {', '.join(TABLES)}")
        plain = is_word(self.name.replace(".", "_"))
        require(plain, f"name is {self.name!r}; use letters, digits, _ and . (it names a file)")
        require(0 <= self.history <= 64, f"history is {self.history}; use 0 to 64 versions")
        require(not (self.history and self.once), "history and once exclude each other: once reads one version")
        poolings = f"{meant(self.history_pooling, POOLINGS)}; use one of {', '.join(POOLINGS)}"
        require(self.history_pooling in POOLINGS, f"history_pooling is {self.history_pooling!r}{poolings}")
        pools = self.history > 0 or self.history_pooling == "mean"
        require(pools, "history_pooling is 'attention', but history is 0: say how many versions, history = 8 say")
        bare = self.name != "none" or not self.series
        require(bare, f"name is 'none', but series are {self.series}: what reads no vectors is called so, rename it")

    def learned(self) -> tuple[str, ...]:
        """Of each series what `tables` says, "" where it stays as it is; empty where all do."""
        return tuple(self.tables.get(name, "") for name in self.series) if self.tables else ()


@dataclass(frozen=True, kw_only=True)
class RankerConfig(RankerSettings, Config):
    """Rankers as a job of their own: `recsys downstream --config rankers.toml`."""

    MOVED: ClassVar = RankerSettings.MOVED | {"upstreams": NO_STUDY}

    name: str
    """Of the job; its predictions go to `OUT/downstream/<name>`."""
    arms: tuple[ArmConfig, ...]
    """Every task is learned once an arm and seed."""
    seed_suffixes: tuple[str, ...] = ("",)
    """What the rankers of the first seed, the second, ... add to the names of their arm's series; after the last it
    begins again. ["", "_s1"]: every other one reads `user_ctr_s1`, the vectors of another training of the upstream."""
    max_ne: float = 2.0
    """Greatest normalized entropy of new rows by the ranker that `recsys bundle --start` goes on from, of any task with
    a hundred positives and negatives; 1 is that of the rows' own rate. 0: any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_word(self.name), f"name is {self.name!r}; use letters, digits and _ (it names a folder)")
        for arm in self.arms:
            whole = not (self.spread_vectors and arm.history)
            require(
                whole, f"arms.{arm.name}.history is {arm.history}: with spread_vectors rankers read one version only"
            )
        names = [arm.name for arm in self.arms]
        require(len(names) > 0, 'arms is empty; give one at least: arms = [{ name = "ctr", series = ["user_ctr"] }]')
        require(len(set(names)) == len(names), f"arms are named {names}; make the names different")
        require(len(self.seed_suffixes) > 0, 'seed_suffixes is empty; give [""], or leave it out')
        require(0 <= self.max_ne <= 100, f"max_ne is {self.max_ne}; use a number from 0 to 100")

    def arm(self, name: str) -> ArmConfig:
        """The arm of this name. Raises ConfigError listing those there are."""
        known = {arm.name: arm for arm in self.arms}
        if name not in known:
            raise ConfigError(f"arm {name!r} is not in the config{meant(name, known)}; it has: {', '.join(known)}")
        return known[name]

    def series(self, arm: ArmConfig, seed: int) -> tuple[str, ...]:
        """What the rankers of this arm and this one of `seeds` read."""
        suffix = self.seed_suffixes[self.seeds.index(seed) % len(self.seed_suffixes)]
        parts = [(name.removesuffix(CROSS), name) for name in arm.series]
        return tuple(f"{upstream}{suffix}{name.removeprefix(upstream)}" for upstream, name in parts)


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Exact top-k by `u.v / temperature + weight * prior` of one upstream's vectors and the items' newest shares."""

    upstream: str = "ctr"
    """Whose vectors."""
    label: str = ""
    """Label whose positives in the test files are to be found; empty: the first ranking task's."""
    k: tuple[int, ...] = (10, 50)
    """Cut-offs of recall."""
    leave_out_seen: bool = False
    """Leave out what a user was shown before, from what is retrieved and from what is to be found: where the same item
    is not offered twice. In the feeds that we know items return."""

    def __post_init__(self) -> None:
        require(len(self.k) > 0 and min(self.k) > 0, f"k is {self.k}; give cut-offs of 1 or more")
