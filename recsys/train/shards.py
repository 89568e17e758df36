"""What of a table this rank has, however TorchRec hands it out: a sharded tensor, a DTensor (2D), or whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


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


def lookups(module: nn.Module) -> Iterator[nn.Module]:
    """TorchRec's lookups of all sharded collections in a module, those that are data-parallel as these wrap them. They
    are in lists, which `modules` does not look into."""
    return (lookup for each in module.modules() for lookup in getattr(each, "_lookups", ()))


@contextmanager
def rows_written(module: nn.Module) -> Iterator[None]:
    """Tables of a module may be written within, other than by their optimizer: what a GPU caches of a table in the
    host's memory (`fused_uvm_caching`) is put back there before, and read anew after."""
    found: list[Any] = [x.module if isinstance(x, DistributedDataParallel) else x for x in lookups(module)]
    for lookup in found:
        lookup.flush()
    yield
    for lookup in found:
        lookup.purge()
