"""How large everything is: at full size on a GPU, and tiny on the CPU for a rehearsal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.names import TABLES_VARIABLE

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of all parts."""

    out: Path
    """Folder of results."""
    rehearse: bool = False
    """On the CPU, where figures say nothing."""
    limit: float = 600.0
    """Seconds that the part has, a little less than after which it is ended."""
    rows: int = 1 << 23
    """Of the tables of the grid, and of those that are pooled and tiered."""
    dim: int = 128
    """Of these."""
    dtypes: tuple[str, ...] = ("float32", "float16", "int8", "int4")
    keys: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 4_000_000)
    """Ids a lookup."""
    missing: tuple[float, ...] = (0.1, 1.0)
    """Shares of the ids that are not there."""
    dims: tuple[int, ...] = (32, 64, 100, 256)
    """Other dimensions, of tables of `dims_rows`."""
    dims_rows: int = 1 << 22
    dims_keys: tuple[int, ...] = (10_000, 1_000_000)
    pooled_ids: tuple[int, ...] = (20_000, 1_000_000)
    """Ids of all bags."""
    bags: tuple[int, ...] = (1, 20, 100)
    """Ids a bag."""
    hot: float = 0.1
    """Share of the rows that a tiered table keeps on the device."""
    graph_rows: int = 1 << 22
    """Of each of two versions in a table whose lookups are captured."""
    graph_keys: tuple[int, ...] = (64, 1_000, 10_000)
    """Ids a captured lookup."""
    graphs: int = 32
    """Captured, of a variant and number of ids."""
    most_batches: int = 128
    """Of a variant and cell."""
    batch_ids: int = 1 << 24
    """Ids in all batches of a variant and cell, unless these are fewer than eight batches."""
    rounds: int = 2
    """Times that each batch is looked up."""
    copied: int = 4 << 30
    """Bytes whose copy says what memory gives."""
    crossed: int = 1 << 30
    """Bytes whose copy says what the bus gives."""
    swap_rows: int = 1 << 21
    """Of each of two versions that are swapped."""
    swap_keys: tuple[int, ...] = (1_000, 100_000)
    """Ids a lookup meanwhile."""
    swaps: int = 3
    settle: float = 2.0
    """Seconds after a swap that still count as its."""
    market: tuple[int, int, int] = (5_000, 2_000, 40_000)
    """Users, items on sale and events a day of the SYNTHETIC market that models are trained on."""
    batch_size: int = 4096
    """Rows a step of a training."""
    steps: int = 300
    """Of a training."""
    entities: int = 250_000
    """Vectors of each series that a ranker reads."""

    @property
    def device(self) -> torch.device:
        import torch  # not needed by parts that only start programs

        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def tables(self) -> Path:
        """Folder of the store that the tables are loaded from."""
        return Path(os.environ[TABLES_VARIABLE])

    def batches(self, keys: int) -> int:
        """How many batches of so many ids are drawn."""
        return max(8, min(self.most_batches, self.batch_ids // max(keys, 1)))


def settings_of(out: Path, *, rehearse: bool, limit: float = 600.0) -> Settings:
    """Of a run on a GPU, or of a rehearsal."""
    if not rehearse:
        return Settings(out=out, limit=limit)
    return Settings(
        out=out,
        limit=limit,
        rehearse=True,
        rows=3_000,
        dim=16,
        keys=(10, 300),
        missing=(0.5,),
        dims=(5,),
        dims_rows=500,
        dims_keys=(20,),
        pooled_ids=(200,),
        bags=(1, 20),
        graph_rows=600,
        graph_keys=(10, 100),
        graphs=3,
        most_batches=2,
        batch_ids=600,
        rounds=1,
        copied=1 << 20,
        crossed=1 << 20,
        swap_rows=2_000,
        swap_keys=(100,),
        swaps=1,
        settle=0.2,
        market=(150, 150, 150),
        batch_size=64,
        steps=12,
        entities=2_000,
    )
