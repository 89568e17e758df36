"""A model's vectors, and the prior that was published with them, as they were visible at the time of a request."""

from __future__ import annotations

import torch
from torch import Tensor

from embedding_store import EmbeddingStore, SeriesNotFoundError, Snapshot, Table, VersionNotFoundError
from recsys.data.errors import DataError
from recsys.downstream.retrieval import Index, check_same_version, index_of
from recsys.prior import Prior
from recsys.study.moments import Moment


class Visible:
    """A model's vectors as they were visible at a time."""

    def __init__(self, store: EmbeddingStore, name: str, temperature: float, delay: int, *, timed: bool) -> None:
        self._users, self._items = (store.series(f"{owner}_{name}") for owner in ("user", "item"))
        self._store, self._name, self._delay, self._timed = store, name, delay, timed
        self._open: dict[int, tuple[Table, Table, Tensor]] = {}
        self._users.latest(refused=False)  # raises where there is none
        self.since = self._users.history(refused=False)[0].as_of + delay
        """From when on there are vectors, ms."""
        self.temperature = temperature

    def visible(self, moment: Moment) -> bool:
        """Whether there are any at a moment."""
        return not self._timed or moment.time >= self.since

    def snapshots(self, moment: Moment) -> tuple[Snapshot, Snapshot]:
        """Of users and items. Raises VersionSkewError if they are not of one version."""
        if self._timed:
            pair = tuple(series.as_of(moment.time - self._delay) for series in (self._users, self._items))
        else:
            pair = tuple(series.latest(refused=False) for series in (self._users, self._items))
        check_same_version(*pair)
        return pair[0], pair[1]

    def index(self, moment: Moment, prior: Prior, weight: float) -> Index:
        """The items that could be retrieved at a moment."""
        users, items, withdrawn = self._opened(moment)
        return index_of(users, items, prior.without(withdrawn), temperature=self.temperature, weight=weight)

    def catalogue(self, moment: Moment) -> Tensor:  # int64 [N]
        """The items that there were at a moment, whoever retrieves: with a vector or an event before, not withdrawn."""
        _, items, withdrawn = self._opened(moment)
        ids = torch.cat([items.ids(), torch.from_numpy(moment.known.items)]).unique()
        return ids[~torch.isin(ids, withdrawn)]

    def withdrawn(self, moment: Moment) -> Tensor:  # int64 [W]
        """The items that could not be, whoever retrieves."""
        return self._opened(moment)[2]

    def stored_prior(self, moment: Moment) -> Prior:
        """The one that was published with the vectors. Raises DataError if there is none."""
        name = f"item_{self._name}.prior"
        as_of = self.snapshots(moment)[1].as_of
        try:
            return Prior.load(self._store.series(name).as_of(as_of))
        except (SeriesNotFoundError, VersionNotFoundError) as error:
            raise DataError(
                f"series {name!r} has no prior as of {as_of} ms, when the vectors were published: {error}. Publish one "
                f"with `recsys prior --config OUT/configs/refresh-{self._name}.toml`"
            ) from None

    def _opened(self, moment: Moment) -> tuple[Table, Table, Tensor]:
        users, items = self.snapshots(moment)
        if users.version not in self._open:  # moments ascend: earlier ones are done with
            self._open = {users.version: (users.load(), items.load(), self.stored_prior(moment).withdrawn)}
        return self._open[users.version]
