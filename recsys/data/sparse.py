"""The columns of a batch's `KeyedJaggedTensor`, as NumPy has them on the CPU, where batches are made."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Ints = NDArray[np.int64]
Columns = Mapping[str, tuple[Ints, Ints]]
"""Key -> values [sum(lengths)] and lengths [B]."""


def columns(sparse: KeyedJaggedTensor) -> dict[str, tuple[Ints, Ints]]:
    """Values and lengths of each key, views of the batch's."""
    keys = sparse.keys()
    lengths = sparse.lengths().numpy().reshape(len(keys), -1)
    values, bounds = sparse.values().numpy(), sparse.offset_per_key()
    return {key: (values[bounds[at] : bounds[at + 1]], lengths[at]) for at, key in enumerate(keys)}


def keyed(parts: Columns, rows: int) -> KeyedJaggedTensor:
    """Keys in this order, of so many rows each; the values are copied."""
    nothing = [np.zeros(0, np.int64)]
    sizes = [len(values) for values, _ in parts.values()]
    return KeyedJaggedTensor(
        keys=list(parts),
        values=torch.from_numpy(np.concatenate([values for values, _ in parts.values()] or nothing)),
        lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in parts.values()] or nothing)),
        stride=rows,
        # Known here for nothing; computed later from a tensor on the GPU they would cost a synchronisation.
        length_per_key=sizes,
        offset_per_key=np.cumsum([0, *sizes]).tolist(),
    )
