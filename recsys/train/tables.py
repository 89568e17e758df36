"""The first weights of embedding tables, the same however many ranks share a table."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from recsys.train.heartbeat import beat
from recsys.train.replicated import row_sums, table_of
from recsys.train.shards import local_parts, rows_written

M = TypeVar("M", bound=nn.Module)

_BLOCK_ROWS = 4096
"""Rows of one random stream. What a seed draws depends on it."""


@torch.no_grad()
def draw_tables(task: M, seed: int) -> M:
    """Draw every embedding table uniformly in its config's range.

    A row is a function of (seed, name of the table, number of the row) alone: a rank draws its own rows, and every
    number of ranks and every sharding begins with the same table. At most 4096 rows are held beside the tables.

    Args:
        task: sharded, see `recsys.train.sharding.shard`; or plain, whose tables get memory on the CPU first.
        seed: 0 or more.

    Returns:
        `task`.
    """
    with rows_written(task):
        for config, weight, first, column in _tables(task):
            done, columns = 0, slice(column, column + weight.shape[1])
            while done < len(weight):
                block, skipped = divmod(first + done, _BLOCK_ROWS)
                rows = _drawn(config, seed, block)[skipped : skipped + len(weight) - done, columns]
                weight[done : done + len(rows)] = rows
                done += len(rows)
                beat()
    return task


@torch.no_grad()
def renew_rows(task: nn.Module, rows: NDArray[np.int64], seed: int) -> None:
    """Let some rows of each table begin anew: as they were drawn, and nothing summed up by their optimizer.

    Args:
        task: sharded, see `recsys.train.sharding.shard`, or a part of it. Each rank renews those that it holds.
        rows: int64 [N], numbers of rows, ascending.
        seed: what the tables were drawn with.
    """
    with rows_written(task):
        for config, weight, first, column in _tables(task):
            columns = slice(column, column + weight.shape[1])
            mine = rows[(rows >= first) & (rows < first + len(weight))]
            for block in np.unique(mine // _BLOCK_ROWS):
                some = mine[mine // _BLOCK_ROWS == block]
                drawn = _drawn(config, seed, int(block))[some % _BLOCK_ROWS, columns]
                weight.index_copy_(0, torch.from_numpy(some - first).to(weight.device), drawn.to(weight))
    for sums, first in _accumulators(task):
        sums[rows[(rows >= first) & (rows < first + len(sums))] - first] = 0


def allocate(task: M) -> M:
    """Give the plain tables that are on "meta" memory on the CPU, whose content is to be loaded."""
    for module in list(task.modules()):
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection) and module.device.type == "meta":
            module.to_empty(device="cpu")._device = torch.device("cpu")
    return task


def _tables(task: nn.Module) -> Iterator[tuple[BaseEmbeddingConfig, Tensor, int, int]]:
    """Config, the part of the table [n, d] that this process holds, and the numbers of its first row and column."""
    for module in list(allocate(task).modules()):
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            for config, weight in zip(_configs(module), module.parameters(), strict=True):
                yield config, weight, 0, 0
        elif isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            configs = {config.name: config for config in _configs(module)}
            for key, value in module.state_dict().items():
                config = configs[table_of(key)]
                for local, (row, column) in local_parts(value):
                    yield config, local, row, column


def _drawn(config: BaseEmbeddingConfig, seed: int, block: int) -> Tensor:  # float32 [4096, dim]
    """A block of the rows that a table begins with."""
    low, high = config.get_weight_init_min(), config.get_weight_init_max()
    random = np.random.default_rng((seed, zlib.crc32(config.name.encode()), block))
    rows = random.random((_BLOCK_ROWS, config.embedding_dim), np.float32)
    return torch.from_numpy(rows * np.float32(high - low) + np.float32(low))


def _accumulators(task: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """What the tables' optimizer keeps of the rows [n] that this process holds, and the number of the first of them."""
    for module in task.modules():
        if isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            for state in module.fused_optimizer.state_dict()["state"].values():
                for value in state.values():
                    for local, (first, *_) in local_parts(value):
                        yield local, first
            yield from ((sums, 0) for sums in row_sums(module))


def _configs(module: nn.Module) -> list[BaseEmbeddingConfig]:
    """The configs of a collection's tables, in their order. Sharded collections have no public way to them."""
    return getattr(module, "_embedding_bag_configs" if hasattr(module, "embedding_bags") else "_embedding_configs")
