"""How many test rows a report has the predictions of at once: all, or where there are very many those of some users.

A report is measured by one process. What it reads of the ranks' predictions is bounded: of more than MOST_ROWS test
rows those of a share of the users, chosen by a hash of their ids, the same ones for every ranker and task. So an arm is
still compared with another on the same rows, all rows of a user stay together, and the intervals are those of the users
that are measured. Smaller studies are measured whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.hashing import splitmix64

MOST_ROWS = 2**24
"""Test rows of which everything is measured: 64 MB a ranker and task, and some 2 GB while they are drawn from."""


@dataclass(frozen=True)
class Sample:
    """Users, by a hash of their ids."""

    share: float = 1.0
    """Of all."""

    @property
    def is_whole(self) -> bool:
        """Whether it is everybody."""
        return self.share >= 1

    def of(
        self,
        users: NDArray[np.int64],  # [N]
    ) -> NDArray[np.bool_]:
        """Which rows are of users that are measured, bool [N]."""
        if self.is_whole:
            return np.ones(len(users), bool)
        return splitmix64(users.view(np.uint64)) < np.uint64(int(self.share * 2**64))


def sample_of(rows: int) -> Sample:
    """That of which a report of so many test rows is made."""
    return Sample(min(1.0, MOST_ROWS / max(1, rows)))
