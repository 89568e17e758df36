"""SplitMix64 by Steele, Lea and Flood over whole arrays: numbers that are neighbours end up anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first draw of generators that begin at these numbers, uint64 [N]; a bijection."""
    return _mix(x + _GAMMA)


def scramble(index: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """Draws number `index + salt` of the generator that begins at 0, int64 [N]; a bijection.

    So ids are what real ones are: sparse, large, negative.
    """
    with np.errstate(over="ignore"):
        return _mix((index.astype(np.uint64) + np.uint64(salt)) * _GAMMA).view(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The generator's last step, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
