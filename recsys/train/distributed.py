"""The process group and device of this rank: torchrun's ranks, or this process alone."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from recsys.train.heartbeat import beat, giving

_CALLS_INSIDE_TORCHREC = (
    "Please use DTensor instead and we are deprecating ShardedTensor",
    "`broadcast_buffers` is deprecated",
    "`torch.distributed.all_gather_into_tensor` is deprecated",
    "`torch.distributed.reduce_scatter_tensor` is deprecated",
)
"""Torch's notices to TorchRec's authors: nothing that a user of this project calls, or could change."""

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_USE = Path("/sys/fs/cgroup/memory.stat")
CGROUP_CPUS = Path("/sys/fs/cgroup/cpu.max")

FILE_TIMEOUT = timedelta(hours=24)
"""How long a rank waits where others may work on files: for checksums, commits, another job's lock. A disk that gives
200 MB/s takes 83 minutes for a terabyte, and rank 0 may have all of it to read."""
_GRACE = timedelta(minutes=1)
"""That a process group waits on when a step takes too long, so that `recsys.train.watch` says more than it does."""

_groups = itertools.count()
"""Numbers of the process groups to come; the same on every rank."""
_control: tuple[Any, dist.ProcessGroup] | None = None
"""The process group that runs, and its control group."""


class DeviceError(ValueError):
    """More ranks than there are devices for them, or another mistake in what a launcher says."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Which rank of how many this process is, and where its tensors live."""

    rank: int
    """0 ... world_size - 1; rank 0 alone logs and publishes."""
    world_size: int
    """Processes of the job."""
    local_world_size: int
    """Processes of the job on this machine, which share its cores and memory."""
    device: torch.device
    """`cuda:LOCAL_RANK`, or the CPU."""

    @property
    def input_threads(self) -> int:
        """Threads that decode this rank's input: its share of the cores but one, which trains; 4 at most, since what
        they decode waits for one thread to make batches of."""
        return max(1, min(4, _cores() // self.local_world_size - 1))

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that logs and publishes."""
        return self.rank == 0


def current_environment() -> Environment:
    """The environment of the process group that is already running. Raises RuntimeError where there is none."""
    if not dist.is_initialized():
        raise RuntimeError("no process group is running: work inside `with process_group() as environment:`")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return Environment(rank=rank, world_size=world_size, local_world_size=local_world_size, device=_device(rank))


@contextmanager
def process_group(*, alone: bool = False) -> Iterator[Environment]:
    """Start this rank's process group and stop it at the end; one that is already running is used and left running.

    Under torchrun (`torchx run`) the ranks find each other by its environment variables; without it, or if it is to
    work `alone`, this process is the only rank. NCCL and one GPU a rank where CUDA is available, gloo on the CPU
    otherwise. What is not left to bfloat16 (`recsys.train.predict.mixed_precision`) is computed in float32 there too,
    not in TF32, whose ten bits do not tell near vectors apart.

    Raises:
        DeviceError: more ranks on this machine than GPUs, or fewer GPUs than its launcher was to ask for; the message
            says what to do.
    """
    if dist.is_initialized():
        yield current_environment()
        return
    asked, there = int(os.environ.get("RECSYS_GPUS", 0)), torch.cuda.device_count()
    if there < asked:
        raise DeviceError(
            f"--gpu is {asked}, but torch finds {there or 'no'} GPU{'s' if there > 1 else ''} on this machine: leave "
            "--gpu out to work on the CPU, install torch's CUDA build, or start the job where there are so many"
        )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if backend == "nccl":
        if local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"local rank {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}; "
                f"start at most that many ranks on it (-j 1x{torch.cuda.device_count()})"
            )
        torch.cuda.set_device(local_rank)
    timeout = collective_timeout() + _GRACE
    if not alone and "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        # A process may start one group after another: what the ranks of an earlier one said of themselves is not read.
        store, rank, world_size = found_ranks()
        store = dist.PrefixStore(f"group {next(_groups)}", store)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    ends = True
    try:
        environment = current_environment()
        _use_all_cores(environment)
        with without_notices(), _signs(environment):
            yield environment
    except (Exception, KeyboardInterrupt):
        # Ranks end NCCL's groups together: one that failed would wait for those that wait for it, its error untold.
        ends = backend == "gloo" or dist.get_world_size() == 1
        raise
    finally:
        if ends:
            dist.destroy_process_group()


def _signs(environment: Environment) -> AbstractContextManager[None]:
    """Those of life, which other ranks look for."""
    if environment.world_size == 1:
        return nullcontext()
    store: Any = distributed_c10d._get_default_store()
    return giving(store.clone())


@functools.cache
def found_ranks() -> tuple[dist.Store, int, int]:
    """The store that the ranks of a launcher find each other with, this one's number, and how many there are.

    The store outlives the ranks (torch elastic's agent has it): what they said before a restart is not read after it.
    """
    store, rank, world_size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store), rank, world_size


def control_group() -> dist.ProcessGroup:
    """All ranks, on the CPU, with a timeout of their own: what waits for another rank's file work waits here.

    Made by the first call of a process group, which is a collective. It is gloo beside NCCL, whose watchdog would end
    the job after `collective_timeout`, and whose waiting would hold a GPU.
    """
    global _control
    world = dist.group.WORLD
    if _control is None or _control[0] is not world:
        group = dist.new_group(backend="gloo", timeout=FILE_TIMEOUT)
        assert group is not None  # every rank is in it
        _control = world, group
    return _control[1]


def barrier() -> None:
    """Wait for all ranks, whatever they do with files before they come."""
    dist.barrier(control_group())
    beat()


def collective_timeout() -> timedelta:
    """How long a rank waits for the others in a step: RECSYS_COLLECTIVE_TIMEOUT seconds, 600 where it is not set.

    Raises:
        DeviceError: it is no number of seconds.
    """
    found = os.environ.get("RECSYS_COLLECTIVE_TIMEOUT", "600")
    try:
        timeout = timedelta(seconds=float(found))
    except (ValueError, OverflowError):
        timeout = timedelta(0)
    if timeout <= timedelta(0):
        raise DeviceError(f"RECSYS_COLLECTIVE_TIMEOUT is {found!r}: give seconds, more than 0, or leave it out: 600")
    return timeout


def broadcast(value: Any, environment: Environment) -> Any:
    """Rank 0's value on every rank, however long it takes to find: others wait in the control group."""
    values = [value if environment.is_main else None]
    dist.broadcast_object_list(values, src=0, group=control_group())
    beat()
    return values[0]


def host_memory() -> int:
    """Bytes of memory this machine (or this container) has."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return min(limits)


def free_memory() -> int:
    """Bytes of that which no process uses but for the system's cache of files."""
    try:
        used = dict(line.split() for line in CGROUP_USE.read_text().splitlines())
        free = [host_memory() - int(used["anon"])]
    except (OSError, KeyError, ValueError):  # no such controller
        free = [host_memory()]
    try:
        (found,) = re.findall(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free.append(int(found) * 1024)
    except (OSError, ValueError):  # no Linux
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(free))


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def _device(rank: int) -> torch.device:
    if torch.cuda.is_available() and dist.get_backend() == "nccl":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
    return torch.device("cpu")


@contextmanager
def without_notices() -> Iterator[None]:
    """Silence torch's notices to TorchRec's authors; `process_group` does so too."""
    with warnings.catch_warnings():
        for message in _CALLS_INSIDE_TORCHREC:
            warnings.filterwarnings("ignore", message=re.escape(message), category=FutureWarning)
        yield


def _use_all_cores(environment: Environment) -> None:
    """Undo torch elastic's OMP_NUM_THREADS=1, which it sets for every worker; any other value is the user's wish."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    torch.set_num_threads(max(1, _cores() // environment.local_world_size))


def _cores() -> int:
    """CPUs that this process may run on: Slurm binds it to some, Kubernetes lets it use so much of all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, CGROUP_CPUS.read_text().split())
    except (OSError, ValueError):  # no such controller, or "max"
        return cores
    return min(cores, math.ceil(quota / period))
