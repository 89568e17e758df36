"""The `embedding-store` command: look at a store, move a tag, check the files.

Exit codes: 0 done, 1 the store says no (not found, corrupt: one line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table as Grid
from tyro.conf import FlagCreatePairsOff, Positional, arg

from embedding_store import times
from embedding_store.errors import InvalidArgumentError, StoreError
from embedding_store.series import Series
from embedding_store.snapshot import Snapshot
from embedding_store.store import EmbeddingStore

PATH = Annotated[Positional[Path], arg(help="the store's folder")]
SERIES = Annotated[Positional[str], arg(metavar="SERIES", help="name of a series")]
JSON = Annotated[FlagCreatePairsOff[bool], arg(help="print JSON instead of a table")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {"ls": ls, "show": show, "history": history, "tag": tag, "verify": verify}
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="embedding-store", description="Versioned entity vectors.", args=arguments
        )
    except StoreError as error:
        print(f"embedding-store: {error}", file=sys.stderr)
        return 1


def ls(path: PATH, /, *, json: JSON = False) -> int:
    """List the series of a store, with the newest snapshot of each."""
    store = _open(path)
    rows = []
    for series in (store.series(name) for name in store.list()):
        versions = series.versions()
        newest = series.version(versions[-1]) if versions else None
        row: dict[str, Any] = {"series": series.name, "dim": series.dim, "dtype": series.dtype}
        row |= {"snapshots": len(versions), "version": newest and newest.version, "as_of": newest and newest.as_of}
        row |= {"rows": newest and newest.rows, "bytes": newest and newest.manifest.total_bytes}
        rows.append({**row, "tags": series.tags()})
    return _print_rows(rows, str(path), json)


def history(path: PATH, series: SERIES, /, *, json: JSON = False) -> int:
    """List the snapshots of a series, oldest first."""
    found = _open(path).series(series)
    tags = found.tags()
    rows = [
        {
            "version": snapshot.version,
            "as_of": snapshot.as_of,
            "space": snapshot.space,
            "rows": snapshot.rows,
            "bytes": snapshot.manifest.total_bytes,
            "created": snapshot.manifest.created,
            "mean_norm": snapshot.statistics.mean_norm,
            "tags": [name for name, version in tags.items() if version == snapshot.version],
        }
        for snapshot in found.history()
    ]
    return _print_rows(rows, f"{path}: {series}", json)


def show(
    path: PATH, series: SERIES, /, *, version: int | None = None, tag: str | None = None, json: JSON = False
) -> int:
    """Show one snapshot, the newest unless told otherwise.

    Args:
        version: show this version.
        tag: show the version that this tag points to.
    """
    if version is not None and tag is not None:
        raise InvalidArgumentError(f"version is {version} and tag is {tag!r}: give one of them")
    found = _open(path).series(series)
    snapshot = found.tagged(tag) if tag is not None else found.latest() if version is None else found.version(version)
    document = {**asdict(snapshot.manifest), "tags": list(snapshot.tags)}
    if json:
        return _print_json(document)
    statistics, files = document.pop("statistics"), [*document.pop("data"), document.pop("index")]
    mean = statistics.pop("mean")
    statistics["norm_of_mean"] = sum(value * value for value in mean) ** 0.5
    grid = Grid("key", "value", title=f"{path}: {series}, version {snapshot.version}")
    for key, value in {**document, **statistics}.items():
        grid.add_row(key, _cell(key, value))
    _console().print(grid)
    return _print_rows([{k: file.get(k) for k in ("path", "rows", "bytes", "checksum")} for file in files], "files")


def tag(
    path: PATH,
    series: SERIES,
    name: Annotated[Positional[str], arg(metavar="TAG", help="the tag, say prod")],
    version: Annotated[Positional[int], arg(metavar="VERSION", help="the version it shall point to")],
    /,
    *,
    json: JSON = False,
) -> int:
    """Point a tag, new or existing, to a version."""
    found = _open(path).series(series)
    before = found.tags().get(name)
    found.tag(name, version)
    if json:
        return _print_json({"tag": name, "version": version, "before": before})
    was = "new" if before is None else f"was {before}"
    print(f"{series}: {name} -> version {version} ({was})")
    return 0


def verify(
    path: PATH,
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
    store = _open(path)
    rows = []
    for found in [store.series(name) for name in ([series] if series else store.list())]:
        for number in found.versions() if version is None else [version]:
            error = _error_of(found, number)
            rows.append({"series": found.name, "version": number, "error": error})
    code = _print_rows(rows, f"verify {path}", json)
    return 1 if any(row["error"] for row in rows) else code


def _error_of(series: Series, version: int) -> str | None:
    try:
        snapshot: Snapshot = series.version(version)
        snapshot.verify()
    except StoreError as error:
        return str(error)
    return None


def _open(path: Path) -> EmbeddingStore:
    if not path.is_dir():
        raise InvalidArgumentError(f"path is {str(path)!r}, which is not a folder: give the store's folder")
    return EmbeddingStore(path)


def _print_rows(rows: list[dict[str, Any]], title: str, as_json: bool = False) -> int:
    if as_json:
        return _print_json(rows)
    if not rows:
        print(f"{title}: nothing there")
        return 0
    grid = Grid(title=title)
    for key in rows[0]:
        numeric = any(isinstance(row[key], (int, float)) for row in rows) and key not in ("as_of", "created")
        grid.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(key, value) for key, value in row.items()))
    _console().print(grid)
    return 0


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "ok" if key == "error" else "-"
    if key in ("as_of", "created"):
        return times.to_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} -> {version}" for name, version in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and key in ("rows", "bytes") else str(value)


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2))
    return 0


def _console() -> Console:
    """Rich takes the terminal's width; a pipe has none, and must not be cut at 80."""
    return Console() if sys.stdout.isatty() else Console(width=200)


if __name__ == "__main__":
    sys.exit(main())
