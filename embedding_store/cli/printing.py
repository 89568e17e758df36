"""How the `embedding-store` command shows things: tables for people, JSON for programs, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from embedding_store import times

TIMES = ("as_of", "created", "expired")
COUNTS = ("rows", "stored_rows", "bytes", "added", "removed", "kept", "moved")


def print_rows(rows: list[dict[str, Any]], title: str, as_json: bool = False) -> None:
    """Print rows of equal keys as a table, or as a JSON list."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        print(f"{title}: nothing there")
        return
    grid = Grid(title=title)
    for key in rows[0]:
        numeric = any(isinstance(row[key], (int, float)) for row in rows) and key not in TIMES
        grid.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell(key, value) for key, value in row.items()))
    _console().print(grid)


def print_fields(fields: dict[str, Any], title: str) -> None:
    """Print one object as a table of keys and values."""
    grid = Grid("key", "value", title=title)
    for key, value in fields.items():
        grid.add_row(key, cell(key, value))
    _console().print(grid)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def cell(key: str, value: Any) -> str:
    """A value as a table shows it; the key tells times and counts from other integers."""
    if value is None:
        return "ok" if key == "error" else "-"
    if key in TIMES:
        return times.event_text(value) if key == "as_of" else times.to_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} -> {version}" for name, version in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and key in COUNTS else str(value)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, moved by calls with what is done and what is to do; nothing off a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _console() -> Console:
    """Rich takes the terminal's width; a pipe has none, and must not be cut at 80."""
    return Console() if sys.stdout.isatty() else Console(width=200)
