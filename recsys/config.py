"""The one config mechanism: keyword-only dataclasses, checked on construction, loaded from and saved as TOML.

`RunConfig` describes a whole way from events to report; `recsys.recipes` holds named complete ones. Paths are relative
to the data folder given on the command line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dacite
import tomli_w

INTERACTIONS = ("masknet", "dcnv2", "transformer", "mlp")
_SEEDS = 2**32


class ConfigError(ValueError):
    """A config value that cannot work; the message names the field, the value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where one log of events lies and how to read it."""

    schema: str
    """Path of the schema TOML."""
    events: tuple[str, ...]
    """Glob patterns of the Parquet files, in time order: `market/events/day=0[0-6]/*.parquet`."""
    users: tuple[str, ...] = ()
    """Optional Parquet with one row a user as of the end of the log: user features, `timestamp`, the user id. Without
    it the refresh takes each user's last event."""
    items: tuple[str, ...] = ()
    """The same for items."""

    def __post_init__(self) -> None:
        _require(bool(self.schema), "source.schema is empty: give the path of a schema TOML")
        _require(len(self.events) > 0, "source.events is empty: give at least one glob pattern of Parquet files")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """DERM: three towers with DHEN backbones (papers.md section 1; sizes are our choice, the paper names none)."""

    token_dim: int = 32
    """Width d of every token and of every embedding table."""
    layers: tuple[tuple[str, ...], ...] = (("masknet", "mlp"), ("transformer", "mlp"))
    """Interaction modules of each DHEN layer, side by side: masknet, dcnv2, transformer, mlp."""
    tokens: int = 8
    """Tokens m that every DHEN layer puts out."""
    heads: int = 2
    """Attention heads of every Transformer; divides `token_dim`."""
    sequence_layers: int = 1
    """Transformer layers over each sequence feature."""
    out_tokens: int = 2
    """Tokens of the entity vector; flattened and L2-normalised."""
    out_dim: int = 32
    """Width of each of them: the vector has out_tokens * out_dim dimensions."""
    dropout: float = 0.0
    """Dropout inside the interaction modules."""

    def __post_init__(self) -> None:
        for name in ("token_dim", "tokens", "heads", "out_tokens", "out_dim"):
            _require(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; use 1 or more")
        _require(self.sequence_layers >= 0, f"model.sequence_layers is {self.sequence_layers}; use 0 or more")
        _require(
            self.token_dim % self.heads == 0,
            f"model.heads is {self.heads}; it must divide token_dim = {self.token_dim}",
        )
        _require(self.token_dim % 4 == 0, f"model.token_dim is {self.token_dim}; tables need a multiple of 4")
        _require(len(self.layers) > 0, "model.layers is empty; give at least one DHEN layer, say [['masknet', 'mlp']]")
        for modules in self.layers:
            _require(len(modules) > 0, "model.layers has a layer without modules; give each at least one")
            for module in modules:
                _require(module in INTERACTIONS, f"model.layers names {module!r}; use one of {', '.join(INTERACTIONS)}")
        _require(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; use 0 <= dropout < 1")

    @property
    def vector_dim(self) -> int:
        """D, the dimension of user and item vectors."""
        return self.out_tokens * self.out_dim


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Supervised multi-task loss + contrastive loss between user and item vectors (papers.md section 1)."""

    contrastive_label: str = ""
    """Label whose positives are contrasted; empty: the first task."""
    contrastive_weight: float = 1.0
    """Factor of the contrastive term; the paper reports a plain sum (1.0). 0 turns it off."""
    temperature: float = 0.1
    """tau in softmax(u.p / tau - log Q(p)); our choice, the paper names none."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"loss.temperature is {self.temperature}; use more than 0")
        _require(self.contrastive_weight >= 0, f"loss.contrastive_weight is {self.contrastive_weight}; use 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of any model."""

    epochs: int = 1
    """Passes over the events."""
    batch_size: int = 1024
    """Rows a rank and step."""
    sparse_lr: float = 0.02
    """Learning rate of the tables (fused row-wise Adagrad)."""
    dense_lr: float = 1e-3
    """Learning rate of everything else (AdamW)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the dense parameters."""
    shuffle_batches: int = 64
    """Rows are shuffled within blocks of this many batches; 0 keeps the stored order."""
    checkpoint_every: int = 200
    """Steps between checkpoints (one is always written at the end); 0: only at the end."""
    log_every: int = 20
    """Steps between log lines and TensorBoard points."""
    seed: int = 0
    """Seed of initialisation, shuffling and dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every"):
            _require(getattr(self, name) > 0, f"training.{name} is {getattr(self, name)}; use 1 or more")
        for name in ("shuffle_batches", "checkpoint_every", "weight_decay"):
            _require(getattr(self, name) >= 0, f"training.{name} is {getattr(self, name)}; use 0 or more")
        _require(0 <= self.seed < _SEEDS, f"training.seed is {self.seed}; use 0 <= seed < 2^32")
        for name in ("sparse_lr", "dense_lr"):
            _require(getattr(self, name) > 0, f"training.{name} is {getattr(self, name)}; use more than 0")


@dataclass(frozen=True, kw_only=True)
class UpstreamConfig:
    """One upstream model. It publishes the series `user_<name>` and `item_<name>`."""

    name: str
    """Name of the upstream, say `ctr`."""
    source: SourceConfig
    """The events it learns from. They must end before the first event a downstream trains on."""
    tasks: tuple[str, ...] = ()
    """Labels it predicts; empty: all labels of the schema."""
    features: tuple[str, ...] = ()
    """Features it reads; empty: all features of the schema."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """The training run."""

    def __post_init__(self) -> None:
        _require(
            _is_word(self.name),
            f"upstream.name is {self.name!r}; use up to 100 of a-z, A-Z, 0-9 and _ (it becomes part of series' names)",
        )
        _require(len(set(self.tasks)) == len(self.tasks), f"upstream.tasks is {self.tasks}; name each label once")


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
            _require(getattr(self, name) > 0, f"ranker.{name} is {getattr(self, name)}; use 1 or more")
        _require(
            self.embedding_dim % 4 == 0, f"ranker.embedding_dim is {self.embedding_dim}; tables need a multiple of 4"
        )
        _require(all(width > 0 for width in self.hidden), f"ranker.hidden is {self.hidden}; use widths of 1 or more")
        for name in ("dropout", "entity_dropout"):
            _require(0 <= getattr(self, name) < 1, f"ranker.{name} is {getattr(self, name)}; use 0 <= p < 1")


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
            _require(len(getattr(self, name)) > 0, f"downstream.{name} is empty; give at least one glob pattern")
        _require(len(self.tasks) > 0, 'downstream.tasks is empty; name at least one, say {ctr = "is_click"}')
        for task in self.tasks:
            _require(_is_word(task), f"downstream.tasks names {task!r}; use letters, digits and _ (it names a folder)")
        _require(len(self.seeds) > 0, "downstream.seeds is empty; give at least one")
        distinct = len(set(self.seeds)) == len(self.seeds) and all(0 <= seed < _SEEDS for seed in self.seeds)
        _require(distinct, f"downstream.seeds is {self.seeds}; use different ones, 0 <= seed < 2^32")
        _require(self.publish_delay_ms >= 0, f"downstream.publish_delay_ms is {self.publish_delay_ms}; use 0 or more")


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
        _require(len(self.k) > 0 and min(self.k) > 0, f"retrieval.k is {self.k}; give cut-offs of 1 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: upstreams, the series they publish, the rankers that read them."""

    name: str
    """Shown in the report."""
    note: str = ""
    """What a reader of the report must know about the data: synthetic or real, how rows were split."""
    upstreams: tuple[UpstreamConfig, ...]
    """In the order in which the ablation adds them."""
    downstream: DownstreamConfig
    """The rankers."""
    fragment: DownstreamConfig | None = None
    """The same rankers on one surface alone, if there are several."""
    retrieval: RetrievalConfig | None = None
    """Retrieval figures, if wanted."""
    ranks: int = 2
    """Processes of an upstream job: GPUs, or gloo ranks on a CPU."""

    def __post_init__(self) -> None:
        _require(len(self.upstreams) > 0, "upstreams is empty; give at least one")
        names = [upstream.name for upstream in self.upstreams]
        _require(len(set(names)) == len(names), f"upstreams are named {names}; make the names different")
        _require(self.ranks > 0, f"ranks is {self.ranks}; use 1 or more")
        if self.retrieval is not None:
            _require(
                self.retrieval.upstream in names,
                f"retrieval.upstream is {self.retrieval.upstream!r}; use one of {', '.join(names)}",
            )

    def upstream(self, name: str) -> UpstreamConfig:
        """The upstream of this name. Raises ConfigError listing those that exist."""
        for upstream in self.upstreams:
            if upstream.name == name:
                return upstream
        raise ConfigError(f"unknown upstream {name!r}; the config has: {', '.join(u.name for u in self.upstreams)}")

    def save(self, path: str | Path) -> None:
        """Write the complete config, defaults included, as TOML."""
        Path(path).write_text(tomli_w.dumps(_without_none(asdict(self))), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> RunConfig:
        """Read a TOML config.

        Raises:
            ConfigError: no such file, no TOML, an unknown key, a wrong type or value; the message starts with the path.
        """
        try:
            return from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None


def from_dict(document: dict[str, Any]) -> RunConfig:
    """Build a RunConfig from nested dicts and lists. Raises ConfigError naming the key and what was wanted."""
    hooks: dict[Any, Callable[[Any], Any]] = {float: _number, int: _integer, str: _string, dict[str, str]: _table}
    for kind in (tuple[str, ...], tuple[int, ...], tuple[tuple[str, ...], ...], tuple[UpstreamConfig, ...]):
        hooks[kind] = _list
    strict = dacite.Config(strict=True, cast=[tuple], type_hooks=hooks)
    try:
        return dacite.from_dict(RunConfig, document, config=strict)
    except dacite.UnexpectedDataError as error:
        unknown = ", ".join(sorted(map(repr, error.keys)))
        raise ConfigError(f"unknown key {unknown}; see recsys/config.py for every key and its meaning") from None
    except dacite.DaciteError as error:
        raise ConfigError(f"{error} (see recsys/config.py for every key and its meaning)") from None


def override(config: RunConfig, assignments: tuple[str, ...]) -> RunConfig:
    """Apply `path=value` assignments, values in TOML: `upstreams.0.training.epochs=2`, `downstream.seeds=[0]`.

    A path may name an upstream instead of its index: `upstreams.ctr.training.epochs=2`.

    Raises:
        ConfigError: no such path, or a value that does not fit.
    """
    document = _without_none(asdict(config))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        _require(bool(equals), f"override {assignment!r} has no '='; write path=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string: --set name=mine
        node: Any = document
        *parents, last = path.split(".")
        for key in parents:
            node = _child(node, key, path)
        _require(isinstance(node, dict) and last in node, f"override {path!r}: no such key; see recsys/config.py")
        node[last] = value
    return from_dict(document)


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        for index, entry in enumerate(node):
            if key == str(index) or (isinstance(entry, dict) and key == entry.get("name")):
                return entry
    elif isinstance(node, dict) and key in node:
        return node[key]
    raise ConfigError(f"override {path!r}: no {key!r} there; see recsys/config.py")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value


def _number(value: Any) -> float:
    return float(_of_type(float, value, int, float))


def _integer(value: Any) -> int:
    return _of_type(int, value, int)


def _string(value: Any) -> str:
    return _of_type(str, value, str)


def _table(value: Any) -> dict:
    return _of_type(dict, value, dict)


def _list(value: Any) -> Any:
    return _of_type(list, value, list, tuple)  # of a string, dacite would make a tuple of its letters


def _of_type(wanted: type, value: Any, *allowed: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, allowed):  # to Python, true is an int
        raise dacite.WrongTypeError(wanted, value)
    return value


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_]{1,100}", text) is not None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
