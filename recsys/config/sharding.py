"""How an embedding table is spread over ranks, where the planner shall not choose."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config.rules import require
from recsys.mistakes import meant

SHARDINGS = (
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
)
"""TorchRec's."""
KERNELS = ("fused", "fused_uvm_caching", "fused_uvm")
"""Where a table on a GPU lies."""
DTYPES = ("float32", "float16")
"""Of weights."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """How an embedding table is spread over ranks."""

    sharding: str = ""
    """`table_wise`: whole on one rank; `row_wise`: rows over all ranks; `column_wise`: columns over ranks. Tables whose
    rows are pooled (`id`, `ids`) also take `table_row_wise`: rows over the ranks of one machine; `table_column_wise`:
    columns over these; `grid_shard`: columns over machines, rows over the ranks of each; `data_parallel`: whole on
    every rank, gradients are averaged. Empty: row_wise for large ones, data_parallel where those of an owner have no
    more than 64 KiB together, for others what the planner takes to be fastest."""
    columns: int = 0
    """Width of a shard where columns are spread, a multiple of 4; 0: as the planner likes. Each shard has an Adagrad
    accumulator of its own for a row: wider ones learn a little differently."""
    kernel: str = "fused"
    """`fused`: in the memory of its rank's device; on GPUs also `fused_uvm_caching`: in the host's, `cached` of it in
    the GPU's; and `fused_uvm`: in the host's alone. What is data_parallel has TorchRec's dense one."""
    cached: float = 0.2
    """Share of the rows that `fused_uvm_caching` keeps on the GPU: the table's budget there."""

    dtype: str = "float32"
    """Of the weights: float32, or float16, rounded at random so that small steps count in the mean. Sums of gradients
    are float32 always."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("sharding", self.sharding, SHARDINGS),
            ("kernel", self.kernel, KERNELS),
            ("dtype", self.dtype, DTYPES),
        ):
            require(
                value in known or not (value or name != "sharding"),
                f"{name} is {value!r}{meant(value, known)}; use one of {', '.join(known)}",
            )
        require(
            self.columns >= 0 and self.columns % 4 == 0,
            f"columns is {self.columns}; use a multiple of 4, or 0: as the planner likes",
        )
        by_columns = self.sharding in ("column_wise", "table_column_wise", "grid_shard")
        require(not self.columns or by_columns, f"columns is {self.columns}, but sharding is {self.sharding!r}; use 0")
        require(
            self.sharding != "data_parallel" or self.kernel == "fused",
            f"kernel is {self.kernel!r}, but sharding is 'data_parallel', whose gradients are dense: use 'fused', the "
            "default, which has no effect there",
        )
        require(
            self.sharding != "data_parallel" or self.dtype == "float32",
            f"dtype is {self.dtype!r}, but sharding is 'data_parallel', whose steps are not rounded at random: use "
            "'float32'",
        )
        require(0 < self.cached <= 1, f"cached is {self.cached}; use a share above 0, up to 1")
