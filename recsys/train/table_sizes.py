"""The embedding tables of a task that is not sharded yet: how large they are, and how often they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

IDS_A_ROW = "ids_a_row"
"""Attribute of a collection: feature -> how many ids a row of a batch has of it, at most. Left out, it is one."""


@dataclass(frozen=True)
class TableSize:
    """One embedding table and the memory it takes while training."""

    name: str
    rows: int
    dim: int
    pooled: bool = True
    """Whether its rows are pooled to one for each event, those of a sequence are not."""
    itemsize: int = 4
    """Bytes of a weight."""
    ids_a_row: tuple[float, ...] = (1.0,)
    """Of each feature that reads it, how many ids a row of a batch has at most."""

    @property
    def bytes(self) -> int:
        """Weights, and the one float32 a row that row-wise Adagrad keeps."""
        return self.rows * (self.dim * self.itemsize + 4)


def table_sizes(task: nn.Module) -> list[TableSize]:
    """The embedding tables of a task that is not sharded yet, largest first."""
    sizes = [size for module in task.modules() for size in sizes_of(module)]
    return sorted(sizes, key=lambda size: -size.bytes)


def sizes_of(module: nn.Module) -> list[TableSize]:
    """The tables of a collection; none of what is no collection."""
    known, pooled = getattr(module, IDS_A_ROW, {}), isinstance(module, EmbeddingBagCollection)
    return [
        TableSize(
            config.name,
            config.num_embeddings,
            config.embedding_dim,
            pooled,
            2 if config.data_type is DataType.FP16 else 4,
            tuple(float(known.get(name, 1)) for name in config.feature_names),
        )
        for config, _ in _tables(module)
    ]


def halve(task: nn.Module, names: Iterable[str]) -> None:
    """Let these tables have float16 weights; they are on "meta" yet."""
    names = set(names)
    for module in task.modules():
        for config, table in _tables(module):
            if config.name in names:
                config.data_type = DataType.FP16
                shape = (config.num_embeddings, config.embedding_dim)
                table.weight = nn.Parameter(torch.empty(shape, dtype=torch.float16, device="meta"))


def _tables(module: nn.Module) -> Iterator[tuple[BaseEmbeddingConfig, nn.Module]]:
    """The tables of a collection, with their configs."""
    if isinstance(module, EmbeddingBagCollection):
        yield from ((config, module.embedding_bags[config.name]) for config in module.embedding_bag_configs())
    elif isinstance(module, EmbeddingCollection):
        yield from ((config, module.embeddings[config.name]) for config in module.embedding_configs())
