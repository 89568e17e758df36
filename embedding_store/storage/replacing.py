"""A file that is replaced at once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedding_store.storage.local import sync_folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`; the file written there takes the place of `path` on a clean exit, at once and for good.

    On any other exit `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
