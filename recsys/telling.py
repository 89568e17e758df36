"""An error that all ranks of a job come to is told once."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path


def first_to_tell(text: str) -> bool:
    """Whether no other rank of this job on this machine has said the same; outside of a job always."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"{job} {os.environ.get('MASTER_PORT', '')} {os.getppid()} {attempt} {text}"
    told = Path(tempfile.gettempdir()) / f"recsys-told-{zlib.crc32(key.encode()):08x}"
    try:
        told.open("x").close()
    except FileExistsError:
        return False
    except OSError:  # then each tells
        return True
    return True
