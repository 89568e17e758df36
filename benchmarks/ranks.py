"""Ranks in fresh processes, joined by gloo: for figures that are to hang on nothing that ran before."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recsys.train.distributed import current_environment, without_notices

Figures = dict[str, Any]


def on_ranks(measure: Callable[..., Figures], ranks: int, *arguments: Any, threads: int = 1) -> Figures:
    """What `measure(environment, *arguments)` returns on rank 0, of so many ranks on this machine.

    Args:
        measure: a function of a module, called by every rank in its process group; what it returns is written as JSON.
        ranks: processes.
        arguments: can be pickled.
        threads: of torch's, a rank.

    Raises:
        torch.multiprocessing.ProcessRaisedException, ProcessExitedException: a rank failed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, args=(measure, ranks, threads, folder, arguments), nprocs=ranks)
        return json.loads(Path(folder, "figures.json").read_text())


def in_rounds(variants: Mapping[Any, Callable[[], Figures]], rounds: int) -> dict[Any, Figures]:
    """The figures of each variant: of those that are numbers the median over the rounds, in which the variants take
    turns; `runs` has every `*_per_second`."""
    found: dict[Any, list[Figures]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, measured in variants.items():
            found[name].append(measured())
    return {name: _medians(runs) for name, runs in found.items()}


def threads_of(ranks: int, cores: int) -> int:
    """Threads of a rank, where all of them are to fill so many cores."""
    return max(1, cores // ranks)


def total(value: float) -> float:
    """The sum over the ranks. A collective."""
    summed = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(summed)
    return float(summed)


def _medians(runs: Sequence[Figures]) -> Figures:
    numbers = {key: [run[key] for run in runs] for key, value in runs[0].items() if isinstance(value, int | float)}
    speed = next(key for key in numbers if key.endswith("_per_second"))
    medians = {key: statistics.median(values) for key, values in numbers.items()}
    return {**runs[0], **medians, "runs": numbers[speed]}


def _work(rank: int, measure: Callable[..., Figures], ranks: int, threads: int, folder: str, arguments: Any) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/ranks", ranks), rank=rank, world_size=ranks)
    with without_notices():
        figures = measure(current_environment(), *arguments)
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))
    dist.destroy_process_group()
