"""A trained ranker as a program of plain tensors, which runs without this package, TorchRec or a process group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from recsys.bundle.plain import FlatSparse, PlainBatch, with_plain_tables
from recsys.data.batch import Batch
from recsys.evaluate.recalibration import Recalibration
from recsys.models.ranker import Ranker
from recsys.train.distributed import without_notices

MOST = 88.0
"""Log of the greatest expected value that is said, which is finite in float32."""
LEAST = 2
"""Rows, and values of each feature, that a program is traced for: torch.export takes 0 and 1 for constants."""


class Inputs(NamedTuple):
    """What the program takes, for B rows."""

    rows: dict[str, Tensor]
    """Key of `Batch.sparse` -> int64 [n], rows of its table (or ages), one event's after another's."""
    offsets: dict[str, Tensor]
    """Key -> int64 [B + 1], where each event's rows begin; the last is n."""
    dense: dict[str, Tensor]
    """Owner -> float32 [B, W]."""
    vectors: Tensor  # float32 [B, V], V may be 0
    found: Tensor  # bool [B, P]
    feed: Tensor  # float32 [B, P, 2]

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Inputs:
        """Of a batch whose ids are resolved and whose vectors are joined.

        The program was traced for two rows and two values of every feature at least: where there are fewer, an event
        of its own is added at the end, whose output means nothing.

        Args:
            batch: on the CPU, but for the vectors.
            device: of the program.
        """
        assert batch.vectors is not None
        assert batch.found is not None
        assert batch.feed is not None
        tensors = batch.sparse.to_dict() if batch.sparse.keys() else {}
        rows = {name: tensor.values() for name, tensor in tensors.items()}
        offsets = {name: tensor.offsets() for name, tensor in tensors.items()}
        inputs = cls(rows, offsets, dict(batch.dense), batch.vectors, batch.found, batch.feed)
        if len(batch) < LEAST or any(len(x) < LEAST for x in rows.values()):
            inputs = inputs._padded()
        return inputs._on(device)

    def _padded(self) -> Inputs:
        rows = {name: F.pad(x, (0, LEAST)) for name, x in self.rows.items()}
        offsets = {name: torch.cat([x, x[-1:] + LEAST]) for name, x in self.offsets.items()}
        one = (0, 0, 0, 1)
        dense = {owner: F.pad(x, one) for owner, x in self.dense.items()}
        return Inputs(
            rows, offsets, dense, F.pad(self.vectors, one), F.pad(self.found, one), F.pad(self.feed, (0, 0, *one))
        )

    def _on(self, device: torch.device) -> Inputs:
        if device.type == "cpu":
            return self
        rows, offsets, dense = (
            {name: x.to(device, non_blocking=True) for name, x in part.items()} for part in self[:3]
        )
        vectors, found, feed = (x.to(device, non_blocking=True) for x in self[3:])
        return Inputs(rows, offsets, dense, vectors, found, feed)


class RankerProgram(nn.Module):
    """`Inputs` -> probabilities and expected values, float32 [B, T]: a trained ranker and its recalibration.

    Args:
        rankers: the ranker after each pass that was the best for a task, with whole tables on the CPU; changed in
            place, their collections of tables become plain ones.
        of_task: the index of the one that each task is predicted by.
        recalibrations: of each task's logits.
        values: whether each task's logit is the log of an expected value.
    """

    def __init__(
        self,
        rankers: Sequence[Ranker],
        of_task: Sequence[int],
        recalibrations: Sequence[Recalibration],
        values: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.rankers = nn.ModuleList(with_plain_tables(ranker) for ranker in rankers)
        self.of_task = tuple(of_task)
        self.scale = nn.Buffer(torch.tensor([x.scale for x in recalibrations], dtype=torch.float32))
        self.values = nn.Buffer(torch.tensor(values, dtype=torch.bool)) if any(values) else None
        self.bias = nn.Buffer(torch.tensor([x.bias for x in recalibrations], dtype=torch.float32))

    def forward(
        self,
        rows: dict[str, Tensor],
        offsets: dict[str, Tensor],
        dense: dict[str, Tensor],
        vectors: Tensor,
        found: Tensor,
        feed: Tensor,
    ) -> Tensor:  # [B, T]
        events = PlainBatch(FlatSparse(rows, offsets), dense, vectors, found, feed, user_ids=vectors)
        said = [ranker(events) for ranker in self.rankers]
        logits = torch.stack([said[which][:, task] for task, which in enumerate(self.of_task)], dim=1)
        logits = logits * self.scale + self.bias
        if self.values is None:
            return torch.sigmoid(logits)
        return torch.where(self.values, logits.clamp(max=MOST).exp(), torch.sigmoid(logits))


def export(program: RankerProgram, example: Inputs) -> torch.export.ExportedProgram:
    """Trace it, for any number of rows from `LEAST` on.

    Args:
        program: in evaluation mode.
        example: of more than `LEAST` rows.
    """
    rows = {0: torch.export.Dim.DYNAMIC}
    named = [{name: rows for name in part} for part in example[:3]]
    with without_notices():
        return torch.export.export(program, tuple(example), dynamic_shapes=(*named, rows, rows, rows))


def on_device(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    """The same on another device: where tensors are made is written into a program."""
    return program if device.type == "cpu" else move_to_device_pass(program, device)


def compile_program(program: torch.export.ExportedProgram, path: Path, device: torch.device) -> None:
    """Compile it by AOTInductor, for this kind of device, into a package that needs neither Python nor this package. A
    C++ compiler is needed."""
    with without_notices():
        program = on_device(program, device)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
