"""One mini-batch of events, in the form TorchRec's sharded modules and train pipelines take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B events. Every tensor has B in its first dimension, but for `sparse`, which is jagged.

    Behind them may lie N items that nobody met, for the contrastive loss: see `negatives`.
    """

    dense: dict[str, Tensor]
    """owner -> float32 [B, W]: that owner's `dense` and `vector` features side by side, in schema order. Missing: 0."""
    sparse: KeyedJaggedTensor
    """`id`, `ids` and `sequence` features by name, values already table rows; `<name>.age` beside a timed sequence."""
    labels: Tensor  # float32 [B, T], in schema order; 0 where the label is not valid
    label_mask: Tensor  # bool [B, T], true where the label exists
    user_ids: Tensor  # int64 [B]
    item_ids: Tensor  # int64 [B]
    timestamps: Tensor  # int64 [B], ms; 0 in a log without event times
    elapsed: Tensor | None = None
    """float32 [B, T]: the share of a label's window that has passed, 1 where it has ended or there is none. None: all
    have ended. See `Label.delayed`."""
    weights: Tensor | None = None  # float32 [B], 0 or more: how much of a row is learned; None: of all the same
    vectors: Tensor | None = None  # float32 [B, V]: store vectors of the series a ranker reads, side by side
    found: Tensor | None = None  # bool [B, P]: whether there is a vector for the row's entity in each of P places: one
    # of a series, or k of a history that the ranker attends to, whose vectors lie side by side in `vectors`
    feed: Tensor | None = None  # float32 [B, P, 2]: how old it is and how many events it is made of, see StoreFeatures
    negatives: Tensor | None = None
    """int64 [N]: ids of items whose features lie behind those of the events, in rows B to B + N of `dense["item"]` and
    of every key of `sparse`, and of `vectors`, `found` and `feed`; those of other owners are empty there, and nothing
    else has these rows. None: no items."""
    longest: dict[str, int] | None = None
    """Key of `sparse` -> the most that a row has of it; noted by `to` while it is at hand, so that a model on a GPU
    need not wait to read it. None: not noted."""
    position: int = 0
    """Number of the batch in its stream, counted from 0 over all passes."""
    epoch: int = 0
    """The pass over the events that the batch is of, counted from 0."""

    def __len__(self) -> int:
        return self.user_ids.shape[0]

    @property
    def known(self) -> Tensor:  # bool [B, T]
        """Where a label exists and will not change any more: what a model may be judged by."""
        return self.label_mask if self.elapsed is None else self.label_mask & (self.elapsed >= 1)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """A copy on `device` (Pipelineable)."""
        moved = self._map(lambda x: x.to(device=device, non_blocking=non_blocking))
        if self.longest is None and self.sparse.lengths().device.type == "cpu":
            moved.longest = _longest(self.sparse)
        return moved

    def pin_memory(self) -> Batch:
        """A copy in page-locked host memory, so that `to` can overlap with computing (Pipelineable). Vectors that were
        looked up on a GPU stay there."""
        return self._map(lambda x: x if isinstance(x, Tensor) and x.is_cuda else x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until `stream` is done with it (Pipelineable)."""
        self._map(lambda x: x.record_stream(stream) or x)

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        return replace(
            self,
            dense={owner: function(x) for owner, x in self.dense.items()},
            sparse=function(self.sparse),
            labels=function(self.labels),
            label_mask=function(self.label_mask),
            user_ids=function(self.user_ids),
            item_ids=function(self.item_ids),
            timestamps=function(self.timestamps),
            elapsed=None if self.elapsed is None else function(self.elapsed),
            weights=None if self.weights is None else function(self.weights),
            vectors=None if self.vectors is None else function(self.vectors),
            found=None if self.found is None else function(self.found),
            feed=None if self.feed is None else function(self.feed),
            negatives=None if self.negatives is None else function(self.negatives),
        )


def _longest(sparse: KeyedJaggedTensor) -> dict[str, int]:
    lengths = sparse.lengths().view(len(sparse.keys()), sparse.stride())
    return dict(zip(sparse.keys(), lengths.amax(1).tolist() if lengths.numel() else [0] * len(lengths), strict=True))
