"""Host memory in huge pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

_WIPE_ON_FORK = 18  # MADV_WIPEONFORK, for which Python has no name


def in_huge_pages(count: int, *, inherited: bool = True) -> Tensor:
    """uint8 [count], zeros, in huge pages where the system gives them: random rows of many GB need fewer translations
    then, on a GPU's side of the bus as on the CPU's. The pages live as long as the tensor's storage.

    Forked children share them; or, not `inherited`, have zeros there. Pages that a GPU may read stay where they are, so
    that Linux copies them for a child at once: each worker of a DataLoader would take as much memory again.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE)  # shared memory has huge pages hardly anywhere
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        for advice in (mmap.MADV_HUGEPAGE, *([] if inherited else [_WIPE_ON_FORK])):
            with suppress(OSError):  # a kernel without one of them
                pages.madvise(advice)
    return torch.from_numpy(np.frombuffer(pages, np.uint8))
