"""The `embedding-store` command: look at a store, move tags, bring vectors in and out, check and tidy the files.

Exit codes: 0 done, 1 the store says no (not found, corrupt: one line on stderr), 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from embedding_store.cli import bench as benchmark
from embedding_store.cli import transfer
from embedding_store.cli.printing import print_fields, print_json, print_rows, progress
from embedding_store.errors import InvalidArgumentError, InvalidTimeError, StoreError
from embedding_store.read.snapshot import Snapshot
from embedding_store.series import Series
from embedding_store.store import EmbeddingStore

STORE = Annotated[Positional[str], arg(metavar="STORE", help="the store's folder, or s3://bucket/prefix")]
SERIES = Annotated[Positional[str], arg(metavar="SERIES", help="name of a series")]
TAG = Annotated[Positional[str], arg(metavar="TAG", help="the tag, say prod")]
JSON = Annotated[FlagCreatePairsOff[bool], arg(help="print JSON instead of a table")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    functions = (
        ls,
        show,
        history,
        diff,
        tag,
        rollback,
        compact,
        expire,
        retract,
        clean,
        verify,
        import_,
        export,
        bench,
    )
    commands: dict[str, Callable[..., int]] = {function.__name__.rstrip("_"): function for function in functions}
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="embedding-store", description="Versioned entity vectors.", args=arguments
        )
    except StoreError as error:
        print(f"embedding-store: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("embedding-store: stopped; nothing half-done is visible", file=sys.stderr)
        return 130


def ls(store: STORE, /, *, json: JSON = False) -> int:
    """List the series of a store, with the newest snapshot of each."""
    opened = _open(store)
    rows = []
    for series in (opened.series(name) for name in opened.list()):
        versions = series.versions()
        newest = series.version(versions[-1]) if versions else None
        row: dict[str, Any] = {"series": series.name, "dim": series.dim, "dtype": series.dtype, "ids": series.ids}
        row |= {"snapshots": len(versions), "version": newest and newest.version, "as_of": newest and newest.as_of}
        row |= {"rows": newest and newest.rows, "bytes": newest and newest.manifest.total_bytes}
        rows.append({**row, "tags": series.tags()})
    print_rows(rows, store, json)
    return 0


def history(store: STORE, series: SERIES, /, *, json: JSON = False) -> int:
    """List the snapshots of a series, oldest first."""
    found = _open(store).series(series)
    tags = found.tags()
    rows = [
        {
            "version": snapshot.version,
            "as_of": snapshot.as_of,
            "space": snapshot.space,
            "dim": snapshot.dim,
            "dtype": snapshot.dtype,
            "rows": snapshot.rows,
            "bytes": snapshot.manifest.total_bytes,
            "created": snapshot.manifest.created,
            "mean_norm": snapshot.statistics.mean_norm,
            "tags": [name for name, version in tags.items() if version == snapshot.version],
            "refused": snapshot.refused,
        }
        for snapshot in found.history()
    ]
    print_rows(rows, f"{store}: {series}", json)
    return 0


def show(
    store: STORE, series: SERIES, /, *, version: int | None = None, tag: str | None = None, json: JSON = False
) -> int:
    """Show one snapshot, the newest unless told otherwise.

    Args:
        version: show this version.
        tag: show the version that this tag points to.
    """
    snapshot = _choose(_open(store).series(series), version, tag)
    document = {**asdict(snapshot.manifest), "tags": list(snapshot.tags)}
    if json:
        print_json(document)
        return 0
    statistics, files = document.pop("statistics"), [*document.pop("data"), document.pop("index")]
    mean = statistics.pop("mean")
    statistics["norm_of_mean"] = sum(value * value for value in mean) ** 0.5
    print_fields({**document, **statistics}, f"{store}: {series}, version {snapshot.version}")
    shown = [
        {"path": file["path"], "rows": None, "bytes": file["bytes"], "checksum": file["checksum"]} for file in files
    ]
    for row, file in zip(shown, files, strict=True):
        if "segments" in file:
            row["rows"] = sum(segment["rows"] for segment in file["segments"])
    print_rows(shown, "files")
    return 0


def diff(
    store: STORE,
    series: SERIES,
    old: Annotated[Positional[int], arg(metavar="OLD", help="a version")],
    new: Annotated[Positional[int], arg(metavar="NEW", help="another version")],
    /,
    *,
    json: JSON = False,
) -> int:
    """Compare two snapshots: ids added, removed, moved, and how far by cosine."""
    with progress("comparing") as advance:
        found = asdict(_open(store).series(series).diff(old, new, progress=advance))
    if json:
        print_json(found)
        return 0
    cosine = found.pop("cosine")
    print_fields(found, f"{store}: {series}, version {old} -> {new}")
    if cosine is not None:
        print_rows([{f"{float(q):.0%}": value for q, value in cosine.items()}], "quantiles of the cosine, old to new")
    return 0


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
    found = _open(store).series(series)
    before = found.tags().get(name)
    found.tag(name, version)
    return _moved(series, name, before, version, json)


def rollback(store: STORE, series: SERIES, name: TAG, /, *, to: int | None = None, json: JSON = False) -> int:
    """Move a tag back, to the version it named before unless told otherwise.

    Args:
        to: the earlier version it shall point to.
    """
    found = _open(store).series(series)
    before = found.tags().get(name)
    return _moved(series, name, before, found.rollback(name, to).version, json)


def compact(store: STORE, series: SERIES, /, *, json: JSON = False) -> int:
    """Fold the newest snapshot, a delta on earlier ones, into a whole one: the next version, of the same time."""
    folded = _open(store).series(series).compact()
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
    age = None if older_than_days is None else timedelta(days=older_than_days)
    opened = _open(store).series(series)
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
    found = _open(store).series(series)
    found.retract(version)
    print_rows([{"retracted": version, "versions": found.versions()}], f"{store}: {series}", json)
    return 0


def clean(store: STORE, /, *, json: JSON = False) -> int:
    """Delete the files of expired snapshots and of writers that died, from an hour after on."""
    print_rows([{"path": path} for path in _open(store).clean()], f"{store}, deleted", json)
    return 0


def verify(
    store: STORE,
    series: Annotated[Positional[str | None], arg(metavar="[SERIES]", help="name of a series; all if left out")] = None,
    /,
    *,
    version: int | None = None,
    json: JSON = False,
) -> int:
    """Read every file of every snapshot and compare checksums, index and rows; exit code 1 if one is wrong.

    Args:
        version: check this version only.
    """
    opened = _open(store)
    rows = []
    for found in [opened.series(name) for name in ([series] if series else opened.list())]:
        numbers = found.versions() if version is None else [version]
        with progress(f"verifying {found.name}") as advance:
            for done, number in enumerate(numbers, start=1):
                rows.append({"series": found.name, "version": number, "error": _error_of(found, number)})
                advance(done, len(numbers))
    print_rows(rows, f"verify {store}", json)
    return int(any(row["error"] for row in rows))


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
    opened = EmbeddingStore(store)
    if series not in opened.list():
        opened.create(series, dim=source.dim, dtype=dtype, ids=source.id_kind)
    with progress("importing") as advance:
        snapshot = transfer.import_vectors(
            opened.series(series), source, as_of=time, space=space, duplicates=duplicates, progress=advance
        )
    row = {"series": series, "version": snapshot.version, "as_of": snapshot.as_of, "rows": snapshot.rows}
    print_rows([{**row, "bytes": snapshot.manifest.total_bytes}], f"{store}, imported", json)
    return 0


def export(
    store: STORE,
    series: SERIES,
    file: Annotated[Positional[Path], arg(metavar="FILE", help="the Parquet file to write")],
    /,
    *,
    version: int | None = None,
    tag: str | None = None,
    json: JSON = False,
) -> int:
    """Write one snapshot, the newest unless told otherwise, as a Parquet file of ids and float32 vectors.

    Args:
        version: export this version.
        tag: export the version that this tag points to.
    """
    snapshot = _choose(_open(store).series(series), version, tag)
    with progress("exporting") as advance:
        transfer.export_parquet(snapshot, file, progress=advance)
    row = {"file": str(file), "version": snapshot.version, "rows": snapshot.rows, "bytes": file.stat().st_size}
    print_rows([row], f"{store}: {series}, exported", json)
    return 0


def bench(
    store: STORE,
    series: SERIES,
    /,
    *,
    version: int | None = None,
    tag: str | None = None,
    device: str = "cpu",
    batches: tuple[int, ...] = (1024, 65_536),
    seconds: float = 2.0,
    threads: int | None = None,
    json: JSON = False,
) -> int:
    """Time lookups in one snapshot, the newest unless told otherwise, on this machine.

    Args:
        version: measure this version.
        tag: measure the version that this tag points to.
        device: cpu or cuda.
        batches: ids a lookup.
        seconds: time for each kind of ids and batch size.
        threads: threads a lookup may use on the CPU; torch's choice unless given.
    """
    snapshot = _choose(_open(store).series(series), version, tag)
    if threads is not None:
        torch.set_num_threads(threads)
    table, first = benchmark.time_to_first_lookup(snapshot, device)
    rows = []
    with progress("measuring") as advance:
        for found in benchmark.measure(table, batches=batches, seconds=seconds):
            rows.append(asdict(found))
            advance(len(rows), 3 * len(batches))
    if json:
        print_json({"version": snapshot.version, "open_and_first_lookup_ms": first, "lookups": rows})
        return 0
    title = f"{series}, version {snapshot.version}: {len(table):,} x {table.dim} {snapshot.dtype} on {device}"
    print_rows(rows, f"{title}, {torch.get_num_threads()} threads; opened and first id found in {first:.1f} ms")
    return 0


def _choose(series: Series, version: int | None, tag: str | None) -> Snapshot:
    if version is not None and tag is not None:
        raise InvalidArgumentError(f"version is {version} and tag is {tag!r}: give one of them")
    return series.tagged(tag) if tag is not None else series.latest() if version is None else series.version(version)


def _moved(series: str, name: str, before: int | None, version: int, as_json: bool) -> int:
    if as_json:
        print_json({"tag": name, "version": version, "before": before})
        return 0
    was = "new" if before is None else f"was {before}"
    print(f"{series}: {name} -> version {version} ({was})")
    return 0


def _error_of(series: Series, version: int) -> str | None:
    try:
        series.version(version).verify()
    except StoreError as error:
        return str(error)
    return None


def _time(text: str) -> int | datetime:
    try:
        return int(text) if text.lstrip("-").isdigit() else datetime.fromisoformat(text)
    except ValueError:
        remedy = "give milliseconds since the epoch or a time like 2026-01-31T00:00:00Z"
        raise InvalidTimeError(f"as_of is {text!r}: {remedy}") from None


def _open(store: str) -> EmbeddingStore:
    if "://" not in store and not Path(store).is_dir():
        raise InvalidArgumentError(f"path is {store!r}, which is not a folder: give the store's folder")
    return EmbeddingStore(store)


if __name__ == "__main__":
    sys.exit(main())
