"""A small TorchRec task and a list-backed stream, so that training is tested without the real models and readers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recsys.data.batch import Batch
from recsys.data.rest import Leg, Place
from recsys.train.tables import draw_tables

TASKS = ("ctr", "cvr")
ROWS = {"user": 101, "item": 64, "seen": 50}
DIM = 8


class Output(NamedTuple):
    losses: dict[str, Tensor]
    logits: Tensor  # [B, T]
    labels: Tensor  # [B, T]
    mask: Tensor  # [B, T]


class Over(nn.Module):
    """Everything behind the tables: a leaf for the train pipeline's tracer."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3 * DIM + 2, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, len(TASKS)))

    def forward(self, bags: KeyedTensor, sequences: dict[str, JaggedTensor], batch: Batch) -> tuple[Tensor, Output]:
        seen = sequences["seen"]
        rows = torch.repeat_interleave(torch.arange(len(batch), device=seen.lengths().device), seen.lengths())
        pooled = seen.values().new_zeros(len(batch), DIM).index_add(0, rows, seen.values())
        logits = self.net(torch.cat([bags.values(), pooled, batch.dense["context"]], dim=1))
        each = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        per_task = (each * batch.label_mask).sum(0) / batch.label_mask.sum(0).clamp(min=1)
        losses = {name: per_task[index].detach() for index, name in enumerate(TASKS)}
        return per_task.sum(), Output(losses, logits.detach(), batch.labels, batch.label_mask)


class ToyTask(nn.Module):
    """Two bags, one sequence, an MLP with dropout, two tasks."""

    def __init__(
        self,
        dropout: float = 0.2,
        dim: int = DIM,
        rows: dict[str, int] | None = None,
        items: PoolingType = PoolingType.SUM,
    ) -> None:
        super().__init__()
        rows = rows or ROWS
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{name}",
                    embedding_dim=dim,
                    num_embeddings=rows[name],
                    feature_names=[name],
                    pooling=pooling,
                )
                for name, pooling in (("user", PoolingType.SUM), ("item", items))
            ],
            device=torch.device("meta"),
        )
        self.sequences = EmbeddingCollection(
            tables=[
                EmbeddingConfig(name="t_seen", embedding_dim=dim, num_embeddings=rows["seen"], feature_names=["seen"])
            ],
            device=torch.device("meta"),
        )
        self.over = Over(dropout)

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        return self.over(self.bags(batch.sparse), self.sequences(batch.sparse), batch)


def make_batch(rows: int, generator: torch.Generator, *, all_valid: bool = False) -> Batch:
    """Random events whose labels depend on the user and the item, `cvr` valid only after a click (or always)."""
    lengths = torch.randint(0, 4, (rows,), generator=generator)
    user, item = (torch.randint(ROWS[name], (rows,), generator=generator) for name in ("user", "item"))
    seen = torch.randint(ROWS["seen"], (int(lengths.sum()),), generator=generator)
    click = ((user % 3 == 0) | (item % 4 == 0)).float()
    sparse = KeyedJaggedTensor(
        keys=["user", "item", "seen"],
        values=torch.cat([user, item, seen]),
        lengths=torch.cat([torch.ones(2 * rows, dtype=torch.int32), lengths.to(torch.int32)]),
    )
    labels = torch.stack([click, click * (item % 2)], dim=1)
    return Batch(
        dense={"context": torch.randn(rows, 2, generator=generator)},
        sparse=sparse,
        labels=labels,
        label_mask=torch.stack([torch.ones(rows, dtype=torch.bool), (click > 0) | all_valid], dim=1),
        user_ids=user.to(torch.int64),
        item_ids=item.to(torch.int64),
        timestamps=torch.arange(rows),
    )


def join(first: Batch, second: Batch) -> Batch:
    """The rows of both."""
    parts = [batch.sparse.to_dict() for batch in (first, second)]
    keys = first.sparse.keys()
    return Batch(
        dense={owner: torch.cat([first.dense[owner], second.dense[owner]]) for owner in first.dense},
        sparse=KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([part[key].values() for key in keys for part in parts]),
            lengths=torch.cat([part[key].lengths() for key in keys for part in parts]),
        ),
        labels=torch.cat([first.labels, second.labels]),
        label_mask=torch.cat([first.label_mask, second.label_mask]),
        user_ids=torch.cat([first.user_ids, second.user_ids]),
        item_ids=torch.cat([first.item_ids, second.item_ids]),
        timestamps=torch.cat([first.timestamps, second.timestamps]),
    )


class ListStream:
    """Batches held in memory, with the interface of an event stream; can send this process a signal on its way."""

    def __init__(self, batches: list[Batch], epochs: int = 1, *, stop_at: int | None = None) -> None:
        self.batches = batches
        self.position = 0
        self.wait_seconds = 0.0
        self.shortfall = ""
        self.total_steps = len(batches) * epochs
        self._stop_at = stop_at

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches)

    def seek(self, position: int) -> None:
        self.position = position

    def place(self, position: int) -> Place:
        turn, step = divmod(position, len(self.batches))
        return Place(turn, (Leg(1, len(self.batches), step),) if step else ())

    def resume(self, place: Place) -> int:
        """The same share of the pass, where a stream of more or fewer batches began it."""
        done = [leg.steps * len(self.batches) // leg.batch_size for leg in place.legs]
        self.position = place.turn * len(self.batches) + sum(done)
        return self.position

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.total_steps:
            if self.position == self._stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            batch = self.batches[self.position % len(self.batches)]
            self.position += 1
            yield batch


def make_stream(
    steps: int, *, rank: int = 0, rows: int = 32, epochs: int = 1, all_valid: bool = False, stop_at: int | None = None
) -> ListStream:
    """A stream whose batches differ by rank."""
    generator = torch.Generator().manual_seed(1000 + rank)
    batches = [make_batch(rows, generator, all_valid=all_valid) for _ in range(steps)]
    return ListStream(batches, epochs, stop_at=stop_at)


def make_task(seed: int = 0, **options: Any) -> ToyTask:
    """A task to shard, whose dense parameters are the same wherever it is made."""
    torch.manual_seed(seed)
    return ToyTask(**options)


def plain_task(seed: int = 0, **options: Any) -> ToyTask:
    """The same with whole tables in this process, drawn with seed 0."""
    return draw_tables(make_task(seed, **options), 0)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model on one rank as plain tensors, sharded or not."""
    return {
        name: value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value
        for name, value in model.state_dict().items()
    }
