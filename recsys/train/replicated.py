"""Tables that every rank has whole, data-parallel: their gradients are averaged, and no id or row is exchanged.

TorchRec leaves them to a dense optimizer. The one here makes the update that is fused into the backward pass of other
tables, row-wise Adagrad, and keeps its sums under the same names: a checkpoint is no matter of how tables were spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingType
from torchrec.optim.keyed import KeyedOptimizerWrapper

ADAGRAD_EPS = 1e-8
"""Of the fused optimizer, and of this one."""


def replicated_tables(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Name of a parameter -> a table [rows, dim] that every rank has whole."""
    replicated = {
        (path, table)
        for path, module_plan in model.plan.plan.items()
        for table, how in cast(EmbeddingModuleShardingPlan, module_plan).items()
        if how.sharding_type == ShardingType.DATA_PARALLEL.value
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if (".".join(name.split(".")[:-3]), table_of(name)) in replicated
    }


def table_of(name: str) -> str:
    """The table that a parameter is: its name is `<collection>.embedding_bags.<table>.weight`, or `embeddings`."""
    return name.split(".")[-2] if name.count(".") > 1 else ""


def row_wise_adagrad(tables: Mapping[str, nn.Parameter], rate: float) -> KeyedOptimizerWrapper:
    """The optimizer of `replicated_tables`, with this learning rate."""
    return KeyedOptimizerWrapper(tables, lambda _: RowWiseAdagrad(tables, rate))


def row_sums(module: nn.Module) -> Iterable[Tensor]:
    """What `RowWiseAdagrad` has summed up for the tables of a module, float32 [rows] each."""
    return [x.row_sums for x in map(_open, module.parameters()) if hasattr(x, "row_sums")]


def _open(parameter: nn.Parameter) -> Any:
    """A parameter that carries its sums, for who has the module alone."""
    return parameter


class RowWiseAdagrad(torch.optim.Optimizer):
    """s += mean(g^2) over the columns of a row, w -= rate x g / (sqrt(s) + eps): FBGEMM's, for dense gradients. A row
    without a gradient stays as it is.

    Args:
        tables: name of a parameter -> it.
        rate: learning rate.
    """

    def __init__(self, tables: Mapping[str, nn.Parameter], rate: float) -> None:
        super().__init__(list(tables.values()), {"lr": rate})
        for name, table in tables.items():
            sums = torch.zeros(len(table), dtype=torch.float32, device=table.device)
            self.state[table][f"{table_of(name)}.momentum1"] = sums
            _open(table).row_sums = sums

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every table that has a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    (sums,) = self.state[table].values()
                    sums += table.grad.square().mean(1)
                    table.addcdiv_(table.grad, (sums.sqrt() + ADAGRAD_EPS).unsqueeze(1), value=-group["lr"])
