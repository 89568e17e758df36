"""Running a job of several ranks on this machine with torch elastic, and waiting for it.

To import torch and TorchRec takes longer than most small jobs do. So one process, the fork server, imports them once
and every rank is forked off it; on a GPU, whose libraries survive no fork, each rank is a new process. On a cluster the
jobs are the torchx components in `launchers/`; those of a whole run, one job there, are for recsys/led.py.
"""

from __future__ import annotations

import codecs
import importlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from recsys.led import is_led, on_ranks, run_led
from recsys.stopping import RESUME, code_after

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30
"""Until a rank that was told to end is killed; elastic's own."""
_VICTIM = re.compile(r"Connection (closed|reset) by peer|Broken pipe|NCCL (error|communicator)")
"""How a rank fails because another one, whose error is the one to show, is gone."""
_ERROR = re.compile(r"^(Traceback \(most recent call last\)|error: |refused: )", re.MULTILINE)
"""How what ended a rank begins: a fault of the program, or what `recsys.cli.main` says."""
_IMPORTED = [
    *("recsys.cli", "recsys.upstream", "recsys.refresh.cycle", "recsys.downstream.ranking"),
    *("torch.utils.tensorboard", "recsys.evaluate.plots"),  # which rank 0 of most jobs needs
]
"""What the fork server has imported when a rank is forked off it."""


class JobError(RuntimeError):
    """A job ended with an error; the message has the failing rank's last lines and where all of them are."""


def warm_up() -> None:
    """Start the fork server, which imports torch while this process does other things; not on a launcher's ranks."""
    if on_ranks():
        return
    from multiprocessing import forkserver

    # OpenMP's threads spin while they wait for one another; beside any other busy process all would, for nothing: four
    # to six times slower than to sleep, and no faster on a machine of one's own. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    multiprocessing.set_forkserver_preload(_IMPORTED)
    forkserver.ensure_running()


def run_job(name: str, arguments: Sequence[str], ranks: int, log_dir: Path) -> None:
    """Run a `recsys` subcommand on `ranks` ranks of this machine and wait for it.

    Rank 0's lines appear in this terminal as they come. Every rank's are kept under `log_dir`. Of a run that a launcher
    has started on several ranks, these run it, and what ends one of them ends this process too.

    Args:
        name: what to call the job in messages.
        arguments: the command line after `recsys`.
        ranks: processes.
        log_dir: made if it does not exist; each job adds a folder of its own.

    Raises:
        JobError: the job failed.
        KeyboardInterrupt: Ctrl-C; the ranks have been stopped.
        SystemExit: SIGTERM, with `recsys.stopping.RESUME`; the ranks have been stopped.
    """
    if is_led():
        run_led(arguments)
    else:
        run_ranks(name, run_here, (tuple(arguments),), ranks, log_dir)


def run_ranks(name: str, work: Callable[..., None], arguments: tuple, ranks: int, log_dir: Path) -> None:
    """Call a function of a module on every rank, in the environment that torchrun gives; see `run_job`."""
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    warm_up()
    folder = log_dir / f"{name}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=_POLL_SECONDS,
        start_method="spawn" if torch.cuda.is_available() else "forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder.resolve()), redirects=Std.ALL),
    )
    # elastic turns SIGINT and SIGTERM into exceptions, and never back; a failure is told below
    others = multiprocessing.active_children()
    with _handlers_kept(), _quiet_logs(), _copied(folder):
        try:
            elastic_launch(config, _rank)(work, arguments, {**os.environ, **_terminal()})
        except ChildFailedError as error:
            first, failure = error.get_first_failure()
            if failure.exitcode == RESUME:  # a signal to a rank alone
                raise SystemExit(RESUME) from None
            raise JobError(_failure(name, folder, first, failure.exitcode)) from None
        except (SignalException, KeyboardInterrupt) as stopped:
            _end_all_but(others)
            received = getattr(stopped, "sigval", signal.SIGINT)
            if received == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(code_after(received)) from None


def _end_all_but(others: Collection[BaseProcess]) -> None:
    """End ranks that elastic, stopped as it started them, does not know: Python would wait for them at its own end."""
    ranks = [process for process in multiprocessing.active_children() if process not in others]
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        rank.join(_GRACE_SECONDS)
        rank.kill()


def _rank(work: Callable[..., None], arguments: tuple, environment: Mapping[str, str]) -> None:
    """One rank. What ends it, which elastic would keep to itself or tell in the terminal, goes to its stderr."""
    os.environ.update(environment)  # the fork server has that of when it was started
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it: see recsys/train/distributed.py
    try:
        work(*arguments)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            raise SystemExit(1) from None
        raise


def run_here(arguments: Sequence[str]) -> None:
    """Run a `recsys` command line in this process."""
    sys.argv = ["recsys", *arguments]
    importlib.import_module("recsys.cli").run_command()  # by its name, as a shell would start it


def _terminal() -> dict[str, str]:
    """Lets rank 0, whose output passes through a file, draw its progress bar."""
    if not sys.stdout.isatty():
        return {}
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}


@contextmanager
def _handlers_kept() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous |= {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Without what elastic logs of ranks that end."""
    names = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def _copied(folder: Path) -> Iterator[None]:
    """Copy what rank 0 writes to this process's own output; not the error that ended it, which `JobError` shows."""
    output, ended = _Output(folder), threading.Event()

    def copy() -> None:
        while not ended.wait(_POLL_SECONDS):
            output.copy()
        output.copy()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Output:
    def __init__(self, folder: Path) -> None:
        self._stdout = _Tail(folder, "stdout.log", sys.stdout.write)
        self._stderr = _Tail(folder, "stderr.log", self._error)
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

    def __init__(self, folder: Path, name: str, write: Callable[[str], int]) -> None:
        self._pattern = f"*/attempt_0/0/{name}"
        self._folder = folder
        self._write = write
        self._path: Path | None = None
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> None:
        self._path = self._path or next(self._folder.glob(self._pattern), None)
        if self._path is None:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        if data:
            self._offset += len(data)
            self._write(self._decoder.decode(data))


def _failure(name: str, folder: Path, first: int, exit_code: int) -> str:
    """What to tell of a failed job: the last lines of the rank whose error came first, as far as can be told.

    Args:
        name: of the job.
        folder: of the ranks' logs.
        first: the rank that ended first.
        exit_code: of that; negative: the signal that killed it.
    """
    logs = {int(path.parent.name): path for path in folder.glob("*/attempt_*/*/stderr.log")}
    errors = {rank: _last_error(path) for rank, path in sorted(logs.items())}
    rank = first
    if _VICTIM.search(errors[rank]) or not (exit_code < 0 or _ERROR.match(errors[rank])):  # one rank tells for all
        rank = next((r for r, text in errors.items() if _ERROR.match(text) and not _VICTIM.search(text)), rank)
    killed = f" (killed by signal {-exit_code})" if exit_code < 0 and rank == first else ""
    return f"job {name} failed on rank {rank}{killed}:\n{errors[rank]}\n(its whole output: {logs[rank].parent})"


def _last_error(path: Path) -> str:
    """The last error in a log, or its last lines where there is none."""
    lines = path.read_text(errors="replace").rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    return "\n".join(lines[starts[-1] :] if starts else lines[-5:])
