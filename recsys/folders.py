"""Where a run keeps what its jobs hand to each other."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from recsys.config import ConfigError

STORE_NOTE = "store.json"
"""In the folder of a run whose store is elsewhere."""


def upstream_folder(out: Path, name: str) -> Path:
    """Where an upstream keeps its checkpoints and figures."""
    return out / "upstream" / name


def store_folder(out: Path) -> Path:
    """Where a run keeps its embedding store, unless it is told to keep it elsewhere."""
    return out / "store"


def store_of(out: Path) -> str:
    """Where a run keeps its embedding store: a folder, or the URL that `recsys.placing.place_store` has noted."""
    note = out / STORE_NOTE
    return json.loads(note.read_text())["store"] if note.is_file() else str(store_folder(out))


def bundle_folder(out: Path) -> Path:
    """Where the training of a ranker that is deployed leaves its bundle."""
    return out / "bundle"


def make_out(out: Path) -> None:
    """Make the folder of a run, if it is not there. Raises ConfigError unless files can be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        file = next((path for path in (out, *out.parents) if path.is_file()), None)
        why = f"{file} is a file" if file else os.strerror(error.errno or 0)
        raise ConfigError(f"--out is {out}, which cannot be written into ({why}): choose another folder") from None
