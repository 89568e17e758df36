"""What `recsys index` and `recsys retrieve` do beside the work itself: see that it can be done, and tell of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from embedding_store import EmbeddingStore
from recsys.folders import make_out
from recsys.retrieval.files import UserFile, answer
from recsys.retrieval.manifest import Kind, RetrievalError
from recsys.retrieval.pair import newest_version
from recsys.retrieval.retriever import TEMPERATURE, Retriever, open_exact, open_index
from recsys.retrieval.write import build_index


def index(
    store: str, upstream: str, out: Path, kind: Kind, version: int | None, temperature: float | None, weight: float
) -> None:
    """Build an index and tell of it. Raises what `build_index` does."""
    start = time.monotonic()
    with _bar("indexed") as bar:
        manifest = build_index(
            store,
            upstream,
            out,
            kind=kind,
            version=version,
            temperature=TEMPERATURE if temperature is None else temperature,
            weight=weight,
            progress=lambda done, items: bar.update(bar.task_ids[0], completed=done, total=items),
        )
    prior = f"the prior's version {manifest.prior_version}, weight {manifest.weight:g}"
    print(
        f"index: {out}, {kind} of {manifest.items:,} items of {manifest.series} version {manifest.version} (space "
        f"{manifest.space}, as of {manifest.as_of} ms), temperature {manifest.temperature:g}, "
        f"{prior if manifest.weight else 'no prior'}: {time.monotonic() - start:.1f} s"
    )


def retrieve(
    store: str,
    upstream: str,
    users: Path,
    k: int,
    out: Path,
    *,
    user_id: str,
    index: Path | None,
    exact: bool,
    version: int | None,
    temperature: float | None,
    weight: float | None,
) -> None:
    """Answer a file of users and tell of it.

    Raises:
        RetrievalError, DataError, VersionSkewError: as `open_exact`, `open_index` and `UserFile` say.
        ConfigError: `out` cannot be written.
    """
    if index is not None and (temperature is not None or weight is not None):
        raise RetrievalError(
            f"--temperature and --weight are those that the index {index} was built with: leave them out, or build "
            "another one"
        )
    if out.is_dir():
        raise RetrievalError(f"--out is {out}, which is a folder: give the path of a Parquet file")
    wanted = UserFile(users, user_id)
    make_out(out.parent)
    if index is None:
        retriever = open_exact(
            store,
            upstream,
            version=version,
            temperature=TEMPERATURE if temperature is None else temperature,
            weight=1.0 if weight is None else weight,
        )
    else:
        retriever = open_index(index, store, upstream=upstream, version=version, exact=exact)
    retriever.check_k(k)
    _answer(retriever, wanted, k, out)
    newest, pair = newest_version(EmbeddingStore(store), upstream), retriever.pair
    if index is not None and version is None and newest > pair.items.version:
        print(
            f"{upstream} has version {newest}, these answers are of {pair.items.version}: `recsys index` builds one of "
            "the newest"
        )


def _answer(retriever: Retriever, users: UserFile, k: int, out: Path) -> None:
    start, pair = time.monotonic(), retriever.pair
    with _bar("answered") as bar:
        bar.update(bar.task_ids[0], total=users.rows)
        done = answer(retriever, users, k, out, lambda some: bar.advance(bar.task_ids[0], some))
    seconds = time.monotonic() - start
    print(
        f"{done.users:,} users, {done.found:,} of them with a vector of {pair.users.series} version "
        f"{pair.users.version}, {retriever.kind}, in {seconds:.1f} s ({done.users / max(seconds, 1e-9):,.0f} a "
        f"second): {out}"
    )


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """A progress bar; nothing where there is no terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(quiet=not sys.stdout.isatty()), refresh_per_second=2) as bar:
        bar.add_task(what, total=None)
        yield bar
