"""What the subcommands share: the words of their command lines, and the store, the series and the version they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from embedding_store.errors import InvalidArgumentError
from embedding_store.read.snapshot import Snapshot
from embedding_store.series import Series
from embedding_store.store import EmbeddingStore

STORE = Annotated[Positional[str], arg(metavar="STORE", help="the store's folder, or s3://bucket/prefix")]
SERIES = Annotated[Positional[str], arg(metavar="SERIES", help="name of a series")]
TAG = Annotated[Positional[str], arg(metavar="TAG", help="the tag, say prod")]
JSON = Annotated[FlagCreatePairsOff[bool], arg(help="print JSON instead of a table")]


def open_store(store: str) -> EmbeddingStore:
    """The store at a path or URL. Raises InvalidArgumentError where there is no folder, so that a typo makes none."""
    if "://" not in store and not Path(store).is_dir():
        raise InvalidArgumentError(f"path is {store!r}, which is not a folder: give the store's folder")
    return EmbeddingStore(store)


def choose(series: Series, version: int | None, tag: str | None) -> Snapshot:
    """The snapshot of this version, or of this tag; with neither the newest. Raises InvalidArgumentError given both."""
    if version is not None and tag is not None:
        raise InvalidArgumentError(f"version is {version} and tag is {tag!r}: give one of them")
    return series.tagged(tag) if tag is not None else series.latest() if version is None else series.version(version)
