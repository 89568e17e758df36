"""`index.json`: what an index is of, written last; and the check that its files are those that were written.

index.json      this
index.faiss     the index over [v / temperature, weight * prior - base], as faiss writes it
ids.npy         the items of its rows, int64 [N]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from recsys.atomic import write_json
from recsys.sealed import damage, read_manifest

MANIFEST, INDEX, IDS = "index.json", "index.faiss", "ids.npy"
FORMAT = 1

Kind = Literal["flat", "hnsw", "ivfpq"]


class RetrievalError(ValueError):
    """Nothing can be retrieved in this way; the message names what is wrong, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about an index that is not in its other files."""

    upstream: str
    """Whose vectors they are."""
    series: str
    """`item_<upstream>`."""
    version: int
    """Of that series and of the users', which are of one version."""
    as_of: int
    """Of that version, ms."""
    space: str
    dim: int
    """Of the vectors; the index has one more."""
    temperature: float
    weight: float
    """Of the prior; 0: it has no part in the scores."""
    prior_version: int
    """Of the series `item_<upstream>.prior`; 0: there was none."""
    base: float
    """Subtracted from all that the prior adds: see recsys/retrieval/approximate.py."""
    kind: Kind
    items: int
    store: str
    """Path or URL of the store that the versions are of."""
    created: str
    """UTC, ISO 8601."""
    files: Mapping[str, Mapping[str, Any]]
    """Name -> `bytes` and `sha256`."""
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises RetrievalError: there is none, or it is of another format."""
        return cls(
            **read_manifest(folder, MANIFEST, FORMAT, what="index", command="recsys index", error=RetrievalError)
        )

    def verify(self, folder: Path) -> None:
        """Raises RetrievalError, naming the file, unless every file is as it was written."""
        if found := damage(folder, self.files):
            raise RetrievalError(f"{found}: copy the index again, or build it anew")
