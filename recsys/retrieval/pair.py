"""Which versions are retrieved from: users and items that one upstream published together, and the items' prior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from embedding_store import EmbeddingStore, Series, SeriesNotFoundError, Snapshot, StoreError, VersionNotFoundError
from recsys.downstream.retrieval import Index, check_same_version, index_of
from recsys.mistakes import meant
from recsys.prior import Prior
from recsys.retrieval.manifest import Manifest, RetrievalError


class Pair(NamedTuple):
    """Snapshots that are searched together, and how they are scored: u.v / temperature + weight * prior."""

    upstream: str
    users: Snapshot
    items: Snapshot
    prior: Snapshot | None
    """None: there is none."""
    temperature: float
    weight: float
    """0 where there is no prior."""

    def load(self, withdrawn: Tensor) -> Index:
        """What can be retrieved. Without a weight these are the items with a vector alone: another one's would be the
        mean, and nothing would speak for it.

        Args:
            withdrawn: int64 [W], ascending, items that are left out.
        """
        nothing = Prior(torch.empty(0, dtype=torch.int64), torch.empty(0))
        prior = Prior.load(self.prior) if self.prior is not None and self.weight else nothing
        return index_of(
            self.users.load(),
            self.items.load(),
            prior.without(withdrawn),
            temperature=self.temperature,
            weight=self.weight,
        )


def newest_pair(
    store: EmbeddingStore, upstream: str, *, version: int | None, temperature: float, weight: float
) -> Pair:
    """The newest version that users and items have and that was not refused, or a given one; with the newest prior,
    which has a time of its own.

    Raises:
        RetrievalError: no such series, no such version, temperature or weight out of bounds.
        VersionSkewError: the version's users and items are of different spaces or times.
    """
    if not temperature > 0:
        raise RetrievalError(f"temperature is {temperature}; use more than 0, the upstream's loss.temperature")
    if not weight >= 0:
        raise RetrievalError(f"weight is {weight}; use 0 or more")
    users, items = _chosen(store, upstream, version)
    check_same_version(users, items)
    prior = _newest_prior(store, upstream)
    return Pair(upstream, users, items, prior, temperature, weight if prior is not None else 0.0)


def pinned_pair(store: EmbeddingStore, manifest: Manifest) -> Pair:
    """The versions that an index is of.

    Raises:
        RetrievalError: one is gone, or it is of another space, time or dimension than when the index was built.
    """
    users, items = (
        _version(_series(store, f"{owner}_{manifest.upstream}", manifest.upstream), manifest.version)
        for owner in ("user", "item")
    )
    for snapshot in (users, items):
        found = {"space": snapshot.space, "as_of": snapshot.as_of, "dim": snapshot.dim}
        for name, value in found.items():
            if value != getattr(manifest, name):
                raise RetrievalError(
                    f"version {snapshot.version} of {snapshot.series} in {store.location} has {name} {value!r}, the "
                    f"index was built of {name} {getattr(manifest, name)!r}: build the index anew, or give its store"
                )
    prior = None
    if manifest.prior_version:
        prior = _version(_series(store, f"item_{manifest.upstream}.prior", manifest.upstream), manifest.prior_version)
    return Pair(manifest.upstream, users, items, prior, manifest.temperature, manifest.weight)


def withdrawn_now(store: EmbeddingStore, upstream: str) -> Tensor:  # int64 [W], ascending
    """The items that the newest prior says are withdrawn, whatever is searched."""
    prior = _newest_prior(store, upstream)
    return torch.empty(0, dtype=torch.int64) if prior is None else Prior.load(prior).withdrawn


def newest_version(store: EmbeddingStore, upstream: str) -> int:
    """That users and items have and that was not refused; 0 where there is none."""
    users, items = (store.series(f"{owner}_{upstream}").versions(refused=False) for owner in ("user", "item"))
    return max({*users} & {*items}, default=0)


def _series(store: EmbeddingStore, name: str, upstream: str) -> Series:
    try:
        return store.series(name)
    except SeriesNotFoundError:
        known = [each.removeprefix("item_") for each in store.list() if each.startswith("item_") and "." not in each]
        raise RetrievalError(
            f"--upstream is {upstream!r}, but {store.location} has no series {name!r}{meant(upstream, known)}; its "
            f"upstreams: {', '.join(known) or 'none'}"
        ) from None


def _chosen(store: EmbeddingStore, upstream: str, version: int | None) -> tuple[Snapshot, Snapshot]:
    users, items = (_series(store, f"{owner}_{upstream}", upstream) for owner in ("user", "item"))
    if version is None and not (version := newest_version(store, upstream)):
        raise RetrievalError(
            f"series {users.name!r} and {items.name!r} have no version in common that was not refused: publish them "
            "together (`recsys refresh`)"
        )
    return _version(users, version), _version(items, version)


def _version(series: Series, version: int) -> Snapshot:
    try:
        return series.version(version)
    except StoreError as error:
        there = ", ".join(map(str, series.versions())) or "none"
        raise RetrievalError(
            f"version {version} is asked for: {error}. Versions of {series.name!r} that are there: {there}; use one of "
            "them, and build an index anew (`recsys index`) whose version is gone"
        ) from None


def _newest_prior(store: EmbeddingStore, upstream: str) -> Snapshot | None:
    try:
        return store.series(f"item_{upstream}.prior").latest(refused=False)
    except (SeriesNotFoundError, VersionNotFoundError):
        return None
