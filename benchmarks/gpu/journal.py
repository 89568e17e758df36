"""Results as they come: a line of JSON each, at once on disk, and a line to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


class SkippedError(Exception):
    """A part, or one of its variants, cannot run here; the message says why and what would help."""


class PeerError(Exception):
    """A variant that is not ours has ended this process's use of the device; the message says which, and how."""


class Journal:
    """Of one part."""

    def __init__(self, out: Path, part: str) -> None:
        self._path = out / RESULTS
        self._part = part
        self.failures: list[str] = []
        """What went wrong so far."""

    def write(self, kind: str, **fields: Any) -> None:
        """A result. `kind` says what the fields are."""
        append(self._path, {"part": self._part, "kind": kind, **fields})
        print(f"{kind:9} " + "  ".join(f"{name} {_short(value)}" for name, value in fields.items()), flush=True)

    def left_out(self, what: str, reason: str) -> None:
        """Something optional that cannot run here."""
        self.write("left out", what=what, reason=first_line(reason))

    def fail(self, reason: str) -> None:
        """Something that is wrong; the part goes on, and counts as failed."""
        self.failures.append(reason)
        self.write("failure", reason=reason)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """One line, whole or not at all unless the disk is full."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All records; a last line that was cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def first_line(text: str) -> str:
    """Of a message, at most 300 characters."""
    return (text.strip().splitlines() or [""])[0][:300]


def table(rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
