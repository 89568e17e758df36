"""Subcommands that look at a store and change nothing in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from embedding_store import arguments
from embedding_store.arguments import real
from embedding_store.cli import bench as benchmark
from embedding_store.cli import transfer
from embedding_store.cli.printing import print_fields, print_json, print_rows, progress
from embedding_store.cli.words import JSON, SERIES, STORE, choose, open_store
from embedding_store.errors import InvalidArgumentError, StoreError
from embedding_store.series import Series


def ls(store: STORE, /, *, json: JSON = False) -> int:
    """List the series of a store, with the newest snapshot of each."""
    opened = open_store(store)
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
    found = open_store(store).series(series)
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
    snapshot = choose(open_store(store).series(series), version, tag)
    document = {**asdict(snapshot.manifest), "tags": list(snapshot.tags)}
    if json:
        print_json(document)
        return 0
    statistics, files = document.pop("statistics"), [*document.pop("data"), document.pop("index")]
    files += [overlay] if (overlay := document.pop("overlay")) else []
    files += document.pop("deletes") or ()
    folded = document.pop("folded")
    document["folded"] = folded and folded["version"]
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
    """Compare two snapshots: ids added, removed, moved, and how far by cosine. Of deltas it costs what they changed."""
    with progress("comparing") as advance:
        found = asdict(open_store(store).series(series).diff(old, new, progress=advance))
    if json:
        print_json(found)
        return 0
    cosine = found.pop("cosine")
    print_fields(found, f"{store}: {series}, version {old} -> {new}")
    if cosine is not None:
        print_rows([{f"{float(q):.0%}": value for q, value in cosine.items()}], "quantiles of the cosine, old to new")
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
    opened = open_store(store)
    rows = []
    for found in [opened.series(name) for name in ([series] if series else opened.list())]:
        numbers = found.versions() if version is None else [version]
        with progress(f"verifying {found.name}") as advance:
            for done, number in enumerate(numbers, start=1):
                rows.append({"series": found.name, "version": number, "error": _error_of(found, number)})
                advance(done, len(numbers))
    print_rows(rows, f"verify {store}", json)
    return int(any(row["error"] for row in rows))


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
    snapshot = choose(open_store(store).series(series), version, tag)
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
    place = arguments.device(device)
    if not batches:
        raise InvalidArgumentError("batches is empty: give at least one number of ids")
    for batch in batches:
        arguments.integer(batch, "batches", least=1)
    real(seconds, "seconds", "above 0, at most 3,600", above=0, most=3600)
    if threads is not None:
        torch.set_num_threads(arguments.integer(threads, "threads", least=1, most=4096))
    snapshot = choose(open_store(store).series(series), version, tag)
    table, first = benchmark.time_to_first_lookup(snapshot, place)
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


def _error_of(series: Series, version: int) -> str | None:
    try:
        series.version(version).verify()
    except (StoreError, OSError) as error:  # one file that cannot be read does not hide what is wrong with the others
        return str(error)
    return None
