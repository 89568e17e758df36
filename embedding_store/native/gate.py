"""Two slots of memory whose addresses stay: readers use the current one, a writer fills the other and makes it current.

A captured CUDA graph keeps the addresses and the order of what it does, and nothing else. So what changes is told in
the device's memory, and who reads what as well:

    gate  int64 [3]     the current slot, 0 or 1, and how many readers are in each
    rows  int64 [2, N]  the numbers of what lies in each slot, say layouts

1. A reader enters: it reads the current slot, counts itself in, and reads the slot again; if that has changed
   meanwhile it counts itself out and begins anew. From here on it uses the numbers it was given, all of one slot,
   whatever becomes current. Then it leaves: it counts itself out. Both are ops on the reader's stream, so that all that
   is issued there between the two is covered, when it runs, captured or not.
2. The writer waits until nobody is in the slot that is not current; fills it; writes its numbers; then, when all of
   that is done, writes the current slot: one word of which one byte changes, so that no half of it is ever read.
3. All accesses to the gate are sequentially consistent. If the writer, after it has made another slot current, finds
   that nobody is in the one that was, then whoever counts itself in later sees the other one when it reads again, and
   goes without having read more. Such a reader counts for a moment, which makes a writer wait, never a reader.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedding_store.native.library import library

library()


def enter(
    gate: Tensor,  # int64 [3], changed
    rows: Tensor,  # int64 [2, N], on the device of the gate
) -> Tensor:
    """The numbers of the current slot, and which one that is: int64 [N + 1]. The slot stays as it is until `leave`."""
    return torch.ops.embedding_store.enter(gate, rows)


def leave(
    gate: Tensor,  # int64 [3], changed
    row: Tensor,  # int64 [N + 1], of `enter`
) -> None:
    """What `enter` let in is out, when all that was issued on the current stream before is done."""
    torch.ops.embedding_store.leave(gate, row)


@torch.library.register_fake("embedding_store::enter")
def _(gate: Tensor, rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[1] + 1)


@torch.library.register_fake("embedding_store::leave")
def _(gate: Tensor, row: Tensor) -> None:
    return None
