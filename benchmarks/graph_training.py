"""Training speed of a graph by TransR: on FB15k-237 beside PyKEEN's, and with tables of up to 100 M rows.

    python -m benchmarks.graph_training --data ../shared/data/fb15k-237
    python -m benchmarks.graph_training --rows 1000000 10000000 --dims 64

Triples a second, and pairs of a triple and a negative: on each number of ranks with as many threads as let them fill
the cores, in fresh processes, through the one training loop. Every size is given for a rank. The median of a few runs
in turn, without the first step.

PyKEEN (Ali et al., JMLR 2021) is no dependency: with `pip install pykeen tyro` in an environment of its own, whose
Python `--pykeen` names, it is measured too. The same in both: triples, batch, threads, dim = relation_dim, one matrix a
relation, Euclidean distances, a softmax over as many negatives a triple, K = 2 `negatives`, half of them in place of
the head. Not the same:

- PyKEEN draws K negatives for each triple (its sLCWA, uniform); ours draws N for a step, each of which stands in place
  of the head and of the tail of each of its triples. A batch is of groups of one relation here, of any triples there.
- PyKEEN keeps h, r and t, and h M_r and t M_r, within the unit ball, as Lin et al. did; ours does not.
- PyKEEN trains by torch's Adagrad over whole tables, its default; ours by row-wise Adagrad and AdamW.
- PyKEEN gathers M_r for each pair. Where that takes too much memory it works on parts of a batch (its
  `sub_batch_size`) and sums their gradients, which is the same step.

With `--rows`: one node type, SYNTHETIC ids of the whole int64 range, half as many as rows, all of them admitted, joined
at random. Beside the speed, bytes a row: what the resident memory of all ranks grows by over the training, with tables,
optimizer, the owners of rows, and the list that negatives are drawn from, less what it grows by with the fewest rows.
"""

from __future__ import annotations

import gc
import json
import subprocess
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.common import print_record, resident
from benchmarks.ranks import Figures, in_rounds, on_ranks, threads_of, total
from recsys.config import TrainConfig
from recsys.config.graph import GraphConfig
from recsys.data.hashing import splitmix64
from recsys.data.links import LinkStream
from recsys.data.triples import Graph, Triples, read_openke
from recsys.models.graph import GraphModel, GraphTask
from recsys.train.distributed import Environment, peak_memory
from recsys.train.trainer import fit

RELATIONS = 16
"""Of the synthetic graph."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    data: Path = Path("../shared/data/fb15k-237")
    """Folder of train2id.txt."""
    pykeen: Path | None = None
    """Python of an environment that has PyKEEN."""
    rows: tuple[int, ...] = ()
    """Rows of a table of synthetic ids, each a measurement; none: FB15k-237."""
    dims: tuple[int, ...] = (64, 200)
    """Widths of entities and of relations' spaces."""
    negatives: tuple[int, ...] = (8, 64)
    """Entities drawn for a step, N; with `rows` the last one alone."""
    batch_size: int = 1024
    """Triples a rank and step."""
    reciprocal: bool = False
    """Whether our relations have a second matrix, for finding heads: the project's default, which PyKEEN has not."""
    steps: int = 100
    """Of a run."""
    peer_steps: int = 3
    """Of a run of PyKEEN's."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks."""
    cores: int = 2
    """Threads of all ranks together."""
    rounds: int = 3
    """Runs of each variant; the median is printed."""


class Cut(LinkStream):
    """The first steps of a pass."""

    def first(self, steps: int) -> LinkStream:
        """Itself, with so many steps."""
        self.steps_per_epoch = self.total_steps = min(steps, self.total_steps)
        return self


def main(options: Options) -> None:
    """Print a line for each variant."""
    if options.rows:
        for dim in options.dims:
            _print_tables(dim, options)
        return
    if options.pykeen is None:
        print("PyKEEN is left out: `pip install pykeen tyro` somewhere, and name that Python by --pykeen", flush=True)
    for dim in options.dims:
        for negatives in options.negatives:
            _print_fb15k(replace(options, dims=(dim,), negatives=(negatives,)))


def _print_fb15k(options: Options) -> None:
    """A line for each number of ranks, and PyKEEN's."""
    variants = {
        ("ours", ranks): partial(on_ranks, train_fb15k, ranks, options, threads=threads_of(ranks, options.cores))
        for ranks in options.ranks
    }
    if options.pykeen is not None:
        variants["pykeen", 1] = partial(train_pykeen, options.pykeen, options)
    for (name, ranks), figures in in_rounds(variants, options.rounds).items():
        sizes = {"dim": options.dims[0], "negatives_a_triple": 2 * options.negatives[0]}
        print_record(
            "graph_training",
            {"trainer": name, "ranks": ranks, "threads": threads_of(ranks, options.cores)}
            | {**sizes, "batch_size": options.batch_size, **figures},
        )


def train_fb15k(environment: Environment, options: Options) -> Figures:
    """Ours on FB15k-237. A collective."""
    graph, (train,) = read_openke(options.data, ("train",))
    return _train(graph, train, task_of(graph, options), environment, options)


def train_table(environment: Environment, rows: int, options: Options) -> Figures:
    """Ours on a table of so many rows. A collective."""
    ids = splitmix64(np.arange(rows // 2, dtype=np.uint64)).view(np.int64)
    random = np.random.default_rng(0)
    count = options.steps * options.batch_size * environment.world_size
    links = Triples(
        heads=ids[random.integers(len(ids), size=count)],
        relations=np.sort(random.integers(RELATIONS, size=count)),
        tails=ids[random.integers(len(ids), size=count)],
        weights=np.ones(count, np.float32),
    )
    graph = Graph(
        types=("entity",),
        rows=(rows,),
        entities=(np.empty(0, np.int64),),  # the vocabulary knows them
        relations=tuple(f"relation_{number}" for number in range(RELATIONS)),
        ends=np.zeros((RELATIONS, 2), np.int64),
    )
    task = task_of(graph, options)
    before = resident()
    figures = _train(graph, links, task, environment, options, seen={"entity": ids})
    gc.collect()
    return figures | {
        "resident_bytes": total(resident() - before),
        "without_row": task.model.vocabulary.without_row({"entity": ids})["entity"],
    }


def train_pykeen(python: Path, options: Options) -> Figures:
    """PyKEEN's TransR on FB15k-237: what `benchmarks.pykeen_training` prints."""
    (dim,), (negatives,) = options.dims, options.negatives
    sizes = {"dim": dim, "negatives": 2 * negatives, "batch-size": options.batch_size}
    asked = sizes | {"steps": options.peer_steps, "threads": options.cores, "data": options.data}
    command = [str(python), "-m", "benchmarks.pykeen_training", *(f"--{key}={value}" for key, value in asked.items())]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = json.loads(printed.splitlines()[-1])
    return figures | _speeds(figures["triples_per_second"], negatives)


def task_of(graph: Graph, options: Options) -> GraphTask:
    """The model."""
    config = GraphConfig(
        score="transr",
        dim=options.dims[0],
        negatives=options.negatives[0],
        reciprocal=options.reciprocal,
    )
    torch.manual_seed(0)
    return GraphTask(GraphModel(graph, config), config)


def _train(
    graph: Graph,
    links: Triples,
    task: GraphTask,
    environment: Environment,
    options: Options,
    seen: dict[str, np.ndarray] | None = None,
) -> Figures:
    """Train for some steps; `seen` are ids that own rows then, where graph and links have ids."""
    config, vocabulary = task.model.links.config, task.model.vocabulary
    stream, training = prepare(graph, links, task, environment, options, with_ids=bool(seen))
    filled = len(links) / (stream.total_steps * training.batch_size * environment.world_size)
    result = fit(
        task,
        stream.first(options.steps),
        training,
        environment,
        tasks=(),
        title=None,
        begun=partial(vocabulary.admit, seen) if seen else None,
    )
    # The loop counts places; the last group of a relation has fewer triples than places.
    return _speeds(result.samples_per_second * filled, config.negatives) | {
        "filled": round(filled, 3),
        "input_wait_fraction": round(result.input_wait_fraction, 3),
        "loss": result.metrics["loss"],
        "peak_mib": round(total(peak_memory()) / 2**20),
    }


def prepare(
    graph: Graph,
    links: Triples,
    task: GraphTask,
    environment: Environment,
    options: Options,
    *,
    with_ids: bool = False,
) -> tuple[Cut, TrainConfig]:
    """This rank's batches of a task, and how it is trained."""
    config = task.model.links.config
    training = TrainConfig(
        epochs=1, batch_size=options.batch_size, sparse_lr=0.1, dense_lr=3e-4, checkpoint_every=0, log_every=10**6
    )
    stream = Cut(
        links,
        graph,
        batch_size=training.batch_size,
        group=config.group,
        negatives=config.negatives,
        rank=environment.rank,
        world_size=environment.world_size,
        locate=task.model.vocabulary.locate if with_ids else None,
    )
    return stream, training


def _print_tables(dim: int, options: Options) -> None:
    """A line for each number of rows and of ranks."""
    each = replace(options, dims=(dim,), negatives=options.negatives[-1:])
    variants = {
        (rows, ranks): partial(on_ranks, train_table, ranks, rows, each, threads=threads_of(ranks, options.cores))
        for rows in options.rows
        for ranks in options.ranks
    }
    found = in_rounds(variants, options.rounds)
    fewest = min(options.rows)
    for (rows, ranks), figures in found.items():
        used = {"of_a_row": 4 * (dim + 1)}
        if rows > fewest:
            grown = figures["resident_bytes"] - found[fewest, ranks]["resident_bytes"]
            used["bytes_a_row"] = round(grown / (rows - fewest), 1)
        sizes = {"dim": dim, "rows": rows, "ids": rows // 2, "batch_size": options.batch_size}
        print_record(
            "graph_training",
            {
                "data": "SYNTHETIC ids",
                "ranks": ranks,
                "threads": threads_of(ranks, options.cores),
                **sizes,
                **figures,
                **used,
            },
        )


def _speeds(triples: float, negatives: int) -> Figures:
    return {"triples_per_second": round(triples, 1), "pairs_per_second": round(triples * 2 * negatives)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
