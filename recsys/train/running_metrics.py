"""Loss, normalized entropy or deviance, and AUC while training.

Accumulated on the device and summed over ranks only when logged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from recsys.evaluate.entropy import relative_to_rate

BINS = 4096
"""Bins of the score histogram behind the AUC."""
LOGIT_RANGE = 14.0
"""Histogram over logits in [-14, 14], probabilities from 1e-6 on: equally fine for a 30 % and for a 0.1 % rate."""
PENDING = 64
"""Steps whose logits are kept before they are folded into the sums."""


class TaskOutput(Protocol):
    """What a task module returns beside the loss; detached."""

    @property
    def losses(self) -> dict[str, Tensor]:
        """The loss's parts by name, scalars."""

    @property
    def logits(self) -> Tensor:
        """[B, T]"""

    @property
    def labels(self) -> Tensor:
        """[B, T]"""

    @property
    def mask(self) -> Tensor:
        """bool [B, T]: where the label exists."""


class LossError(ValueError):
    """The loss is not a finite number."""


class Sums(NamedTuple):
    """Additive sums over steps and ranks, for T tasks and P parts of the loss."""

    steps: Tensor  # float64 [1]: steps x ranks
    rows: Tensor  # float64 [1]
    losses: Tensor  # float64 [1 + P]: the loss, then its parts
    entropy: Tensor  # float64 [T]: summed cross-entropy of valid rows
    counts: Tensor  # float64 [T, 2, BINS]: valid rows by label and score
    values: Tensor  # float64 [T, 4]: of valid rows, see `value_sums`; of labels that are values alone

    def plus(self, other: Sums) -> Sums:
        """The sums of both."""
        return Sums(*(mine + others for mine, others in zip(self, other, strict=True)))


class Metrics:
    """Running metrics of one training run: of the window since the last log line, and of the whole run.

    `update` costs no synchronisation with the device or with other ranks. `fold` does both; every rank must call it
    after the same step.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device, values: Collection[str] = ()) -> None:
        self.tasks = tuple(tasks)
        self.values = frozenset(values)
        """The tasks whose labels are values."""
        self._device = device
        self._parts: tuple[str, ...] = ()
        self._first_step = 0
        self._losses: list[Tensor] = []  # [1 + P] each, one a step since the last fold
        self._pending: list[TaskOutput] = []
        self._local: Sums | None = None
        self.window: Sums | None = None
        self.lifetime: Sums | None = None

    def update(self, step: int, loss: Tensor, output: TaskOutput) -> None:
        """Take in one step of this rank. `loss` is the scalar that was minimised."""
        if not self._losses:
            self._first_step = step
            self._parts = tuple(output.losses)
        self._losses.append(torch.stack([loss, *(output.losses[name] for name in self._parts)]))
        self._pending.append(output)
        if len(self._pending) == PENDING:
            self._reduce_pending()

    def fold(self) -> None:
        """Sum what came since the last call over all ranks, into the window and the whole run.

        Raises:
            LossError: a loss was not finite; names the first step, the part and the remedy. Raised on every rank.
        """
        if not self._losses:
            return
        losses = torch.stack(self._losses).double()  # [steps, 1 + P]
        dist.all_reduce(losses)
        self._check_finite(losses)
        self._reduce_pending()
        local = self._local
        assert local is not None
        for total in (local.rows, local.entropy, local.counts, local.values):
            dist.all_reduce(total)
        steps = torch.full_like(local.steps, float(len(self._losses) * dist.get_world_size()))
        summed = local._replace(steps=steps, losses=losses.sum(0))
        self.window = summed if self.window is None else self.window.plus(summed)
        self.lifetime = summed if self.lifetime is None else self.lifetime.plus(summed)
        self._losses, self._local = [], None

    def take_window(self, seconds: float) -> dict[str, float]:
        """The window's and the whole run's figures, and a new window.

        Keys: `loss`, `loss/<part>`, `ne/<task>`, `auc/<task>`, `lifetime_ne/<task>`, `lifetime_auc/<task>`,
        `samples_per_second` (all ranks). NE and AUC are left out where a task had only one kind of label. A task whose
        label is a value has `deviance/<task>` and `lifetime_deviance/<task>` instead of them.
        """
        if self.window is None or self.lifetime is None:
            return {}
        window, self.window = self.window, None
        means = (window.losses / window.steps).tolist()
        record = {"loss": means[0], **{f"loss/{name}": mean for name, mean in zip(self._parts, means[1:], strict=True)}}
        for index, task in enumerate(self.tasks):
            for prefix, sums in (("", window), ("lifetime_", self.lifetime)):
                if task in self.values:
                    deviance = deviance_of_sums(sums.values[index])
                    record |= {f"{prefix}deviance/{task}": deviance} if math.isfinite(deviance) else {}
                    continue
                ne, auc = entropy_of_sums(sums.entropy[index], sums.counts[index]), binned_auc(sums.counts[index])
                record |= {f"{prefix}ne/{task}": ne} if math.isfinite(ne) else {}
                record |= {f"{prefix}auc/{task}": auc} if math.isfinite(auc) else {}
        record["samples_per_second"] = float(window.rows) / max(seconds, 1e-9)
        return record

    def state(self) -> dict[str, Tensor]:
        """Window and lifetime sums after a `fold`, equal on every rank, for a checkpoint."""
        sums = {"window": self.window, "lifetime": self.lifetime}
        return {f"{name}.{key}": x for name, total in sums.items() if total for key, x in total._asdict().items()}

    def load_state(self, state: Mapping[str, Tensor], parts: Sequence[str]) -> None:
        """Continue from `state()`; `parts` are the names of the loss's parts at that time."""
        self._parts = tuple(parts)
        for name in ("window", "lifetime"):
            keys = {field: f"{name}.{field}" for field in Sums._fields}
            found = {field: state[key].to(self._device) for field, key in keys.items() if key in state}
            if found:
                nothing = torch.zeros(len(self.tasks), 4, dtype=torch.float64, device=self._device)
                setattr(self, name, Sums(**{"values": nothing, **found}))  # older checkpoints have none

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the loss's parts, in order."""
        return self._parts

    def _reduce_pending(self) -> None:
        if not self._pending:
            return
        logits = torch.cat([output.logits for output in self._pending]).float()  # [N, T]
        labels = torch.cat([output.labels for output in self._pending]).float()
        mask = torch.cat([output.mask for output in self._pending])
        self._pending = []
        none = torch.zeros(1, dtype=torch.float64, device=logits.device)  # filled in by `fold`
        of_values = value_sums(logits, labels, mask) if self.values else none.new_zeros(logits.shape[1], 4)
        sums = Sums(none, none + logits.shape[0], none, *score_sums(logits, labels, mask), of_values)
        self._local = sums if self._local is None else self._local.plus(sums)

    def _check_finite(self, losses: Tensor) -> None:
        """`losses`: [steps, 1 + P], summed over ranks, so that one rank's NaN is every rank's."""
        bad = ~losses.isfinite()
        if not bad.any():
            return
        row = int(bad.any(1).nonzero()[0])
        names = [name for name, is_bad in zip(self._parts, bad[row, 1:].tolist(), strict=True) if is_bad]
        what = f"loss of {', '.join(repr(name) for name in names)}" if names else "loss"
        raise LossError(
            f"the {what} is not finite at step {self._first_step + row}: lower training.dense_lr or "
            "training.sparse_lr, or look for extreme values in the dense features"
        )


def score_sums(
    logits: Tensor,  # [N, T]
    labels: Tensor,  # [N, T]
    mask: Tensor,  # bool [N, T]
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, float64 [T], and histogram of the scores by label, float64 [T, 2, BINS], of valid rows."""
    tasks = logits.shape[1]
    entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").masked_fill(~mask, 0.0)
    scaled = (logits.clamp(-LOGIT_RANGE, LOGIT_RANGE) + LOGIT_RANGE) * ((BINS - 1) / (2 * LOGIT_RANGE))
    cells = torch.arange(tasks, device=logits.device) * 2 + (labels > 0.5).long()  # [N, T]
    index = cells * BINS + scaled.nan_to_num(0.0).round().long()
    counts = torch.zeros(tasks * 2 * BINS, dtype=torch.float64, device=logits.device)
    counts.index_add_(0, index.flatten(), mask.double().flatten())  # no size is read off the data, as bincount does
    return entropy.double().sum(0), counts.view(tasks, 2, BINS)


def value_sums(
    logits: Tensor,  # [N, T], logs of the predicted means
    labels: Tensor,  # [N, T], 0 or more
    mask: Tensor,  # bool [N, T]
) -> Tensor:
    """Of the valid rows, float64 [T, 4]: their number, and the sums of y, of y log y, and of exp(z) - y z."""
    y, z = labels.double(), logits.double()
    parts = (torch.ones_like(y), y, torch.xlogy(y, y), z.clamp(max=100).exp() - y * z)
    return torch.stack([x.masked_fill(~mask, 0.0).sum(0) for x in parts], dim=1)


def deviance_of_sums(sums: Tensor) -> float:
    """Normalized deviance, see `recsys.evaluate.values`, from `value_sums` of one task; NaN where all are the same."""
    rows, total, logs, losses = sums.tolist()
    if not total > 0:
        return math.nan
    constant = logs - total * math.log(total / rows)
    return (logs - total + losses) / constant if constant > 1e-9 * total else math.nan


def entropy_of_sums(entropy: Tensor, counts: Tensor) -> float:
    """Normalized entropy; NaN where there are no positives or no negatives.

    Args:
        entropy: scalar, summed cross-entropy.
        counts: [2, BINS], rows by label.
    """
    negatives, positives = counts.sum(1).tolist()
    rows = negatives + positives
    return relative_to_rate(float(entropy) / rows, positives / rows) if rows else math.nan


def binned_auc(counts: Tensor) -> float:
    """Area under the ROC curve from a score histogram, ties within a bin counted half; NaN with one kind of label.

    Args:
        counts: [2, BINS]: rows of label 0 and 1 by ascending score.
    """
    negatives, positives = counts
    below = negatives.cumsum(0) - negatives  # negatives scored lower than this bin
    pairs = float(negatives.sum() * positives.sum())
    return float((positives * (below + negatives / 2)).sum()) / pairs if pairs else math.nan
