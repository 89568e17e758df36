"""How the series of a live table lie in two places, and which rows the next version should have on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from embedding_store.arguments import integer
from embedding_store.errors import InvalidArgumentError
from embedding_store.read.budget import Budget, budgets
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table
from embedding_store.read.tiered import COUNT_BYTES, TieredTable


class Tiers:
    """Loads versions within their budgets; see the arguments of LiveTable.

    The ids that a version was asked for most are hot in the next one. Its counts begin with half of theirs: rows change
    from version to version, ids carry over, and traffic of long ago fades.
    """

    def __init__(
        self,
        names: Sequence[str],
        gpu_bytes: int | Mapping[str, int] | None,
        hot_ids: Tensor | Mapping[str, Tensor] | None,
        sample: int,
        device: torch.device | str | None,
    ) -> None:
        self._budgets = budgets(names, gpu_bytes, hot_ids)
        self._sample = integer(sample, "sample", least=0)
        if self._budgets and device is None:
            what = "gpu_bytes is given without a device"
            raise InvalidArgumentError(
                f"{what}: give device='cuda', or 'cpu' for both places in host memory, as a trial"
            )

    def load(self, snapshot: Snapshot, name: str, present: Table | None, load: Callable[..., Table]) -> Table:
        """The next table of a series; `present` is the one that it will replace, `load` as Snapshot.load_checked.

        Raises:
            InvalidArgumentError: the budget does not even hold the counts.
            StoreError: as `load`.
        """
        budget = self._budgets.get(name)
        if budget is None:
            return load()
        if not self._sample:
            return load(gpu_bytes=budget.gpu_bytes, hot_ids=budget.hot_ids)
        table = load(gpu_bytes=self._without_counts(snapshot, budget), hot_ids=_hot_ids(budget, present))
        assert isinstance(table, TieredTable)
        past = present.accesses() if isinstance(present, TieredTable) else None  # anew: loading took its time
        table.count_accesses(self._sample, past)
        return table

    def _without_counts(self, snapshot: Snapshot, budget: Budget) -> int:
        counts = COUNT_BYTES * (snapshot.rows + 1)
        if budget.gpu_bytes < counts:
            remedy = f"give {counts} and room for rows, or sample=0 to count none"
            raise InvalidArgumentError(
                f"gpu_bytes is {budget.gpu_bytes}; the counters of the {snapshot.rows} rows of {snapshot.series} alone "
                f"take {counts}: {remedy}"
            )
        return budget.gpu_bytes - counts


def _hot_ids(budget: Budget, present: Table | None) -> Tensor | None:
    """Those that were counted, then those of the beginning: a version may have been there too short to tell."""
    if not isinstance(present, TieredTable):
        return budget.hot_ids
    counted = present.accesses().ids
    return counted if budget.hot_ids is None else torch.cat((counted, budget.hot_ids.cpu()))
