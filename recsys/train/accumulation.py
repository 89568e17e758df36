"""Gradients of several batches that make one step of the dense parameters: TorchRec's wrapper, a pass at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.gradient_accumulation import (
    GradientAccumulationConfig,
    GradientAccumulationWrapper,
)
from torchrec.optim.keyed import KeyedOptimizer

from recsys.train.rounding import Averaging, average_in_order, data_parallel

Forward = Callable[[Any], tuple[Tensor, Any]]


class Accumulation:
    """Which batches of a pass make a step: `batches` of them, at its end those that are left; and so at the beginning
    of what other ranks have left of a pass.

    A gradient is the mean of the batches', that of a batch of all their rows where each has as many rows that count.
    It is kept by ranks for themselves and averaged once. Tables whose update is fused into the backward pass take a
    step with every batch; row-wise Adagrad makes it as long whatever its gradient is divided by.

    Args:
        batches: of a step; 1: nothing is accumulated.
        steps_per_epoch: batches of a pass.
    """

    def __init__(self, batches: int, steps_per_epoch: int) -> None:
        self.batches, self._of_pass = batches, steps_per_epoch
        self._share = 1.0
        self._begun: int | None = None
        self._wrapper: GradientAccumulationWrapper[Any, Any] | None = None

    def is_whole(self, position: int) -> bool:
        """Whether no gradient waits after so many batches, counted over all passes."""
        place = position % self._of_pass
        return place % self.batches == 0

    def scaled(self, forward: Forward) -> Forward:
        """A forward whose loss is the batch's share of the step."""
        if self.batches == 1:
            return forward

        def shared(batch: Any) -> tuple[Tensor, Any]:
            loss, output = forward(batch)
            return loss * self._share, output

        return shared

    def wrap(self, pipeline: TrainPipelineSparseDist[Any, Any], optimizer: KeyedOptimizer, model: nn.Module) -> None:
        """Let the pipeline's optimizer wait for whole steps, and gradients be averaged for these."""
        averaging = average_in_order(model, waiting=self.batches > 1)
        if self.batches > 1:
            config = GradientAccumulationConfig(num_steps=self.batches)
            self._wrapper = _Wrapper(pipeline, optimizer, model, config)
            self._wrapper.averaging = averaging

    def progress(self, pipeline: TrainPipelineSparseDist[Any, Any], batches: Iterator[Any], position: int) -> Any:
        """The pipeline's next batch, the one at this position over all passes."""
        if self._wrapper is None:
            return pipeline.progress(batches)
        place = position % self._of_pass
        first, start = place // self.batches * self.batches, position - place
        end = min(first + self.batches, self._of_pass)
        self._begun = position if self._begun is None else self._begun
        self._share = 1 / (start + end - max(start + first, self._begun))  # batches before it have made their step
        if place == 0 or self._wrapper.current_step != place:
            self._wrapper.set_step(place)
        return self._wrapper.progress(batches, is_last_batch=place == self._of_pass - 1)


class _Wrapper(GradientAccumulationWrapper[Any, Any]):
    """TorchRec's, for a training that may go on in the middle of a pass, and for tables that are data-parallel, whose
    gradients it would let cross with every batch.

    DistributedDataParallel wants to average the gradients of the very first batch of a process, whatever its number.
    On a GPU it does, which changes no sum but its rounding; on CPUs they wait as others do.
    """

    averaging: Averaging
    _cached_ddp_modules: list[Any] | None
    _begun = False

    def _should_sync_grad(self, is_last_batch: bool = False) -> bool:
        ends = is_last_batch or (self.current_step + 1) % self._config.num_steps == 0
        first, self._begun = not self._begun, True
        self.averaging.waits = not ends
        return ends or first

    def _get_ddp_modules(self) -> list[Any]:
        if self._cached_ddp_modules is None:
            self._cached_ddp_modules = data_parallel(self._model)
        return self._cached_ddp_modules
