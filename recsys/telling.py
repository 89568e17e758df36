"""An error that all ranks of a job come to is told once, and no restart tries again what would end the same way."""

from __future__ import annotations

import os
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def first_to_tell(text: str) -> bool:
    """Whether no other rank of this job on this machine has said the same; outside of a job always."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        _note(f"{job} {os.environ.get('MASTER_PORT', '')} {_launcher()} {attempt} {text}").open("x").close()
    except FileExistsError:
        return False
    except OSError:  # then each tells
        return True
    return True


def end_of_all_attempts(code: int) -> None:
    """Note that this rank ended with a mistake, or a refusal: the job's next attempt would come to it again."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        with suppress(OSError):  # then each attempt comes to it itself
            _end().write_text(str(code))


def ended_before() -> int | None:
    """The exit code with which an earlier attempt of this job ended for good on this machine."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    try:
        return int(_end().read_text())
    except (OSError, ValueError):  # none, or one that a full disk has cut off
        return None


def _end() -> Path:
    return _note(f"{os.environ['TORCHELASTIC_RUN_ID']} {_launcher()}")


def _launcher() -> str:
    """What started the ranks of this machine, by its id and when it began: notes stay, and ids are given out again."""
    parent = os.getppid()
    try:
        began = (_PROC / str(parent) / "stat").read_text().rpartition(")")[2].split()[19]  # since the machine's start
        return f"{parent} {began} {(_PROC / 'sys/kernel/random/boot_id').read_text()}"
    except (OSError, IndexError):  # where the system does not tell
        return str(parent)


def _note(key: str) -> Path:
    return Path(tempfile.gettempdir()) / f"recsys-told-{zlib.crc32(key.encode()):08x}"
