"""What callers give, checked at the border: integers, durations, devices, and tensors for native code to read."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedding_store.errors import InvalidArgumentError, StoreError


def integer(value: Any, name: str, *, least: int | None = None, most: int | None = None, why: str = "") -> int:
    """`value` as an int: any integer, NumPy's too, but no bool. `why` ends the message.

    Raises:
        InvalidArgumentError: another type, or outside `least` .. `most`; the message starts with `name`.
    """
    try:
        number = None if getattr(value, "dtype", type(value)) in (bool, torch.bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        wanted = "an integer" if least is None else f"{least} or more" if most is None else f"{least} .. {most}"
        raise InvalidArgumentError(f"{name} is {value!r}; use {wanted}{why}")
    return number


def real(
    value: Any, name: str, wanted: str, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> float:
    """`value` as a float. Raises InvalidArgumentError naming what is `wanted` unless it is finite, above `above`, at
    least `least` and at most `most`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > above and least <= number <= most):
        raise InvalidArgumentError(f"{name} is {value!r}; use {wanted}")
    return number


def device(value: torch.device | str) -> torch.device:
    """`value` as a device. Raises InvalidArgumentError if torch knows none of that name, or has no GPU of that number.

    Whether lookups work there is seen when a table is loaded.
    """
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError):
        raise InvalidArgumentError(f"device is {value!r}; use cpu or cuda, or cuda:1 for the second GPU") from None
    if found.type == "cuda" and torch.cuda.is_available() and (found.index or 0) >= torch.cuda.device_count():
        raise InvalidArgumentError(f"device is {value!r}; GPUs here: {torch.cuda.device_count()}, counted from cuda:0")
    return found


def cpu_tensor(array: Any, name: str, error: type[StoreError]) -> Tensor:
    """`array` as a plain tensor that native code can read: in CPU memory, without grad; dtype and shape as they are.

    Takes tensors on any device, NumPy arrays of any byte order and strides, and what torch makes tensors of; copies
    only what is not such a tensor yet.

    Raises:
        `error`: it holds no values (a meta or fake tensor), or not one after the other (sparse, nested).
    """
    tensor = array if isinstance(array, Tensor) else _from_array(array, name, error)
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else f"sparse ({tensor.layout})"
        raise error(f"{name} are {kind}: give a dense tensor, say {name}.to_dense()")
    if tensor.device.type == "meta" or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise error(f"{name} are a {type(tensor).__name__} on {tensor.device}: give a plain tensor that holds values")
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    tensor = tensor.as_subclass(Tensor).resolve_conj().resolve_neg()
    if not is_readable(tensor):
        raise error(f"{name} are a tensor without memory of its own: give a plain one, outside of torch.func and modes")
    return tensor


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in CPU memory where its `data_ptr()` and strides say."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_nested:
        return False
    try:
        return not (tensor.is_neg() or tensor.is_conj()) and (tensor.numel() == 0 or tensor.data_ptr() != 0)
    except RuntimeError:  # no storage: inside torch.func.vmap and the like
        return False


def _from_array(array: Any, name: str, error: type[StoreError]) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise error(f"{name} are a masked array: fill or leave out what is masked")
    try:
        if isinstance(array, np.ndarray):  # torch takes no other byte order, and nothing read-only or strided
            return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError, OverflowError) as cause:
        kind = f"a NumPy array of {array.dtype}" if isinstance(array, np.ndarray) else f"of type {type(array).__name__}"
        message = f"{name} are {kind}, of which torch makes no tensor: give a tensor or an array of numbers"
        raise error(message) from cause
