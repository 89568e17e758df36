"""Which operations of a computation a GPU's host would wait for: those whose result, or its size, is read off the data.

On a CPU the same operations run, so that they are found without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAIT = {
    "_local_scalar_dense",  # item(), bool(), int(), float()
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "bincount",
    "is_nonzero",
    "equal",
}


class HostReads(TorchDispatchMode):
    """Within it `found` has the names of such operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__.split(".")[0], kwargs or {}
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in _WAIT or by_mask or unsized:
            self.found.append(name)
        return func(*args, **kwargs)
