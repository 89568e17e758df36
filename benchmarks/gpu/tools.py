"""Programs that parts start, and where they are found."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 5.0
CUDA_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")


def found(name: str) -> str | None:
    """Where a program of the CUDA toolkit or of Python's environment is, if it is there."""
    beside_python = str(Path(sys.executable).parent)
    nsight = sorted(map(str, Path("/opt/nvidia/nsight-compute").glob("*")), reverse=True)
    places = (beside_python, os.environ.get("PATH", ""), *CUDA_FOLDERS, *nsight)
    return shutil.which(name, path=os.pathsep.join(places))


def stream(
    command: Sequence[str],
    *,
    limit: float,
    line: Callable[[str], object] = lambda text: print(text, flush=True),
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run a program in the project's folder and hand on its output line by line as it comes.

    Args:
        command: program and arguments.
        limit: seconds after which it is killed, with all that it started.
        line: called with each line, errors' among them.
        environment: added to this process's.

    Returns:
        its exit status, negative where a signal ended it; None if it was killed at the limit.
    """
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **(environment or {})}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    late = False

    def end() -> None:
        nonlocal late
        late = True
        _signal(process, signal.SIGTERM)  # it ends what it started, which has groups of its own
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        _signal(process, signal.SIGKILL)

    timer = Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        for text in process.stdout:
            line(text.rstrip("\n"))
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # this process is being ended itself, and soon killed
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS / 2)
            _signal(process, signal.SIGKILL)  # what does not go, say it waits for a GPU that hangs, has the GPU else
    return None if late else status


def end_by_exception() -> None:
    """From here on SIGTERM unwinds this process, so that `stream` ends what it has started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the process and those that it started, unless they have a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
