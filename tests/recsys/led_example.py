"""What the ranks of test_led.py run."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from recsys.jobs import run_here, run_job
from recsys.led import leading
from recsys.pipeline import ranks_here
from recsys.train.distributed import process_group


def stages(folder: Path) -> None:
    """Three jobs: rank 0 decides on the last by what the first two left, which are done when it goes on."""

    def run(arguments: Sequence[str]) -> None:
        with process_group() as environment:
            total = torch.tensor([environment.rank + 1])
            dist.all_reduce(total)
        if arguments[0] == "alone":
            with process_group(alone=True) as environment:
                total += environment.world_size
        (folder / f"{arguments[0]}-{os.environ['RANK']}").write_text(str(int(total)))

    with leading(run) as leads:
        if leads:
            for name in ("first", "alone"):
                run_job(name, [name], ranks_here(7), folder / "logs")
            found = len(list(folder.glob("*-*")))
            run_job("last", [f"after {found}"], 7, folder / "logs")
    assert not (folder / "logs").exists(), "ranks were started"


def mistake(folder: Path) -> None:
    with leading(run_here) as leads:
        if leads:
            arguments = ("upstream", "--config", str(folder / "none.toml"), "--data", ".", "--out", "o")
            run_job("upstream", arguments, 2, folder / "logs")


def killed_once(folder: Path) -> None:
    """Two jobs; in the second of them rank 1 is killed, at the first attempt."""

    def run(arguments: Sequence[str]) -> None:
        with process_group() as environment:
            dist.barrier()
            killed = folder / "killed"
            if arguments[0] == "second" and environment.rank == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()
        with (folder / f"{arguments[0]}-{os.environ['RANK']}").open("a") as file:
            file.write(os.environ["TORCHELASTIC_RESTART_COUNT"])

    with leading(run) as leads:
        if leads:
            for name in ("first", "second"):
                if not (folder / f"{name}-0").exists():
                    run_job(name, [name], 2, folder)


if __name__ == "__main__":
    killed_once(Path(sys.argv[1]))
