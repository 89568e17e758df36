"""What several tests of the store need."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from embedding_store import Series, Snapshot

_COARSE = 5
"""CLOCK_REALTIME_COARSE, which Python does not name: see csrc/cpu/mapping.cpp."""


def publish(
    series: Series, as_of: int, ids: list[int], vectors: torch.Tensor | None = None, **options: Any
) -> Snapshot:
    """Write one snapshot; by default every vector holds its row number."""
    if vectors is None:
        vectors = torch.arange(len(ids), dtype=torch.float32)[:, None].expand(-1, series.dim)
    with series.write(as_of=as_of, space="ctr-1", **options) as writer:
        writer.append(torch.tensor(ids, dtype=torch.int64), vectors)
    return writer.snapshot


def folder(series: Series) -> Path:
    """Where the series lies."""
    return series._storage.root


def files(series: Series) -> set[str]:
    """All files of the series, unfinished ones included."""
    return {path.relative_to(folder(series)).as_posix() for path in folder(series).rglob("*") if path.is_file()}


def named_files(series: Series) -> set[str]:
    """The files that should be there: those that manifests name, the manifests, series.json."""
    manifests = {f"manifests/{version:08d}.json" for version in series.versions()}
    stored = [file for snapshot in series.history() for file in snapshot.manifest.files]
    return {"series.json"} | manifests | {path for file in stored for path in (file.path, file.crc_path)}


def age(path: Path, seconds: float) -> None:
    """Make everything below `path` look last written `seconds` ago."""
    for file in [path, *path.rglob("*")]:
        os.utime(file, (time.time() - seconds,) * 2)


def settle() -> None:
    """Wait until the clock that files' times are of is past now: what changes from then on bears a later time than what
    is there. That it goes on is not enough: Linux 6.13 and later take a file's time from the precise clock where
    someone has asked for the time before, and the coarse one, when it goes on, may still be behind that."""
    now, deadline = time.time_ns(), time.monotonic() + 600
    while time.clock_gettime_ns(_COARSE) <= now:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def finish(child: int, seconds: float = 600.0) -> int:
    """A forked child's exit code; kills it and fails when it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked child hangs")
