"""What the ranks found in their shares of a log, exchanged on the control group: numbers, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from recsys.data.ranks import ALONE, Ints, Ranks
from recsys.train.distributed import Environment, control_group


def ranks_of(environment: Environment | None) -> Ranks:
    """The ranks that read together; None: this process alone."""
    return ALONE if environment is None or environment.world_size == 1 else _Group(environment)


class _Group:
    """`Ranks` on gloo."""

    def __init__(self, environment: Environment) -> None:
        self.rank, self.world_size = environment.rank, environment.world_size
        self._group = control_group()

    def exchange(self, columns: Sequence[Ints], to: Ints) -> list[Ints]:
        order = np.argsort(to, kind="stable")
        sent = np.bincount(to, minlength=self.world_size)
        came = torch.empty(self.world_size, dtype=torch.int64)
        dist.all_to_all_single(came, torch.from_numpy(sent.astype(np.int64)), group=self._group)
        received = []
        for column in columns:
            rows = torch.empty(int(came.sum()), dtype=torch.int64)
            ordered = torch.from_numpy(np.ascontiguousarray(column[order]))
            dist.all_to_all_single(rows, ordered, came.tolist(), sent.tolist(), group=self._group)
            received.append(rows.numpy())
        return received

    def gather(self, columns: Sequence[Ints]) -> list[Ints]:
        everywhere = np.tile(np.arange(self.world_size), (len(columns[0]), 1)).ravel()
        return self.exchange([np.repeat(column, self.world_size) for column in columns], everywhere)

    def sum(self, values: Ints) -> Ints:
        total = torch.from_numpy(np.array(values))
        dist.all_reduce(total, group=self._group)
        return total.numpy()

    def max(self, values: NDArray[np.float32] | Ints) -> NDArray[np.float32] | Ints:
        greatest = torch.from_numpy(np.array(values))
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self._group)
        return greatest.numpy()
