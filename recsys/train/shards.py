"""What of a table this rank has, however TorchRec hands it out: a sharded tensor, a DTensor (2D), or whole."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor


def is_sharded(value: Any) -> bool:
    """Whether ranks have parts of it."""
    return isinstance(value, ShardedTensor | DTensor)


def local_parts(value: Any) -> list[tuple[Tensor, tuple[int, ...]]]:
    """This rank's parts of a value of a state dict, and where each begins in the whole."""
    if isinstance(value, ShardedTensor):
        return [(local.tensor, tuple(local.metadata.shard_offsets)) for local in value.local_shards()]
    if isinstance(value, DTensor):
        wrapped: Any = value.to_local()  # TorchRec's LocalShardsWrapper; one without shards has an offset all the same
        return [(x, tuple(at)) for x, at in zip(wrapped.local_shards(), wrapped.local_offsets(), strict=False)]
    return [(value, (0,) * value.dim())]
