"""What each stage of a run took: small files, whose presence also says that the stage is done."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from recsys.atomic import write_json
from recsys.train.distributed import Environment, barrier, control_group, peak_memory

_IMPORTED = time.monotonic()


@contextmanager
def stage(out: Path, name: str, environment: Environment, *, part: int = 0, parts: int = 1) -> Iterator[None]:
    """Time the block and record it under `out/stages` on rank 0, with the ranks' memory; nothing if it raises.

    Args:
        out: folder of the run.
        name: of the stage.
        environment: the ranks that do it together; their largest resident sets are added up.
        part: of `parts` groups of ranks that share the stage's work without talking to each other, this one's number.
        parts: how many there are.
    """
    start = time.monotonic()
    yield
    peak = torch.tensor([peak_memory()])
    dist.all_reduce(peak, group=control_group())
    if environment.is_main:
        _record(out, name, time.monotonic() - start, int(peak), part, parts)


@contextmanager
def exclusive(folder: Path, environment: Environment) -> Iterator[None]:
    """Let one job at a time work in `folder`; another one waits until it has ended, however it ends. A collective.

    A job whose launcher was killed may still be running when the same command is given again.
    """
    with ExitStack() as held:
        if environment.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((folder / "lock").open("w"))  # the lock goes with the process, or here
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another job that works in {folder}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        barrier()  # the lock may be another job's for hours
        yield


def record(out: Path, name: str, seconds: float) -> None:
    """Note that this process alone has done a stage."""
    _record(out, name, seconds, peak_memory(), part=0, parts=1)


def is_done(out: Path, name: str) -> bool:
    """Whether the stage has come to its end, in all of its parts."""
    files = list((out / "stages").glob(f"{name}.*.json"))
    return bool(files) and len(files) >= json.loads(files[0].read_text())["parts"]


def forget(out: Path, name: str) -> None:
    """Have a stage not done again."""
    for marker in (out / "stages").glob(f"{name}.*.json"):
        marker.unlink()


def read_stages(out: Path) -> dict[str, dict[str, float]]:
    """stage name -> `seconds` of its slowest part and `peak_rss_bytes` of all, in the order in which stages ended."""
    stages: dict[str, dict[str, float]] = {}
    for path in sorted((out / "stages").glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        part = json.loads(path.read_text())
        whole = stages.setdefault(path.name.split(".")[0], {"seconds": 0.0, "peak_rss_bytes": 0.0})
        whole["seconds"] = max(whole["seconds"], part["seconds"])
        whole["peak_rss_bytes"] += part["peak_rss_bytes"]
    return stages


def unaccounted(out: Path) -> float:
    """Seconds of this process that are in none of the stages that ended in it: imports, checks, starting ranks."""
    age = _age()
    begun = time.time() - age
    ended = {path.name.split(".")[0] for path in (out / "stages").glob("*.json") if path.stat().st_mtime >= begun}
    return max(0.0, age - sum(stage["seconds"] for name, stage in read_stages(out).items() if name in ended))


def _age() -> float:
    """Seconds since this process was started; where the system does not tell, since it imported this."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.monotonic() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _record(out: Path, name: str, seconds: float, peak_rss_bytes: int, part: int, parts: int) -> None:
    for marker in (out / "stages").glob(f"{name}.*.json"):
        with suppress(FileNotFoundError):  # another part has been faster
            if json.loads(marker.read_text())["parts"] != parts:  # of a run of other ranks, which was stopped
                marker.unlink()
    figures = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes, "parts": parts}
    write_json(out / "stages" / f"{name}.{part}.json", figures)
