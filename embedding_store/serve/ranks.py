"""What ranks say to each other: collectives of a process group, and how the failure of one becomes an error of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from embedding_store.errors import InvalidArgumentError, RankFailedError, RanksDisagreeError


class Asked(NamedTuple):
    """What every rank has said at the beginning of a lookup."""

    counts: list[int]  # of each rank: ids that it asks this one for
    versions: list[int]  # of each rank: what it would look up in
    tokens: list[int]  # of each rank: what tells that from others


class Ranks:
    """A process group with tensors on one device.

    Raises:
        InvalidArgumentError: no process group is running, or it has no backend for the device.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InvalidArgumentError("group: no process group is running: call torch.distributed.init_process_group")
        self.group: dist.ProcessGroup = group or dist.group.WORLD  # type: ignore[assignment]  # one is running
        self.device = device
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        if not has_backend(self.group, device):
            raise InvalidArgumentError(
                f"group has no backend for tensors on {device}: make one with dist.new_group(backend="
                f"{'gloo' if device.type == 'cpu' else 'nccl'!r}), or load the table on another device"
            )

    def ask(self, counts: list[int], version: int, token: int) -> Asked:
        """Tell each rank how many ids it will be asked for, and learn the same of all. A collective.

        Raises:
            RankFailedError: a rank's lookup was refused before it began.
        """
        told = self._exchange_numbers([[count, version, token, 0] for count in counts])
        if refused := [rank for rank, numbers in enumerate(told) if numbers[3]]:
            raise RankFailedError(
                f"the lookup was refused on rank {', '.join(map(str, refused))}, whose error says why: give every rank "
                "ids and arguments that a lookup takes"
            )
        return Asked(*([numbers[i] for numbers in told] for i in range(3)))

    def refuse(self) -> None:
        """Take part in the others' `ask`, which raises there, instead of leaving them waiting."""
        self._exchange_numbers([[0, 0, 0, 1]] * self.size)

    def exchange(self, rows: Tensor, sent: list[int], received: list[int], out: Tensor | None = None) -> Tensor:
        """To each rank its `sent` rows of [N, ...], in the ranks' order; what comes of each, `received` rows, in the
        memory of `out` if it is given."""
        shape = (sum(received), *rows.shape[1:])
        out = rows.new_empty(shape) if out is None else out.resize_(shape)
        if self.size > 1:
            dist.all_to_all_single(out, rows.contiguous(), received, sent, group=self.group)
        else:
            out.copy_(rows)
        return out

    def without_own(self, counts: list[int]) -> list[int]:
        """The same, 0 of this rank."""
        return [0 if rank == self.rank else count for rank, count in enumerate(counts)]

    def _exchange_numbers(self, numbers: Sequence[Sequence[int]]) -> list[list[int]]:
        """To each rank four numbers, of each rank four."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return self.exchange(mine, [1] * self.size, [1] * self.size).tolist()

    def all_objects(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank; small things only."""
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, error: Exception | None) -> None:
        """Go on if no rank has an error; else raise it where it came up, and RankFailedError on the others."""
        said = self.all_objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if failed := {rank: message for rank, message in enumerate(said) if message is not None}:
            rank, message = next(iter(failed.items()))
            raise RankFailedError(f"rank {rank} failed, so no rank goes on: {message}")

    def require_same(self, what: str, value: str) -> None:
        """Raise RanksDisagreeError, naming every rank's, unless all have the same value."""
        values = self.all_objects(value)
        if len(set(values)) > 1:
            each = ", ".join(f"rank {rank} {value}" for rank, value in enumerate(values))
            raise RanksDisagreeError(f"{what} differ: {each}: give all ranks of a group the same")


def has_backend(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether collectives of the group take tensors on such a device."""
    try:
        group._get_backend(torch.device(device.type))
    except RuntimeError:
        return False
    return True


def on_cpu(group: dist.ProcessGroup | None) -> Ranks:
    """The same ranks with tensors on the CPU: the group itself, or, where it has no backend for them, a new group of
    gloo. A collective of its ranks."""
    cpu, present = torch.device("cpu"), group or dist.group.WORLD
    if present is not None and not has_backend(present, cpu):
        ranks = dist.get_process_group_ranks(present)
        present = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return Ranks(present, cpu)
