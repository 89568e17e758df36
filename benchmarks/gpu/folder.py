"""Where the tables are written: into memory, where it has room for them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_MEMORY = Path("/dev/shm")
ROOM = 40 << 30  # bytes: the tables of all parts at full size
PREFIX = "gpu-tables-"


@contextmanager
def tables_folder(room: int) -> Iterator[Path]:
    """A folder for tables, in memory if it has the room, which is deleted at the end."""
    _remove_left()
    in_memory = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > room
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=IN_MEMORY if in_memory else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left() -> None:
    """What a run that was killed has left: tens of GB of memory."""
    for place in (IN_MEMORY, Path(tempfile.gettempdir())):
        for folder in place.glob(f"{PREFIX}*-*"):
            if not Path("/proc", folder.name.removeprefix(PREFIX).partition("-")[0]).exists():
                shutil.rmtree(folder, ignore_errors=True)
