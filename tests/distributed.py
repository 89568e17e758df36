"""Run a function on N real gloo ranks, with a timeout and the child's own traceback."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from tests.processes import forkserver


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 600.0,
    collective_timeout: float | None = None,
) -> list[Any]:
    """Call `function(*args)` on every rank of a fresh gloo group; return the ranks' return values, rank 0 first.

    Once all ranks have come, collectives of the group end after `collective_timeout` seconds, None: `timeout`.

    `function` must be importable (top level of a module) and its result picklable by torch.save.

    Raises:
        AssertionError: a rank raised (its traceback is in the message), died, or did not end within `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = forkserver()
        processes = [
            context.Process(
                target=_rank,
                args=(function, rank, world_size, folder, timeout, collective_timeout, args),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode not in (None, 0) for process in processes):
                break  # one failed: the others wait for it in a collective
            time.sleep(0.02)
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        errors = sorted(Path(folder).glob("error-*.txt"))
        assert not errors, "\n".join(path.read_text() for path in errors)
        assert not late, f"ranks {late} did not end within {timeout} s"
        codes = [process.exitcode for process in processes]
        assert not any(codes), f"ranks ended with exit codes {codes}"
        return [torch.load(f"{folder}/result-{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    folder: str,
    timeout: float,
    collective_timeout: float | None,
    args: tuple,
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size)
    )
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout))
    try:
        if collective_timeout is not None:
            dist.barrier()
            _set_pg_timeout(timedelta(seconds=collective_timeout))
        torch.save(function(*args), f"{folder}/result-{rank}.pt")
    except BaseException:
        # Under its name at once: who waits for another rank is killed while it writes, when that one is gone.
        (written := Path(folder, f"rank-{rank}")).write_text(f"rank {rank}:\n{traceback.format_exc()}")
        written.rename(Path(folder, f"error-{rank}.txt"))
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()
