"""What a run is of: its files, its config, its code. So that nothing is continued as something else."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TAIL = 8
"""Last bytes of a Parquet file: the length of the footer before them, and `PAR1`."""
_NAMED = 4
"""Differences that a message names."""
_WITHOUT_EFFECT = (
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.save_beside",
    "training.tables",
    "training.exchange",
)
"""What may change while a model is trained, whatever it is."""
_LEARNING = ("data", "models", "train")
"""Rooms whose code decides what a model learns."""


def identify_files(files: Sequence[Path], root: Path) -> dict[str, str]:
    """Path below `root` -> size and CRC of the Parquet footer, which says where every page lies and what it spans.

    A copy elsewhere has the same identity; times of modification do not count.
    """
    return {path.relative_to(root).as_posix(): _identify(path) for path in files}


def flatten(value: Any, path: str = "") -> dict[str, str]:
    """Nested dicts and sequences as path -> text; an entry that has a `name` goes by it, any other by its number."""
    if isinstance(value, Mapping):
        entries = {str(key): entry for key, entry in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, str):
        entries = {
            str(entry["name"]) if isinstance(entry, Mapping) and "name" in entry else str(number): entry
            for number, entry in enumerate(value)
        }
    else:
        return {path: str(value)}
    flat: dict[str, str] = {}
    for key, entry in entries.items():
        flat |= flatten(entry, f"{path}.{key}" if path else key)
    return flat


def effective(settings: Mapping[str, str], without: Sequence[str] = ()) -> dict[str, str]:
    """What of a flattened config decides what a model becomes.

    Args:
        settings: from `flatten`.
        without: keys of others that may change while it is trained, with all that is below them.
    """
    free = (*_WITHOUT_EFFECT, *without)
    below = tuple(f"{key}." for key in free)
    return {key: value for key, value in settings.items() if key not in free and not key.startswith(below)}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs, by name, and what it was; empty if nothing does. Another order is a difference."""
    keys = dict.fromkeys((*before, *now))
    found = [
        f"{key} was {before.get(key, 'not there')}, is {now.get(key, 'not there')}"
        for key in keys
        if before.get(key) != now.get(key)
    ]
    if not found and list(before) != list(now):
        found = ["their order"]
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


@cache
def code_version() -> str:
    """Version of this package, and a CRC of the code that decides what a model learns."""
    crc = 0
    for room in _LEARNING:
        for path in sorted((Path(__file__).parent / room).glob("*.py")):
            crc = zlib.crc32(path.read_bytes(), crc)
    try:
        return f"{version('recsys-derm')}+{crc:08x}"
    except PackageNotFoundError:  # it runs without having been installed
        return f"unknown+{crc:08x}"


def _identify(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        footer = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - _TAIL - footer))
        return f"{size} bytes, {zlib.crc32(file.read()):08x}"
