"""Subcommands that change a store: tags move, snapshots come and go."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from embedding_store.arguments import real
from embedding_store.cli import transfer
from embedding_store.cli.printing import print_json, print_rows, progress
from embedding_store.cli.words import JSON, SERIES, STORE, TAG, open_store
from embedding_store.errors import InvalidTimeError
from embedding_store.store import EmbeddingStore


def tag(
    store: STORE,
    series: SERIES,
    name: TAG,
    version: Annotated[Positional[int], arg(metavar="VERSION", help="the version it shall point to")],
    /,
    *,
    json: JSON = False,
) -> int:
    """Point a tag, new or existing, to a version."""
    found = open_store(store).series(series)
    before = found.tags().get(name)
    found.tag(name, version)
    return _moved(series, name, before, version, json)


def rollback(store: STORE, series: SERIES, name: TAG, /, *, to: int | None = None, json: JSON = False) -> int:
    """Move a tag back, to the version it named before unless told otherwise.

    Args:
        to: the earlier version it shall point to.
    """
    found = open_store(store).series(series)
    before = found.tags().get(name)
    return _moved(series, name, before, found.rollback(name, to).version, json)


def compact(store: STORE, series: SERIES, /, *, json: JSON = False) -> int:
    """Fold the newest snapshot, a delta on earlier ones, into a whole one: the next version, of the same time."""
    folded = open_store(store).series(series).compact()
    row = {"version": folded.version, "rows": folded.rows, "bytes": folded.manifest.total_bytes}
    print_rows([row], f"{store}: {series}, compacted", json)
    return 0


def expire(
    store: STORE,
    series: SERIES,
    /,
    *,
    keep_last: int | None = None,
    older_than_days: float | None = None,
    delete: FlagCreatePairsOff[bool] = False,
    json: JSON = False,
) -> int:
    """Say which snapshots the rules let go, and with --delete let them go. The newest and tagged ones always stay.

    Args:
        keep_last: keep this many of the newest.
        older_than_days: keep those that were published less than this many days ago.
        delete: really do it; `clean` frees the space, from an hour later on.
    """
    age = None
    if older_than_days is not None:
        age = timedelta(days=real(older_than_days, "older_than_days", "0 to 36,500 days", least=0, most=36_500))
    opened = open_store(store).series(series)
    found = opened.expire(keep_last=keep_last, older_than=age, dry_run=True)
    freed = opened.freed_bytes(found)
    if delete:
        found = opened.expire(keep_last=keep_last, older_than=age, dry_run=False)
    rows = [{"version": s.version, "as_of": s.as_of, "rows": s.rows, "created": s.manifest.created} for s in found]
    if json:
        print_json({"snapshots": rows, "freed_bytes": freed, "deleted": delete})
        return 0
    done = "expired, `clean` will free" if delete else "would expire (nothing is done without --delete) and free"
    print_rows(rows, f"{store}: {series}, {done} {freed:,} bytes")
    return 0


def retract(
    store: STORE,
    series: SERIES,
    version: Annotated[Positional[int], arg(metavar="VERSION", help="the newest version")],
    /,
    *,
    json: JSON = False,
) -> int:
    """Take back the newest version, which should never have gone out; its number is not used again."""
    found = open_store(store).series(series)
    found.retract(version)
    print_rows([{"retracted": version, "versions": found.versions()}], f"{store}: {series}", json)
    return 0


def clean(store: STORE, /, *, json: JSON = False) -> int:
    """Delete the files of expired snapshots and of writers that died, from an hour after on."""
    print_rows([{"path": path} for path in open_store(store).clean()], f"{store}, deleted", json)
    return 0


def import_(
    store: STORE,
    series: SERIES,
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE", help=".parquet files, or one .npy of vectors")],
    /,
    *,
    as_of: str,
    space: str,
    ids: Path | None = None,
    id_column: str = "id",
    vector_column: str = "vector",
    dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32",
    duplicates: Literal["error", "last"] = "error",
    json: JSON = False,
) -> int:
    """Write the next snapshot of a series from files; a series that does not exist is made.

    Args:
        as_of: event time up to which the vectors know the world: ms since the epoch, or 2026-01-31T00:00:00Z.
        space: the vector space, say ctr-1.
        ids: with a .npy file of vectors, the .npy file of their ids.
        id_column: Parquet column of the ids: integers or strings.
        vector_column: Parquet column of the vectors: lists of floats.
        dtype: how a new series stores its vectors; for one that exists it is known.
        duplicates: what to do with an id that comes twice: an error, or the last vector wins.
    """
    source = transfer.VectorFiles(files, ids=ids, id_column=id_column, vector_column=vector_column)
    time = _time(as_of)
    with progress("importing") as advance:
        snapshot = transfer.import_new_or_next(
            EmbeddingStore(store),
            series,
            source,
            dtype=dtype,
            as_of=time,
            space=space,
            duplicates=duplicates,
            progress=advance,
        )
    row = {"series": series, "version": snapshot.version, "as_of": snapshot.as_of, "rows": snapshot.rows}
    print_rows([{**row, "bytes": snapshot.manifest.total_bytes}], f"{store}, imported", json)
    return 0


def _moved(series: str, name: str, before: int | None, version: int, as_json: bool) -> int:
    if as_json:
        print_json({"tag": name, "version": version, "before": before})
        return 0
    was = "new" if before is None else f"was {before}"
    print(f"{series}: {name} -> version {version} ({was})")
    return 0


def _time(text: str) -> int | datetime:
    try:
        return int(text) if text.lstrip("-").isdigit() else datetime.fromisoformat(text)
    except ValueError:
        remedy = "give milliseconds since the epoch or a time like 2026-01-31T00:00:00Z"
        raise InvalidTimeError(f"as_of is {text!r}: {remedy}") from None
