"""Training runs."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config.rules import SEEDS, require


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of any model."""

    epochs: int = 4
    """Passes over the events, at most: events that are held out choose the best, and one that is worse is the last."""
    batch_size: int = 512
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
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use 1 or more")
        for name in ("shuffle_batches", "checkpoint_every", "weight_decay"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; use 0 or more")
        require(0 <= self.seed < SEEDS, f"seed is {self.seed}; use 0 <= seed < 2^32")
        for name in ("sparse_lr", "dense_lr"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use more than 0")


@dataclass(frozen=True, kw_only=True)
class RankerTrainConfig(TrainConfig):
    """The training run of a ranker, which may be given more passes than it needs."""

    epochs: int = 8
    """Passes over the events, at most: the validation files choose the best, and one that is worse is the last."""
    batch_size: int = 1024
    """Rows of a step; a ranker is trained by one rank."""
    sparse_lr: float = 0.005
    """Learning rate of the tables. A ranker's ids have fewer events than an upstream's and overfit sooner."""
