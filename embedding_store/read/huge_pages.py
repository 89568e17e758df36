"""Host memory in huge pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor


def in_huge_pages(count: int) -> Tensor:
    """uint8 [count], zeros, in huge pages where the system gives them: random rows of many GB need fewer translations
    then, on a GPU's side of the bus as on the CPU's. The pages live as long as the tensor's storage."""
    if count == 0:
        return torch.empty(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE)  # shared memory has huge pages hardly anywhere
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, np.uint8))
