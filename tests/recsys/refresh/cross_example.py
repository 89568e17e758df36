"""Weighted sums of an entity's events, one event after the other."""

from __future__ import annotations

import torch
from torch import Tensor

Known = dict[str, dict[int, tuple[Tensor, int]]]
"""Owner -> id -> weighted sum of its events' vectors, and how many they are."""


def add(state: tuple[Tensor, int] | None, vector: Tensor, decay: float) -> tuple[Tensor, int]:
    """An entity's sum after one event more."""
    total, count = state or (torch.zeros_like(vector), 0)
    return total * decay + vector, count + 1


def mean(state: tuple[Tensor, int], decay: float) -> Tensor:
    return state[0] / sum(decay**age for age in range(state[1]))
