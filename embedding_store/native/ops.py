"""The ops `torch.ops.embedding_store.lookup`, `_versions`, `_history`, `_pooled`, `_tiered`, `_pooled_tiered`,
`locate`, `nearest`, `distinct` and `gather`: fakes and gradients.

Importing this module loads the native library. Schemas and registrations are in csrc/common/ops.cpp, the same functions
in plain PyTorch in reference.py. A loaded table is two tensors, so that ops see nothing of files and snapshots:

    storage  uint8 [bytes]        index and rows, mapped from the files or copied to a device
    layout   int64 [8 + 4 * S]    where they lie in it: byte offset of bucket 0, home buckets, total buckets, seed, S,
                                  bytes from a row to the next one (below), 0, 0 (1: index and overlay lie in the cold
                                  part of a tiered table, not in storage), then for each segment the byte offsets of
                                  its first row's values, scale and offset (-1 unless quantised) and its number of rows
             int64 [8 + 4 * S + 4]    with an overlay: layout[6] is 1, and the last four numbers are those of its index,
                                      as the first four; what it has of an id counts, -2 being the location of none

Rows lie in one of two forms. Where layout[5] is 0, as in a file: three columns without gaps. (4, in programs that
earlier versions exported, says the same.) In a copy of quantised rows, as FBGEMM has them: in front of a row's values
its scale and offset, float32 each, so that one access fetches all three; layout[5] is the distance of rows, a multiple
of 8, as is the byte offset of the first values, which are 8 and 4 bytes behind the first scale and offset.

On a CUDA device S is 3 at most, 2 with an overlay (`upload` makes hot and cold rows of all). There `layout` may be a
CPU tensor, whose numbers become parameters of the kernel, or one on the device, from which the kernel reads them when
it runs: in a captured graph, whose table may be another one by then. Those on the CPU are checked at every call: index
and rows lie within `storage` and `cold`, buckets and rows at multiples of 16 bytes, quantised rows of 8. Those on the
device, which the host does not know, are trusted to lie there; a kernel reads no row and no bucket beyond as many as
they say.

On the CPU the memory of a large result (8 MiB and more) is kept for the next one when the tensor is gone, up to 128 MiB
a process: zeroing fresh memory would take longer than the lookup.

Wrong arguments raise ValueError, too little memory MemoryError. What is wrong with stored bytes raises RuntimeError, to
which `Table` gives the class of embedding_store.errors that its message begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embedding_store.native.library import library

library()


def lookup(
    ids: Tensor,  # int64 [...], any values
    storage: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Vectors `out` [..., dim] and found bool [...]; zeros where an id is not in the index.

    `dtype` is how rows are stored: float32, float16, bfloat16, int8 or int4; `out` float32, float16 or bfloat16.
    """
    return torch.ops.embedding_store.lookup.default(ids, storage, layout, dim, dtype, out)


def lookup_versions(
    ids: Tensor,  # int64 [...], any values
    choice: Tensor,  # int64 [...]: for each id the table to look into, 0 to T - 1, or -1: none
    storages: Sequence[Tensor],  # T >= 1 of uint8 [bytes]
    layouts: Sequence[Tensor],  # T of int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """As `lookup`, each id in a table of its own, say the version of a series that its time may see.

    Other numbers in `choice` are refused on the CPU; on a GPU, where nothing waits to see them, they are as -1. There
    the numbers of the layouts, which may be on the CPU, and the addresses of the tables are copied to it at each call.
    """
    return torch.ops.embedding_store.lookup_versions(ids, choice, storages, layouts, dim, dtype, out)


def lookup_history(
    ids: Tensor,  # int64 [...], any values
    timestamps: Tensor,  # int64 [...]
    newest: Tensor,  # int64 [...]: for each id the newest version that it may see, 0 to V - 1, or -1: none
    as_of: Tensor,  # int64 [V], of each version, oldest first
    numbers: Tensor,  # int64 [V]: for each version its table, 0 to T - 1, or -1: not to be looked into
    storages: Sequence[Tensor],  # T >= 1 of uint8 [bytes]
    layouts: Sequence[Tensor],  # T of int64 [8 + 4 * S]
    k: int,  # 1 .. 4096
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lookup`, each id in k versions: `newest` and those before it.

    Vectors `out` [..., k, dim], mask bool [..., k] and ages int64 [..., k], which are `timestamps` - `as_of`, at most
    int64's largest; zeros and False where there is no such version, it has no table, or the id is not in it. What is
    refused, and where the tables' numbers and addresses come from, is as in `lookup_versions`: on a GPU another number
    in `newest` or `numbers` is as -1.
    """
    return torch.ops.embedding_store.lookup_history(
        ids, timestamps, newest, as_of, numbers, storages, layouts, k, dim, dtype, out
    )


def lookup_pooled(
    ids: Tensor,  # int64 [N], any values
    offsets: Tensor,  # int64 [B + 1], from 0 to N, never falling
    weights: Tensor | None,  # float32 [N]
    storage: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    mode: str = "sum",
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Pooled `out` [B, dim], accumulated in float32, and found int64 [B], the number of found ids in each bag.

    Bag b holds ids[offsets[b] : offsets[b + 1]]. `mode` is "sum" or "mean", the sum (weighted if there are weights)
    divided by the number of found ids; zeros for a bag without any. Differentiable with respect to `weights`. The same
    arguments give the same bits, on a GPU too.

    Offsets that do not rise from 0 to N are refused on the CPU. A GPU sees them when it looks up, for which nothing
    waits: every value is NaN then, and every number of found ids -1; the gradient is NaN, too.
    """
    return torch.ops.embedding_store.lookup_pooled(ids, offsets, weights, storage, layout, dim, dtype, mode, out)


def lookup_pooled_tiered(
    ids: Tensor,  # int64 [N], any values
    offsets: Tensor,  # int64 [B + 1], from 0 to N, never falling
    weights: Tensor | None,  # float32 [N]
    storage: Tensor,  # uint8 [bytes]: the index and segment 0, on the device of the ids
    cold: Tensor,  # uint8 [bytes]: all other segments; for CUDA, pinned host memory
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    mode: str = "sum",
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lookup_pooled`, with rows in two places. The third result, int64 [4], is what `lookup_tiered` adds to its
    counters: how many ids were found in `storage`, in `cold` and not at all, and rows read from `cold`, of which CUDA
    reads one once for many ids; zeros if a GPU got bad offsets."""
    return torch.ops.embedding_store.lookup_pooled_tiered(
        ids, offsets, weights, storage, cold, layout, dim, dtype, mode, out
    )


def lookup_tiered(
    ids: Tensor,  # int64 [...], any values
    storage: Tensor,  # uint8 [bytes]: the index and segment 0, on the device of the ids
    cold: Tensor,  # uint8 [bytes]: all other segments, and the index if layout[7] is 1; for CUDA, pinned host memory
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    out: torch.dtype,
    counters: Tensor,  # int64 [4], added to: ids found in `storage`, in `cold`, not found; rows read from `cold`
) -> tuple[Tensor, Tensor]:
    """As `lookup`, with rows in two places. On CUDA a cold row of many ids is read once: the last of the counters."""
    return torch.ops.embedding_store.lookup_tiered(ids, storage, cold, layout, dim, dtype, out, counters)


def locate(
    ids: Tensor,  # int64 [...], any values
    storage: Tensor,  # uint8 [bytes]: what holds the index
    layout: Tensor,  # int64 [8 + 4 * S]; segments are not looked at: S may be 0
) -> Tensor:
    """The location of each id, int64 [...]: segment << 40 | row; -1 where an id is not in the index."""
    return torch.ops.embedding_store.locate(ids, storage, layout)


def nearest(
    users: Tensor,  # float32 [U, D]
    items: Tensor,  # float32 [N, D]
    k: int,
    without_users: Tensor,  # int64 [P], rows of users: with
    without_items: Tensor,  # int64 [P], the rows of items that they must not get
) -> tuple[Tensor, Tensor]:
    """Rows int64 [U, min(k, N)] of the items of greatest inner product with each user, best first, and these float32.

    -1 and -inf where a user has fewer, scores of -inf and NaN left out too. Of equal scores the first rows win. The
    same bits whatever else is asked for, and on any number of threads. CPU only.
    """
    return torch.ops.embedding_store.nearest(users, items, k, without_users, without_items)


def distinct(
    ids: Tensor,  # int64 [...], any values
    parts: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The M different ids, int64 [M], part after part: an id is of part (h * parts) >> 64 of its hash h of seed 0; how
    many are of each part, int64 [parts]; and where among the M each id is, int64 [...]. CPU only."""
    return torch.ops.embedding_store.distinct(ids, parts)


def gather(
    places: Tensor,  # int64 [...]: a record of `own`, or after those of `received`; negative: none
    own: Tensor,  # uint8 [A, R]
    received: Tensor,  # uint8 [B, R]
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Vectors `out` [..., dim] and found bool [...] of rows that lie here and there; zeros where there is none.

    A record is a row with all that belongs to it: the stored vector, zeros up to a multiple of 4 bytes, scale and
    offset if it is quantised, and four bytes that are all 0 only where there is no row. CPU only.
    """
    return torch.ops.embedding_store.gather(places, own, received, dim, dtype, out)


@torch.library.register_fake("embedding_store::lookup")
def _(ids: Tensor, storage: Tensor, layout: Tensor, dim: int, dtype: str, out: torch.dtype) -> tuple[Tensor, Tensor]:
    return ids.new_empty((*ids.shape, dim), dtype=out), ids.new_empty(ids.shape, dtype=torch.bool)


@torch.library.register_fake("embedding_store::lookup_versions")
def _(
    ids: Tensor,
    choice: Tensor,
    storages: Sequence[Tensor],
    layouts: Sequence[Tensor],
    dim: int,
    dtype: str,
    out: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return ids.new_empty((*ids.shape, dim), dtype=out), ids.new_empty(ids.shape, dtype=torch.bool)


@torch.library.register_fake("embedding_store::lookup_history")
def _(
    ids: Tensor,
    timestamps: Tensor,
    newest: Tensor,
    as_of: Tensor,
    numbers: Tensor,
    storages: Sequence[Tensor],
    layouts: Sequence[Tensor],
    k: int,
    dim: int,
    dtype: str,
    out: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    places = (*ids.shape, k)
    return (
        ids.new_empty((*places, dim), dtype=out),
        ids.new_empty(places, dtype=torch.bool),
        ids.new_empty(places),
    )


@torch.library.register_fake("embedding_store::lookup_tiered")
def _(
    ids: Tensor,
    storage: Tensor,
    cold: Tensor,
    layout: Tensor,
    dim: int,
    dtype: str,
    out: torch.dtype,
    counters: Tensor,
) -> tuple[Tensor, Tensor]:
    return ids.new_empty((*ids.shape, dim), dtype=out), ids.new_empty(ids.shape, dtype=torch.bool)


@torch.library.register_fake("embedding_store::lookup_pooled")
def _(
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    storage: Tensor,
    layout: Tensor,
    dim: int,
    dtype: str,
    mode: str,
    out: torch.dtype,
) -> tuple[Tensor, Tensor]:
    bags = offsets.shape[0] - 1
    return ids.new_empty((bags, dim), dtype=out), ids.new_empty((bags,))


@torch.library.register_fake("embedding_store::lookup_pooled_tiered")
def _(
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    storage: Tensor,
    cold: Tensor,
    layout: Tensor,
    dim: int,
    dtype: str,
    mode: str,
    out: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    bags = offsets.shape[0] - 1
    return ids.new_empty((bags, dim), dtype=out), ids.new_empty((bags,)), ids.new_empty((4,))


@torch.library.register_fake("embedding_store::locate")
def _(ids: Tensor, storage: Tensor, layout: Tensor) -> Tensor:
    return ids.new_empty(ids.shape)


@torch.library.register_fake("embedding_store::distinct")
def _(ids: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    found = ids.new_empty(torch.library.get_ctx().new_dynamic_size())
    return found, ids.new_empty(parts), ids.new_empty(ids.shape)


@torch.library.register_fake("embedding_store::gather")
def _(places: Tensor, own: Tensor, received: Tensor, dim: int, dtype: str, out: torch.dtype) -> tuple[Tensor, Tensor]:
    return places.new_empty((*places.shape, dim), dtype=out), places.new_empty(places.shape, dtype=torch.bool)


@torch.library.register_fake("embedding_store::nearest")
def _(users: Tensor, items: Tensor, k: int, without_users: Tensor, without_items: Tensor) -> tuple[Tensor, Tensor]:
    shape = (users.shape[0], min(k, items.shape[0]))
    return users.new_empty(shape, dtype=torch.int64), users.new_empty(shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ids, offsets, _, storage, layout, ctx.dim, ctx.dtype, ctx.mode, _ = inputs
    ctx.save_for_backward(ids, offsets, storage, layout, output[1])
    ctx.mark_non_differentiable(output[1])


def _weights_gradient(ctx: Any, pooled_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    ids, offsets, storage, layout, found = ctx.saved_tensors
    vectors, _ = torch.ops.embedding_store.lookup(ids, storage, layout, ctx.dim, ctx.dtype, torch.float32)
    return None, None, _gradient(pooled_gradient, vectors, offsets, found, ctx.mode), *[None] * 6


def _save_tiered_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ids, offsets, _, storage, cold, layout, ctx.dim, ctx.dtype, ctx.mode, _ = inputs
    ctx.save_for_backward(ids, offsets, storage, cold, layout, output[1])
    ctx.mark_non_differentiable(*output[1:])


def _tiered_weights_gradient(ctx: Any, pooled_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    ids, offsets, storage, cold, layout, found = ctx.saved_tensors
    counters = ids.new_zeros(4)  # nobody asked for these
    vectors, _ = torch.ops.embedding_store.lookup_tiered(
        ids, storage, cold, layout, ctx.dim, ctx.dtype, torch.float32, counters
    )
    return None, None, _gradient(pooled_gradient, vectors, offsets, found, ctx.mode), *[None] * 7


def _gradient(
    pooled_gradient: Tensor,  # [B, dim]
    vectors: Tensor,  # float32 [N, dim]
    offsets: Tensor,  # int64 [B + 1]
    found: Tensor,  # int64 [B]
    mode: str,
) -> Tensor:  # float32 [N]
    """d pooled / d weight = the id's vector, over the number found for a mean. NaN where offsets were bad."""
    gradient = pooled_gradient.to(torch.float32)
    if mode == "mean":
        gradient = gradient / found.clamp(min=1)[:, None]
    # Not repeat_interleave, which ends the process's use of the GPU if offsets fall.
    places = torch.arange(vectors.shape[0], device=offsets.device)
    bags = (torch.searchsorted(offsets.contiguous(), places, right=True) - 1).clamp(0, found.shape[0] - 1)
    return (gradient[bags] * vectors).sum(1).masked_fill(found[bags] < 0, torch.nan)


_PREFIX = "embedding_store::lookup_pooled"
torch.library.register_autograd(_PREFIX, _weights_gradient, setup_context=_save_for_backward)
torch.library.register_autograd(f"{_PREFIX}_tiered", _tiered_weights_gradient, setup_context=_save_tiered_for_backward)
