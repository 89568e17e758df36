"""Rows that ids own for as long as they are seen: TorchRec's managed collision, MPZCH, with eviction.

MPZCH (multi-probe zero collision hashing, `torchrec.modules.hash_mc_modules`) keeps the whole id that owns a row, its
"identity", and looks for an id at up to 128 rows that lie behind one another: few find none even where a table is
nearly full, and no two ids are ever taken for one. Ids are looked up here by the operator of TorchRec's module,
`fbgemm::zero_collision_hash`. On a CPU that only reads, so that ids are admitted by us: with the operator's rules, all
together, so that ranks agree whatever the order. Identities are on every rank whole, tables are sharded as ever.

Two things differ from TorchRec's module: its clock is the machine's, ours the events'; and it leaves an id that has
expired where it is until another one wants its row.
"""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  # registers the operator
import numpy as np
import torch
from torch import Tensor

from recsys.dates import HOUR_MS
from recsys.models.vocabulary import Ints, OwnedRows, settle

PROBES = 128
"""Rows at which an id may lie: TorchRec's default. Where ids fill three quarters of a table one of 20,000 finds none
free, at nine tenths one of 180; with one row each it would be one of 28."""
EMPTY = -1
"""The operator's identity of a row that nobody owns."""
ROWLESS = 0x1B873593CC9E2D51
"""The one id that never has a row: -1, which the operator takes for a free row, has its identity instead."""


class ManagedRows(OwnedRows):
    """The owners of one table's rows, and when each was seen last; 16 bytes a row.

    Args:
        rows: of the schema, without the unknown one.
        time_to_live_hours: an id that was last seen longer ago gives its row back; 0: never.
    """

    def __init__(self, rows: int, time_to_live_hours: int = 0) -> None:
        super().__init__(rows)
        self.time_to_live_hours = time_to_live_hours
        # Column 0: identities; column 1: the hour, since 1970, of the newest training that had the id. Together, since
        # what is kept of a module is one tensor.
        self._owners = torch.full((rows, 2), EMPTY)

    def find(self, ids: Ints, first: Ints) -> Ints:
        """Each id's row, int64 [N], or the unknown one.

        Args:
            ids: int64 [N], any values.
            first: without effect; the operator has a hash of its own.
        """
        wanted = identities(ids)
        rows = self._look_up(wanted, PROBES, strict=True)
        return np.where((rows < 0) | (wanted == EMPTY), self.unknown, rows)

    def admit(self, ids: Ints, as_of: int = 0) -> Ints:
        """Let ids that have no row own the first one that is free, after those not seen for too long gave theirs back.

        Of several that want a row the smallest identity wins, so that their order is no matter. Without a free one an
        id goes on without.

        Args:
            ids: int64 [N], in any order.
            as_of: the time as of which they were seen, ms.

        Returns:
            the rows that were given back, ascending: whoever owns them next is not to find what was learned there.
        """
        hour, owners = as_of // HOUR_MS, self._owners.numpy()
        self._note_seen(ids, hour)
        freed = np.empty(0, np.int64)
        if self.time_to_live_hours:
            freed = np.flatnonzero((owners[:, 0] != EMPTY) & (owners[:, 1] + self.time_to_live_hours < hour))
            owners[freed] = EMPTY
        wanted = identities(ids[self.find(ids, ids) == self.unknown])
        wanted = wanted[wanted != EMPTY]
        # No probe at all leaves the operator at the row by which it would begin.
        home = self._look_up(wanted, 0, strict=False)
        settle(owners[:, 0], wanted, home, _place, PROBES, EMPTY)
        self._note_seen(ids, hour)
        return freed

    def _note_seen(self, ids: Ints, hour: int) -> None:
        rows = self.find(ids, ids)
        rows = rows[rows != self.unknown]
        seen = self._owners.numpy()[:, 1]
        seen[rows] = np.maximum(seen[rows], hour)

    def _look_up(self, wanted: Ints, probes: int, *, strict: bool) -> Ints:
        """The operator's rows of identities, int64 [N]; of those not found -1 if `strict`, else where it began."""
        rows: Tensor = torch.ops.fbgemm.zero_collision_hash(
            input=torch.from_numpy(wanted),
            identities=self._owners[:, :1],
            max_probe=probes,
            circular_probe=True,
            readonly=True,
            disable_fallback=strict,
        )[0]
        return rows.numpy()


def identities(ids: Ints) -> Ints:
    """What a row keeps of ids, int64 [N]: themselves, but for -1 and ROWLESS, which change places."""
    return np.where(ids == EMPTY, ROWLESS, np.where(ids == ROWLESS, EMPTY, ids))


def _place(first: Ints, wanted: Ints, probe: int, rows: int) -> Ints:
    """The row at which an id is looked for next."""
    return (first + probe) % rows
