"""The series `item_<upstream>.prior`: the newest prior of the items (recsys/prior.py), and who of them is withdrawn."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from embedding_store import EmbeddingStore, Series, Snapshot, VersionNotFoundError
from recsys.prior import Prior

SPACE = "log-share"
"""Space of every prior: values of two upstreams are logs of shares alike."""


def prior_series(store: EmbeddingStore, upstream: str) -> Series:
    """The series `item_<upstream>.prior`, made if it is not there."""
    return store.create(f"item_{upstream}.prior", dim=1, dtype="float32", exist_ok=True)


def publish_prior(series: Series, prior: Prior, as_of: int) -> Snapshot | None:
    """Write the prior as of this time; nothing, and None, where a later one has been published since.

    Raises:
        StoreError: the store refuses it.
    """
    newest = _newest(series)
    if newest is not None and newest.as_of > as_of:
        return None
    with series.write(as_of=as_of, space=SPACE) as writer:
        writer.append(*prior.rows())
    return writer.snapshot


def withdrawn_items(series: Series) -> Tensor:  # int64 [W], ascending
    """The items that the newest prior says are withdrawn."""
    newest = _newest(series)
    return torch.empty(0, dtype=torch.int64) if newest is None else Prior.load(newest).withdrawn


def withdraw(
    series: Series,
    items: Tensor,  # int64 [W], ascending
) -> None:
    """Let the newest prior say that these items are withdrawn and no others; as of its own time, as a correction.

    Raises:
        StoreError: the store refuses it.
    """
    newest = _newest(series)
    if newest is None or torch.equal(withdrawn_items(series), items):
        return
    publish_prior(series, Prior.load(newest).without(items), newest.as_of)


def _newest(series: Series) -> Snapshot | None:
    with suppress(VersionNotFoundError):
        return series.latest()
    return None
