"""Which of several passes was the best, and the model as it was after that one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel

from recsys.train.running_metrics import LossError


class BestPass:
    """The scores of the passes so far.

    Args:
        model: as it is being trained; changed by `restore`.
        score: of the model in evaluation mode; lower is better.
        keeps: whether the best pass's weights are kept here, in memory, or by the caller.
        scores: of the passes before this process, if any.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        score: Callable[[DistributedModelParallel], float],
        *,
        keeps: bool,
        scores: Iterable[float] = (),
    ) -> None:
        self.scores = list(scores)
        self._model = model
        self._score = score
        self._keeps = keeps
        self._kept: list[Tensor] = []

    def evaluate(self) -> bool:
        """Score the model as it is; whether that is the best so far. Raises LossError if the score is not finite."""
        self._model.eval()
        score = self._score(self._model)
        self._model.train()
        if not math.isfinite(score):
            raise LossError(f"the score after epoch {len(self.scores) + 1} is {score}: lower the learning rates")
        improved = score < min(self.scores, default=math.inf)
        self.scores.append(score)
        if improved and self._keeps:
            self._kept = [tensor.detach().clone() for tensor in _local_tensors(self._model)]
        return improved

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the model back to its best pass."""
        for tensor, kept in zip(_local_tensors(self._model), self._kept, strict=True):
            tensor.copy_(kept)


def _local_tensors(model: DistributedModelParallel) -> list[Tensor]:
    """This rank's part of the model's state, in a fixed order."""
    tensors: list[Tensor] = []
    for value in model.state_dict().values():
        tensors += [shard.tensor for shard in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
    return tensors
