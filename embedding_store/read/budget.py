"""How much of a GPU's memory a series may take, and which rows it should hold: arguments checked at the border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from embedding_store.arguments import integer
from embedding_store.errors import InvalidArgumentError, InvalidIdsError

_Value = TypeVar("_Value")


class Budget(NamedTuple):
    """Of one series."""

    gpu_bytes: int
    """For index and rows in the device's memory."""
    hot_ids: Tensor | None = None
    """int64 [H], the most important first: whose rows should be there. None: any."""


def budget_of(gpu_bytes: Any, hot_ids: Any, name: str | None = None) -> Budget | None:
    """The arguments of one series, checked; None without a budget. `name` is for messages, where there are several.

    Raises:
        InvalidArgumentError: `gpu_bytes` is no integer or below 0, or there are `hot_ids` without it.
        InvalidIdsError: `hot_ids` are not an int64 tensor [H].
    """
    of = "" if name is None else f"[{name!r}]"
    if gpu_bytes is None:
        if hot_ids is not None:
            message = f"hot_ids{of} are given without gpu_bytes{of}: say how many bytes may hold their rows"
            raise InvalidArgumentError(message)
        return None
    bytes = integer(gpu_bytes, f"gpu_bytes{of}", least=0, why=" bytes")
    if hot_ids is not None and not (isinstance(hot_ids, Tensor) and hot_ids.dtype == torch.int64 and hot_ids.ndim == 1):
        kind = (
            f"{hot_ids.dtype} {list(hot_ids.shape)}" if isinstance(hot_ids, Tensor) else f"a {type(hot_ids).__name__}"
        )
        raise InvalidIdsError(f"hot_ids{of} are {kind}: give int64 [H], the most important first")
    return Budget(bytes, hot_ids)


def budgets(
    names: Sequence[str], gpu_bytes: int | Mapping[str, int] | None, hot_ids: Tensor | Mapping[str, Tensor] | None
) -> dict[str, Budget]:
    """The budget of each of several series, without those that have none.

    Raises:
        InvalidArgumentError, InvalidIdsError: as `budget_of`; one value is given for several series, or one for a
            series that is not among `names`.
    """
    bytes, ids = _by_name(names, gpu_bytes, "gpu_bytes"), _by_name(names, hot_ids, "hot_ids")
    one = len(names) == 1
    found = {name: budget_of(bytes.get(name), ids.get(name), None if one else name) for name in names}
    return {name: budget for name, budget in found.items() if budget is not None}


def _by_name(names: Sequence[str], value: _Value | Mapping[str, _Value] | None, what: str) -> Mapping[str, _Value]:
    """Each series' own value."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        if len(names) != 1:
            each = ", ".join(f"{name!r}: ..." for name in names)
            raise InvalidArgumentError(f"{what} is one for {len(names)} series: give each its own, {{{each}}}")
        return {names[0]: value}
    if unknown := [name for name in value if name not in names]:
        raise InvalidArgumentError(f"{what} names {unknown[0]!r}; use {', '.join(names)}")
    return value
