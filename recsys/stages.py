"""What each stage of a run took: a small file a stage, whose presence also says that the stage is done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from recsys.train.distributed import Environment, peak_memory


@contextmanager
def stage(out: Path, name: str, environment: Environment) -> Iterator[None]:
    """Time the block and record it as `out/stages/<name>.json` on rank 0, with the ranks' memory; nothing if it raises.

    `peak_rss_bytes` is the sum over ranks of each rank's largest resident set.
    """
    start = time.monotonic()
    yield
    peak = torch.tensor([peak_memory()], device=environment.device)
    dist.all_reduce(peak)
    if environment.is_main:
        _record(out, name, time.monotonic() - start, int(peak))


def record(out: Path, name: str, seconds: float) -> None:
    """Note that this process alone has done a stage."""
    _record(out, name, seconds, peak_memory())


def is_done(out: Path, name: str) -> bool:
    """Whether the stage has come to its end in this output folder."""
    return _path(out, name).is_file()


def read_stages(out: Path) -> dict[str, dict[str, float]]:
    """stage name -> `seconds`, `peak_rss_bytes`, in the order in which the stages ended."""
    files = sorted((out / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem: json.loads(path.read_text()) for path in files}


def write_json(path: Path, value: object) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def _record(out: Path, name: str, seconds: float, peak_rss_bytes: int) -> None:
    write_json(_path(out, name), {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes})


def _path(out: Path, name: str) -> Path:
    return out / "stages" / f"{name}.json"
