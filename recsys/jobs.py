"""Running a job of several ranks on this machine through torchx, and waiting for it."""

from __future__ import annotations

import codecs
import importlib
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torchx.specs as specs
from torchx.runner import Runner, get_runner
from torchx.schedulers.local_scheduler import SignalException

_POLL_SECONDS = 0.1
_ROOT_CAUSE = re.compile(r"Root Cause \(first observed failure\):.*?\brank +: (\d+).*?\bexitcode +: (-?\d+)", re.DOTALL)
"""torchrun's verdict, in its own output."""
_VICTIM = re.compile(r"Connection (closed|reset) by peer|Broken pipe|NCCL (error|communicator)")
"""How a rank fails because another one, whose error is the one to show, is gone."""


_ERROR = re.compile(r"^(Traceback \(most recent call last\)|error: |refused: )", re.MULTILINE)
"""How what ended a rank begins: a fault of the program, or what `recsys.cli.main` says."""


class JobError(RuntimeError):
    """A job ended with an error; the message has the failing rank's last lines and where all of them are."""


def run_job(name: str, arguments: Sequence[str], ranks: int, log_dir: Path) -> None:
    """Run a `recsys` subcommand on `ranks` ranks of this machine and wait for it.

    Rank 0's lines appear in this terminal as they come. Every rank's are kept under `log_dir`.

    Args:
        name: what to call the job in messages.
        arguments: the command line after `recsys`; the subcommand is also the component in `launchers/`.
        ranks: processes.
        log_dir: made if it does not exist; each job adds a folder of its own.

    Raises:
        JobError: the job failed.
        KeyboardInterrupt: Ctrl-C; the ranks have been stopped.
        SystemExit: SIGTERM; the ranks have been stopped.
    """
    component = getattr(importlib.import_module(f"launchers.{arguments[0]}"), arguments[0])
    run_app(name, specs.materialize_appdef(component, [*arguments[1:], "-j", f"1x{ranks}"]), log_dir)


def run_app(name: str, app: specs.AppDef, log_dir: Path) -> None:
    """Run a torchx application of one `dist.ddp` role on this machine and wait for it; see `run_job`."""
    (role,) = app.roles
    _use_this_interpreter(role)
    log_dir.mkdir(parents=True, exist_ok=True)
    # torchx's local scheduler turns SIGINT and SIGTERM into exceptions, and never back
    with _handlers_kept(), get_runner() as runner:
        handle = runner.run(app, "local_cwd", cfg={"log_dir": str(log_dir.resolve())})
        folder = log_dir / "torchx" / handle.rpartition("/")[2]
        workers = folder / "torchelastic" / role.name
        output = _Output(workers)
        try:
            status = _wait(runner, handle, output)
        except (SignalException, KeyboardInterrupt) as stopped:
            runner.cancel(handle)
            output.copy()
            received = getattr(stopped, "sigval", signal.SIGINT)
            if received == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + received) from None
    if status != specs.AppState.SUCCEEDED:
        raise JobError(_failure(name, workers, folder / role.name / "0" / "stderr.log"))


def _use_this_interpreter(role: specs.Role) -> None:
    """Start torchrun with this Python, which also finds this package: no activated environment, any working folder."""
    launcher, *arguments = shlex.split(role.args[1])
    assert (role.entrypoint, role.args[0], launcher) == ("bash", "-c", "torchrun"), role
    role.entrypoint, role.args = sys.executable, ["-m", "torch.distributed.run", *arguments]
    root = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    role.env["PYTHONPATH"] = os.pathsep.join([root, *([inherited] if inherited else [])])
    if sys.stdout.isatty():  # lets rank 0, whose output passes through a file, draw its progress bar
        role.env |= {"TTY_COMPATIBLE": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}


def _wait(runner: Runner, handle: specs.AppHandle, output: _Output) -> specs.AppState:
    while True:
        status = runner.status(handle)
        output.copy()
        if status is None or specs.is_terminal(status.state):
            output.copy()
            return specs.AppState.FAILED if status is None else status.state
        time.sleep(_POLL_SECONDS)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Output:
    """Copies what rank 0 writes to this process's own output; not the error that ended it, which `JobError` shows."""

    def __init__(self, workers: Path) -> None:
        self._stdout = _Tail(workers, "stdout.log", sys.stdout.write)
        self._stderr = _Tail(workers, "stderr.log", self._error)
        self._hidden = False

    def copy(self) -> None:
        self._stdout.copy()
        self._stderr.copy()
        sys.stdout.flush()
        sys.stderr.flush()

    def _error(self, text: str) -> int:
        found = _ERROR.search(text)
        written = 0 if self._hidden else sys.stderr.write(text[: found.start()] if found else text)
        self._hidden |= found is not None
        return written


class _Tail:
    """Follows one file of rank 0, which appears some time after the start."""

    def __init__(self, workers: Path, name: str, write: Callable[[str], int]) -> None:
        self._pattern = f"*/attempt_0/0/{name}"
        self._workers = workers
        self._write = write
        self._path: Path | None = None
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> None:
        self._path = self._path or next(self._workers.glob(self._pattern), None)
        if self._path is None:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        if data:
            self._offset += len(data)
            self._write(self._decoder.decode(data))


def _failure(name: str, workers: Path, agent: Path) -> str:
    """What to tell of a failed job: the last lines of the rank whose error came first, as far as can be told."""
    logs = {int(path.parent.name): path for path in workers.glob("*/attempt_*/*/stderr.log")}
    if not logs:
        return f"job {name} failed before its ranks started:\n{_last_error(agent)}\n(all output: {agent.parent})"
    errors = {rank: _last_error(path) for rank, path in sorted(logs.items())}
    first = _ROOT_CAUSE.search(agent.read_text(errors="replace"))
    rank = int(first[1]) if first else min(errors)
    died = first is not None and first[2].startswith("-")
    if _VICTIM.search(errors[rank]) or not (died or _ERROR.match(errors[rank])):  # one rank tells what all came to
        rank = next((r for r, text in errors.items() if _ERROR.match(text) and not _VICTIM.search(text)), rank)
    killed = f" (killed by signal {first[2][1:]})" if first and rank == int(first[1]) and first[2][0] == "-" else ""
    return f"job {name} failed on rank {rank}{killed}:\n{errors[rank]}\n(its whole output: {logs[rank].parent})"


def _last_error(path: Path) -> str:
    """The last error in a log, or its last lines where there is none."""
    lines = path.read_text(errors="replace").rstrip().splitlines() if path.is_file() else []
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    return "\n".join(lines[starts[-1] :] if starts else lines[-5:])
