"""What the passes of a training came to, and the model as it was after those that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.train.distributed import Environment
from recsys.train.predict import Batches, Said, predict
from recsys.train.running_metrics import LossError
from recsys.train.shards import local_parts, rows_written

Scores = Sequence[float]
"""Of one pass, one for each of what is judged by itself, a task say; lower is better."""


@dataclass(frozen=True)
class BestPasses:
    """The best pass of each score, by number from 0 on, the first of several; of one score all columns of the logits.

    The model a training comes to is that of the newest of them.
    """

    numbers: tuple[int, ...]
    bring: Callable[[int], object]
    """Brings the model to what it was after one of these passes. A collective."""

    def predict(self, model: nn.Module, stream: Batches, environment: Environment) -> Said:
        """As `recsys.train.predict.predict`, each column of the logits by its own best pass. A collective, which leaves
        the model as the training does.

        Args:
            model: of the training, as it was left.
            stream: this rank's batches.
            environment: this rank.
        """
        passes = sorted(set(self.numbers))
        if len(passes) == 1:
            return predict(model, stream, environment)
        said = {}
        for number in passes:  # the newest comes last
            self.bring(number)
            said[number] = predict(model, stream, environment)
        _, labels, mask, users = said[passes[-1]]
        logits = [said[number][0][:, column] for column, number in enumerate(self.numbers)]
        return torch.stack(logits, dim=1), labels, mask, users


def best_passes(scores: Sequence[Scores]) -> tuple[int, ...]:
    """The numbers of the passes that `BestPasses` has; none without a pass."""
    columns = zip(*scores, strict=True)
    return tuple(column.index(min(column)) for column in columns)


def is_settled(scores: Sequence[Scores], patience: int) -> bool:
    """Whether none of the last `patience` of these passes is the best by any score."""
    return bool(scores) and len(scores) - 1 - max(best_passes(scores)) >= patience


def told(scores: Sequence[Scores], most: int, name: str, patience: int = 1) -> str:
    """A line on the last of these passes, of at most so many; `name` is what its scores are called."""
    last, best = scores[-1], best_passes(scores)
    better = [score for score, number in zip(last, best, strict=True) if number == len(scores) - 1]
    verdict = f"{'' if len(better) == len(last) else f'{_said(better)} '}the best so far"
    if not better:
        verdict = f"no better than {_said([min(column) for column in zip(*scores, strict=True)])}"
        verdict += ": this was the last" if is_settled(scores, patience) or len(scores) == most else ""
    return f"pass {len(scores)} of at most {most}: validation {name} {_said(last)}, {verdict}"


def _said(scores: Scores) -> str:
    return ", ".join(f"{score:.4f}" for score in scores)


class Passes:
    """Scores passes, and keeps the model of the best ones.

    Args:
        model: as it is being trained; changed by `bring`.
        score: of the model in evaluation mode, the same on every rank.
        keeps: whether the weights of the best passes are kept here, in memory, or by the caller.
        scores: of the passes before this process, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        score: Callable[[nn.Module], Scores],
        *,
        keeps: bool,
        scores: Iterable[Scores] = (),
    ) -> None:
        self.scores = [tuple(each) for each in scores]
        self._model = model
        self._score = score
        self._keeps = keeps
        self._kept: dict[int, list[Tensor]] = {}

    def evaluate(self) -> bool:
        """Score the model as it is; whether that is the best so far by any score. Raises LossError if one is not
        finite."""
        self._model.eval()
        found = tuple(self._score(self._model))
        self._model.train()
        if not all(map(math.isfinite, found)):
            said = ", ".join(map(str, found))
            raise LossError(f"the score after epoch {len(self.scores) + 1} is {said}: lower the learning rates")
        self.scores.append(found)
        best = best_passes(self.scores)
        if self._keeps:
            self._kept = {number: kept for number, kept in self._kept.items() if number in best}
            if len(self.scores) - 1 in best:
                self._kept[len(self.scores) - 1] = [tensor.detach().clone() for tensor in _local_tensors(self._model)]
        return len(self.scores) - 1 in best

    @torch.no_grad()
    def bring(self, number: int) -> None:
        """Bring the model to what it was after one of the best passes."""
        with rows_written(self._model):
            for tensor, kept in zip(_local_tensors(self._model), self._kept[number], strict=True):
                tensor.copy_(kept)


def _local_tensors(model: nn.Module) -> list[Tensor]:
    """This rank's part of the model's state, in a fixed order."""
    tensors: list[Tensor] = []
    for value in model.state_dict().values():
        tensors += [tensor for tensor, _ in local_parts(value)]
    return tensors
