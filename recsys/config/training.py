"""Training runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from recsys.config.rules import SEEDS, require
from recsys.config.sharding import TableConfig
from recsys.mistakes import meant

EXCHANGES = ("float32", "float16", "bfloat16")
"""What rows cross between ranks in."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of any model."""

    SMALLEST: ClassVar[int] = 64
    """Batch size that is not fallen below where none is given; fewer rows are one step."""
    LARGEST: ClassVar[int] = 512
    """Batch size that is not exceeded where none is given."""
    STEPS: ClassVar[int] = 100
    """That a pass then has at least, if the rows allow it."""
    epochs: int = 4
    """Passes over the events, at most: events that are held out choose the best, see `patience`."""
    patience: int = 1
    """So many passes in a row that are no better than the best are the last. Tables of ids that are all a model has may
    need 3: what a user and an item have to do with one another is learned passes after how popular the item is."""
    batch_size: int = 0
    """Rows a rank and step. 0: as many as leave a pass 100 steps (a ranker's: 200), rounded down to a power of two; but
    64 at least (a ranker's: 128), and 512 (1,024) at most."""
    sparse_lr: float = 0.02
    """Learning rate of the tables (fused row-wise Adagrad)."""
    dense_lr: float = 1e-3
    """Learning rate of everything else (AdamW)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the dense parameters."""
    warmup: float = 0.0
    """Share of the steps of all passes over which the learning rates rise from near 0."""
    final_lr: float = 1.0
    """Share of the learning rates that is left after the last step of all passes; from the warm-up on they fall in a
    straight line. 1: they stay."""
    keep_accumulators: float = 1.0
    """Share of the tables' Adagrad accumulators that a training keeps which starts from the model of another, as a day
    does from that of the day before: with less, the steps of its tables are longer."""
    clip_norm: float = 0.0
    """The gradient of the dense parameters is scaled down to this norm, where it has a greater one; 0: never."""
    accumulate: int = 1
    """Batches of a rank whose gradients make one step of the dense parameters: `accumulate` times smaller batches need
    less memory, and cross once. Tables that are not data_parallel take a step with each; a batch's contrastive loss is
    still among its own items alone."""
    group_ranks: int = 0
    """Ranks that share the tables; 0: all. With fewer, say those of a machine, every group has all tables, learns from
    its rows by itself, and takes the mean of all groups' weights and sums of gradients every `sync_every` steps. Not
    the same training: a row's step is the mean of the groups' steps, each of which goes by its own gradient's size."""
    sync_every: int = 1
    """Steps between these means; they are also taken at the end of a pass, and before a checkpoint."""
    exchange: str = "float32"
    """In what rows of tables and their gradients cross between ranks: float32, float16 or, on GPUs, bfloat16."""
    shuffle_batches: int = 64
    """Rows are shuffled within blocks of this many batches; 0 keeps the stored order."""
    checkpoint_every: int = 200
    """Steps between checkpoints (one is always written at the end, and after a pass that is judged); 0: only then."""
    keep_checkpoints: int = 2
    """Checkpoints that are left, beside those of the passes that were the best when each was written: an older one is
    gone on from where the newest turns out to be damaged."""
    save_beside: bool = True
    """Whether a checkpoint is written beside the training, which waits for a copy in the host's memory alone. Where
    half of what is free there does not hold it, and with `group_ranks`, the training waits for the disk, as it does for
    the last one."""
    log_every: int = 20
    """Steps between log lines and TensorBoard points."""
    seed: int = 0
    """Seed of initialisation, shuffling and dropout."""
    tables: dict[str, TableConfig] = field(default_factory=dict)
    """Name of a table, as `recsys plan` prints it -> how it is spread, where the planner shall not choose. May change
    while a model is trained, but for columns, whose accumulators are kept for each shard."""

    def __post_init__(self) -> None:
        require(
            self.exchange in EXCHANGES,
            f"exchange is {self.exchange!r}{meant(self.exchange, EXCHANGES)}; use one of {', '.join(EXCHANGES)}",
        )
        for name in ("epochs", "patience", "log_every", "accumulate", "sync_every", "keep_checkpoints"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use 1 or more")
        require(self.batch_size >= 0, f"batch_size is {self.batch_size}; use 1 or more, or 0: what the rows allow")
        for name in ("shuffle_batches", "checkpoint_every", "weight_decay", "group_ranks"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; use 0 or more")
        require(0 <= self.warmup < 1, f"warmup is {self.warmup}; use a share of the steps, 0 or more, below 1")
        require(0 <= self.final_lr <= 1, f"final_lr is {self.final_lr}; use a share of the learning rates, 0 to 1")
        kept = self.keep_accumulators
        require(0 < kept <= 1, f"keep_accumulators is {kept}; use a share above 0, 1 for all of them")
        require(self.clip_norm >= 0, f"clip_norm is {self.clip_norm}; use more than 0, or 0: no clipping")
        require(0 <= self.seed < SEEDS, f"seed is {self.seed}; use 0 <= seed < 2^32")
        for name in ("sparse_lr", "dense_lr"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use more than 0")

    def sized(self, rows: int, steps: int = 0) -> Self:
        """The same with a batch size: the given one, or what so many rows a rank allow.

        Args:
            rows: a rank's share of the rows.
            steps: that a pass over them is to have; 0: STEPS.
        """
        wanted = max(self.SMALLEST, min(self.LARGEST, rows // (steps or self.STEPS)))
        return replace(self, batch_size=self.batch_size or 1 << (wanted.bit_length() - 1))

    def steps(self, rows: int) -> int:
        """Steps of a pass over so many rows a rank, with the batch size of `sized`."""
        return max(1, rows // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class RankerTrainConfig(TrainConfig):
    """The training run of a ranker; it may be given more passes than it needs."""

    SMALLEST: ClassVar[int] = 128
    LARGEST: ClassVar[int] = 1024
    STEPS: ClassVar[int] = 200
    epochs: int = 8
    """Passes over the events, at most: the validation files choose the best for each task, see `patience`."""
    sparse_lr: float = 0.005
    """Learning rate of the tables. A ranker's ids have fewer events than an upstream's and overfit sooner."""
