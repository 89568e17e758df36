"""What tests of LiveTable publish and wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from embedding_store import (
    Series,
    Snapshot,
)
from tests.embedding_store.helpers import folder

IDS = torch.arange(-500, 500)
NEVER = 3600.0
"""An interval that does not end during a test: only `refresh` looks."""


def publish(series: Series, as_of: int | None = None, space: str = "ctr-1") -> Snapshot:
    """A snapshot all of whose values are its version."""
    version = max(series.versions(), default=0) + 1
    with series.write(as_of=version if as_of is None else as_of, space=space) as writer:
        writer.append(IDS, torch.full((len(IDS), series.dim), float(version)))
    return writer.snapshot


def version_of(lookup: Callable) -> float:
    """The version that a whole lookup is of; fails if it is of several or of none."""
    vectors, found = lookup(IDS)
    assert bool(found.all())
    low, high = (float(x) for x in vectors.aminmax())
    assert low == high, f"a lookup of versions {low} and {high}"
    return low


def spoil(snapshot: Snapshot, series: Series) -> None:
    """Flip a bit of every data file."""
    for file in snapshot.manifest.data:
        path = folder(series) / file.path
        path.chmod(0o600)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def eventually(condition: Callable[[], object], seconds: float = 600.0) -> None:
    """Wait until it holds; fail if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
