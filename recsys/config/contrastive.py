"""Upstreams of kind `contrastive`: large tables of ids, taught by who chose what and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recsys.config.rules import require


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Tables of users, items and other ids alone, and the inner product of a user's and an item's vector: the first
    facet of MFLET (arXiv 2508.05700). Losses and sizes are published nowhere; ours are those of `[loss]`."""

    IDS: ClassVar = ("own", "hashed", "managed")
    JOINS: ClassVar = ("concatenated", "summed")

    dim: int = 64
    """D, the dimension of user and item vectors and of every table."""
    ids: str = "own"
    """How users and items find their rows. `own`: an id of the training has a row that no other id reads, all others
    share one, "unknown". `hashed`: an id reads a row of each of several tables (PinFM's 8), so that tables may have
    fewer rows than there are ids, and every id, whether seen or not, has a vector of its own. `managed`: as `own`, by
    TorchRec's managed collision (MPZCH): a table may be nearly full, no two ids are ever taken for one, and ids may
    have a time to live. Who owns which row takes 16 bytes a row on every rank, of `own` ids 2."""
    time_to_live_hours: int = 0
    """Of `managed` ids: one that no training had for longer gives its row back, which begins anew; 0: never. The clock
    is that of events: an id was seen when the newest event of a training was that had it."""
    sub_tables: int = 8
    """Of `hashed` ids: tables of as many rows as the schema gives the id, each read by a hash of its own."""
    join: str = "concatenated"
    """Of `hashed` ids: how a vector is made of their rows. `concatenated`: each has a part of the D columns. `summed`:
    each has all of them, which takes `sub_tables` times the memory."""
    id_dropout: float = 0.1
    """Of `own` and `managed` ids: share of the training rows whose user, and of those whose item, is read as
    unknown."""
    max_collisions: float = 0.05
    """Greatest share of the training's ids that may be without a row of their own: more of them are refused before
    anything is trained. A hashed id is without one where each of its rows is another id's too."""

    def __post_init__(self) -> None:
        for name, known in (("ids", self.IDS), ("join", self.JOINS)):
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; use one of {', '.join(known)}")
        for name in ("dim", "sub_tables"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use 1 or more")
        hours = self.time_to_live_hours
        require(hours >= 0, f"time_to_live_hours is {hours}; use 0 for ever, or 1 or more")
        require(not hours or self.ids == "managed", f"time_to_live_hours is {hours}; only ids = 'managed' have one")
        require(self.row_dim % 4 == 0 and self.row_dim * self.parts == self.dim, self._widths())
        require(0 <= self.id_dropout < 1, f"id_dropout is {self.id_dropout}; use 0 <= id_dropout < 1")
        require(0 <= self.max_collisions <= 1, f"max_collisions is {self.max_collisions}; use a share from 0 to 1")

    @property
    def vector_dim(self) -> int:
        """D, the dimension of user and item vectors."""
        return self.dim

    @property
    def rows_an_id(self) -> int:
        """Rows that a user's or an item's id reads."""
        return self.sub_tables if self.ids == "hashed" else 1

    @property
    def parts(self) -> int:
        """Parts that a vector is put together of, side by side."""
        return self.sub_tables if self.ids == "hashed" and self.join == "concatenated" else 1

    @property
    def row_dim(self) -> int:
        """Columns of the rows of users and items."""
        return self.dim // self.parts

    def _widths(self) -> str:
        if self.parts == 1:
            return f"dim is {self.dim}; tables need a multiple of 4"
        return (
            f"dim is {self.dim}, of {self.parts} sub-tables: each gets a part of its columns, which must be a multiple "
            f"of 4: use a multiple of {4 * self.parts}, fewer sub_tables, or join = 'summed'"
        )
