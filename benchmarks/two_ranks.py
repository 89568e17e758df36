"""Where a step goes when it is shared: collectives, bytes, processor seconds and waiting, of every kind of upstream.

    python -m benchmarks.two_ranks --ranks 1 2 4

Every variant starts its ranks anew, one thread each, with the same batch a rank: weak scaling. `torchrec` is the
training loop of this project. `dense` has the same network and loss with whole tables on every rank that nobody trains,
by DistributedDataParallel: what is left if tables cost nothing. `plain` trains them too, with dense gradients that are
averaged. The steps between the fifth and the last but two are measured.

Seconds of a rank are its process's processor time. What it waited is what its main thread neither ran nor stood in the
kernel's queue for a core (/proc/self/schedstat), so that it holds on a machine that is shared. Collectives and bytes
are counted in a run of their own, by a mode that sees every operation of torch.distributed; a collective's bytes are
those of the tensors that a rank hands in.

The events are the SYNTHETIC market's (derm), pairs of ids (contrastive), and links at random among as many entities and
relations as FB15k-237 has (graph).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import contrastive_training, graph_training, upstream_training
from benchmarks.common import print_record
from benchmarks.ranks import Figures, in_rounds, on_ranks, total
from benchmarks.upstream_training import train_plain
from recsys.config import TrainConfig
from recsys.data.synthetic import prepare_synthetic
from recsys.data.triples import Graph, Triples
from recsys.train.distributed import Environment
from recsys.train.predict import Stream
from recsys.train.tables import draw_tables
from recsys.train.trainer import fit

FIRST, LAST = 5, 2
"""Steps at the beginning and at the end that are not measured."""
ENTITIES, RELATIONS = 14_541, 237
"""Of FB15k-237."""
COUNTED_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    kinds: tuple[str, ...] = ("derm", "contrastive", "graph")
    """Upstreams."""
    variants: tuple[str, ...] = ("torchrec", "dense", "plain")
    """How they are trained, see above."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks."""
    steps: int = 60
    """Of a run."""
    rounds: int = 1
    """Runs of each variant, in turn; the median is printed."""
    rows: int = 200_000
    """Of each table of pairs."""
    dim: int = 64
    """Of pairs and of the graph."""


class Counted(TorchDispatchMode):
    """Counts the collectives within it, and the bytes that this rank hands to each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0].strip("_")
            given = args[1] if name.startswith(("all_gather", "allgather", "alltoall", "reduce_scatter")) else args[0]
            self.calls[name] += 1
            self.bytes[name] += sum(x.nbytes for x in tree_leaves(given) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Moment:
    """Where a rank stands."""

    wall: float
    processor: float
    waiting: float  # wall time in which the main thread asked for no core
    calls: Counter[str]
    bytes: Counter[str]


class Marked:
    """A stream that notes the moments at which the first and the last measured step ask for a batch."""

    def __init__(self, stream: Stream, counted: Counted | None) -> None:
        self._stream, self._counted = stream, counted
        self.moments: list[Moment] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._stream):
            if number in (FIRST, self._stream.total_steps - LAST):
                self.moments.append(_moment(self._counted))
            yield batch

    def figures(self, batch_size: int, ranks: int) -> Figures:
        """What a step takes, in the mean. A collective."""
        first, last = self.moments
        steps = self._stream.total_steps - LAST - FIRST
        seconds = (last.wall - first.wall) / steps
        return {
            "samples_per_second": round(batch_size * ranks / seconds),
            "processor_ms_a_step": round(1000 * total((last.processor - first.processor) / steps) / ranks, 2),
            "wall_ms_a_step": round(1000 * seconds, 2),
            "waiting_share": round(total((last.waiting - first.waiting) / (last.wall - first.wall)) / ranks, 3),
        }

    def counts(self) -> Figures:
        """Collectives a step and their bytes on this rank."""
        first, last = self.moments
        steps = self._stream.total_steps - LAST - FIRST
        calls, sizes = last.calls - first.calls, last.bytes - first.bytes
        return {
            "collectives_a_step": round(sum(calls.values()) / steps, 2),
            "bytes_a_step": round(sum(sizes.values()) / steps),
            "collectives": {name: [round(calls[name] / steps, 2), round(sizes[name] / steps)] for name in calls},
        }


def main(options: Options) -> None:
    """Print a line for each variant."""
    pairs = contrastive_training.Options(
        rows=(options.rows,), dim=options.dim, steps=options.steps, ranks=options.ranks
    )
    with tempfile.TemporaryDirectory() as folder, contrastive_training.events(pairs) as files:
        if "derm" in options.kinds:
            prepare_synthetic(Path(folder))
        at = {"derm": Path(folder), "contrastive": files[options.rows], "graph": None}
        variants = {
            (kind, variant, ranks): partial(_measured, kind, variant, ranks, at[kind], options)
            for kind in options.kinds
            for variant in options.variants
            for ranks in options.ranks
            if (kind, variant) != ("contrastive", "dense")  # has next to nothing but tables
        }
        found = in_rounds(variants, options.rounds)
    for (kind, variant, ranks), figures in found.items():
        alone = found.get((kind, variant, 1))
        worth = {"worth": round(figures["samples_per_second"] / alone["samples_per_second"], 3)} if alone else {}
        print_record("two_ranks", {"kind": kind, "variant": variant, "ranks": ranks, **figures, **worth})


def _measured(kind: str, variant: str, ranks: int, data: Path | None, options: Options) -> Figures:
    figures = on_ranks(measure, ranks, kind, variant, data, options, False)
    return figures | on_ranks(measure, ranks, kind, variant, data, options, True)


def measure(environment: Environment, kind: str, variant: str, data: Path, options: Options, counting: bool) -> Figures:
    """Train for some steps. A collective."""
    steps = COUNTED_STEPS if counting else options.steps
    task, stream, training, begun = KINDS[kind](environment, data, steps, options)
    stream.total_steps = stream.steps_per_epoch = steps
    counted = Counted() if counting else None
    marked = Marked(stream, counted)
    with counted or nullcontext():
        if variant == "torchrec":
            fit(task, marked, training, environment, tasks=task_names(task), title=None, begun=begun)
        else:
            begun()
            train_plain(draw_tables(task, 0), marked, tables=variant == "plain")
    return marked.counts() if counting else marked.figures(training.batch_size, environment.world_size)


Prepared = tuple[nn.Module, Any, TrainConfig, Callable[[], object]]


def task_names(task: nn.Module) -> tuple[str, ...]:
    """The columns of its logits."""
    return getattr(task.loss, "tasks", ())


def _derm(environment: Environment, data: Path, steps: int, options: Options) -> Prepared:
    task, stream, training = upstream_training.prepare(environment, data, steps)
    return task, stream, _quiet(training), lambda: None


def _contrastive(environment: Environment, data: Path, steps: int, options: Options) -> Prepared:
    pairs = contrastive_training.Options(dim=options.dim, steps=steps)
    ready = contrastive_training.prepare(environment, data, "own", options.rows, pairs)
    return ready.task, ready.stream, _quiet(ready.training), ready.begin


def _graph(environment: Environment, data: None, steps: int, options: Options) -> Prepared:
    links = graph_training.Options(dims=(options.dim,), negatives=(64,), steps=steps)
    random = np.random.default_rng(0)
    count = 2 * options.steps * links.batch_size * environment.world_size
    triples = Triples(
        heads=random.integers(ENTITIES, size=count),
        relations=np.sort(random.integers(RELATIONS, size=count)),
        tails=random.integers(ENTITIES, size=count),
        weights=np.ones(count, np.float32),
    )
    graph = Graph(
        types=("entity",),
        rows=(ENTITIES,),
        entities=(np.arange(ENTITIES),),
        relations=tuple(f"relation_{number}" for number in range(RELATIONS)),
        ends=np.zeros((RELATIONS, 2), np.int64),
    )
    task = graph_training.task_of(graph, links)
    stream, training = graph_training.prepare(graph, triples, task, environment, links)
    return task, stream, _quiet(training), lambda: None


KINDS: dict[str, Callable[..., Prepared]] = {"derm": _derm, "contrastive": _contrastive, "graph": _graph}


def _quiet(training: TrainConfig) -> TrainConfig:
    return replace(training, log_every=10**6, checkpoint_every=0)


def _moment(counted: Counted | None) -> Moment:
    ran, queued, _ = map(int, Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split())
    now = time.perf_counter()
    calls, sizes = (Counter(counted.calls), Counter(counted.bytes)) if counted else (Counter(), Counter())
    return Moment(now, time.process_time(), now - (ran + queued) / 1e9, calls, sizes)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
