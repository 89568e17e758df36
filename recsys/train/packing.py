"""Small tensors of a checkpoint, together: one by name takes a millisecond to write, and one to read.

A model has hundreds of them, its optimizer three times as many. They lie one after another in flat tensors, one for
each part of the state and each dtype; `packed.json`, a file of the checkpoint, has their names and shapes in this
order. It is no matter how many ranks wrote them, nor whether those that read them want a whole tensor or a part of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from recsys.train.shards import is_sharded, local_parts

LAYOUT = "packed.json"
"""The file of a checkpoint that has its layout."""
PACKS = "packed"
"""The part of a saved state that is made here."""
SMALL_BYTES = 256 * 2**10
"""Tensors of more keep their names: their bytes take longer than that."""
_PARTS = ("model.", "optimizer.")
"""What every rank has alike, and has much of."""

State = dict[str, Any]
Layout = dict[str, dict[str, tuple[int, ...]]]
"""Key of a flat tensor, `<part>.<dtype>` -> name and shape of each tensor in it, in the order in which they lie."""


def packed(state: State) -> tuple[State, Layout]:
    """A state with its small tensors together in the host's memory, and where they are.

    Args:
        state: part -> tensors by name, or by name and key. Every rank has the same small ones under the same names.
    """
    named, small = _divided(state, _is_small)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in small.items():
        groups.setdefault(f"{name.partition('.')[0]}.{str(value.dtype).removeprefix('torch.')}", {})[name] = value
    if not groups:
        return named, {}
    packs = {key: torch.cat([x.detach().reshape(-1).cpu() for x in group.values()]) for key, group in groups.items()}
    layout = {key: {name: tuple(x.shape) for name, x in group.items()} for key, group in groups.items()}
    return {**named, PACKS: packs}, layout


def unpacked(state: State, layout: Layout, load: Callable[[State], None]) -> None:
    """Load a state in place.

    Args:
        state: that to load into; the shapes are known to be those of the layout.
        layout: of the checkpoint.
        load: fills a state, of flat tensors and what is saved by name, in place.
    """
    names = shapes(layout)
    named, small = _divided(state, lambda name, _: name in names)
    packs = {
        key: torch.empty(sum(map(math.prod, group.values())), dtype=getattr(torch, key.rpartition(".")[2]))
        for key, group in layout.items()
        if not group.keys().isdisjoint(small)
    }
    load({**named, PACKS: packs} if packs else named)
    for key, pack in packs.items():
        values = pack.split([math.prod(shape) for shape in layout[key].values()])
        for (name, shape), value in zip(layout[key].items(), values, strict=True):
            if name in small:
                _fill(small[name], value.view(shape))


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name of a packed tensor -> its shape."""
    return {name: shape for group in layout.values() for name, shape in group.items()}


def written(layout: Layout) -> str:
    """The text of `packed.json`."""
    return json.dumps(layout)


def read(text: str) -> Layout:
    """The layout of such a text. Raises ValueError if it is none."""
    found = json.loads(text)
    return {key: {name: tuple(shape) for name, shape in group.items()} for key, group in found.items()}


@torch.no_grad()
def _fill(value: Any, whole: Tensor) -> None:
    """Copy what of a tensor is here."""
    for part, start in local_parts(value):
        part.detach().copy_(whole[tuple(slice(at, at + size) for at, size in zip(start, part.shape, strict=True))])


def _is_small(name: str, value: Any) -> bool:
    return (
        name.startswith(_PARTS) and isinstance(value, Tensor) and not is_sharded(value) and value.nbytes <= SMALL_BYTES
    )


def _divided(
    entries: Mapping[str, Any], chosen: Callable[[str, Any], bool], prefix: str = ""
) -> tuple[State, dict[str, Any]]:
    """A state without the values that are chosen by name and value, and these by name."""
    left: State = {}
    taken: dict[str, Any] = {}
    for key, value in entries.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rest, found = _divided(value, chosen, f"{name}.")
            taken |= found
            left |= {key: rest} if rest else {}  # an empty one is saved, but never found
        elif chosen(name, value):
            taken[name] = value
        else:
            left[key] = value
    return left, taken
