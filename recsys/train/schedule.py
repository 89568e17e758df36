"""How learning rates rise at the start of a training and fall towards its end."""

from __future__ import annotations

from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from recsys.config import TrainConfig


def share_of(step: int, total: int, warmup: float, final: float) -> float:
    """What part of the full learning rate a step has: up in a straight line over the first `warmup` of all steps, then
    down in one to `final` after the last.

    Args:
        step: 0 ... total - 1.
        total: steps of all passes.
        warmup: share of them.
        final: share of the learning rate.
    """
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    return 1 - (1 - final) * (step - rising) / max(1.0, total - rising)


class Schedule:
    """Sets the learning rates of a training; a function of the step alone, so that a resumed one goes on with its own.

    Args:
        model: sharded; its tables are trained in the backward pass.
        optimizer: of all parameters, with its full learning rates.
        config: `warmup` and `final_lr`.
        total: steps of all passes.
    """

    def __init__(
        self, model: DistributedModelParallel, optimizer: KeyedOptimizer, config: TrainConfig, total: int
    ) -> None:
        self._fused = model.fused_optimizer
        self._config, self._total = config, total
        self._full = [(group, group["lr"]) for group in optimizer.param_groups]

    def begin(self, step: int) -> None:
        """Call it before every step."""
        if not self._config.warmup and self._config.final_lr == 1:
            return
        share = share_of(step, self._total, self._config.warmup, self._config.final_lr)
        for group, rate in self._full:
            group["lr"] = share * rate
        self._fused.step()  # hands its rate to the tables, whose next backward pass is their step
