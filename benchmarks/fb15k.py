"""FB15k-237, or another graph in files of its form: filtered MRR and Hits of graph embeddings.

    python -m benchmarks.fb15k --data ../shared/data/fb15k-237 --score transr

Trains on `train2id.txt` through the one training loop, ranks some triples of `valid2id.txt` every few passes, of which
the best one is taken, and ranks `test2id.txt` once, at the end. Ranks are filtered by the triples of all three files,
heads and tails, ties by their mean. TransR begins with a trained TransE, as Lin et al. 2015 did, and its M_r with the
identity. Every setting was chosen by the validation triples; `--help` prints them. Stopped, the same command goes on.

Published for FB15k-237: TransR Hits@10 0.511 (OpenKE); TransE MRR 0.313, ComplEx MRR 0.348 (LibKGE).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import tyro
from torch import nn

from benchmarks.common import print_record
from recsys.config import TrainConfig
from recsys.config.graph import GraphConfig
from recsys.data.links import LinkStream
from recsys.data.triples import Graph, Triples, read_openke
from recsys.identity import flatten, identify_files
from recsys.models.graph import GraphModel, GraphTask, WholeGraph
from recsys.train import checkpoint
from recsys.train.distributed import Environment, peak_memory, process_group
from recsys.train.link_ranks import KnownLinks, LinkRanks, rank_links
from recsys.train.run import TrainResult
from recsys.train.trainer import fit

SHARED = ("model.tables", "model.links.score.vectors")
"""What a TransR takes over of a TransE."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train."""

    graph: GraphConfig
    """The score and its loss."""
    training: TrainConfig
    """The run; an epoch of it is so many `passes`."""
    first: int = 0
    """Epochs of a TransE, by its recipe, whose vectors the training begins with; 0: none."""
    first_lr: float = 0.5
    """Its learning rate of the tables."""
    passes: int = 4
    """Passes over the triples between two looks at the validation triples."""
    judged: int = 4000
    """Validation triples of such a look; after the last, all of them are ranked."""
    data: Path = Path("../shared/data/fb15k-237")
    """Folder of train2id.txt, valid2id.txt and test2id.txt."""
    out: Path = Path("runs/fb15k")
    """Folder of the checkpoints."""
    test: bool = True
    """Whether the test triples are ranked."""


RUN = TrainConfig(epochs=5, batch_size=1024, sparse_lr=0.5, dense_lr=0.01, final_lr=0.02, checkpoint_every=0)
RECIPES = {
    "transe": Options(
        graph=GraphConfig(score="transe", dim=256, dropout=0.1, negatives=1024, reciprocal=False),
        training=replace(RUN, epochs=8, patience=3),
    ),
    "transr": Options(
        graph=GraphConfig(score="transr", dim=128, dropout=0.2),
        training=replace(RUN, epochs=3, sparse_lr=0.1, dense_lr=3e-4),
        first=10,
        passes=2,
    ),
    "distmult": Options(graph=GraphConfig(score="distmult", dim=256, n3=0.05), training=RUN),
    "complex": Options(graph=GraphConfig(score="complex", dim=256, n3=0.05), training=RUN),
    "rotate": Options(graph=GraphConfig(score="rotate", dim=128), training=RUN),
}


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which recipe to follow."""

    score: Literal["transr", "transe", "distmult", "complex", "rotate"] = "transr"
    """What makes a link plausible."""


class Ranker:
    """Ranks triples by a model; scores a pass by some of the validation triples, less is better."""

    def __init__(self, graph: Graph, known: KnownLinks, judged: Triples, environment: Environment) -> None:
        self._graph, self._known, self._judged, self._environment = graph, known, judged, environment

    def rank(self, model: nn.Module, triples: Triples) -> LinkRanks:
        """The triples' ranks. A collective."""
        model.eval()
        whole = WholeGraph(cast(GraphTask, model.module).model, self._graph, self._environment.device)
        return rank_links(whole, triples, self._known, self._graph)

    def __call__(self, model: nn.Module) -> tuple[float]:
        return (1 - self.rank(model, self._judged).mrr,)


def main(options: Options) -> None:
    """Train, evaluate, print."""
    graph, (train, valid, test) = read_openke(options.data)
    known = KnownLinks(Triples.join((train, valid, test)), graph)
    with process_group() as environment:
        started = time.perf_counter()
        ranker = Ranker(graph, known, some(valid, options.judged), environment)
        if options.first:
            train_graph(first_of(options), graph, train, ranker, environment)
        result = train_graph(options, graph, train, ranker, environment)
        figures = {"score": options.graph.score, "train_seconds": round(time.perf_counter() - started)}
        figures |= {"links_per_second": round(result.samples_per_second), "peak_mib": peak_memory() >> 20}
        for name, triples in (("validation", valid), ("test", test)):
            if name == "validation" or options.test:
                ranks = ranker.rank(result.model, triples).record()
                print(
                    f"| {options.graph.score} | {name} | {' | '.join(f'{x:.4f}' for x in ranks.values())} |", flush=True
                )
                figures[name] = {key: round(value, 4) for key, value in ranks.items()}
        if environment.is_main:
            print_record("fb15k", figures)


def first_of(options: Options) -> Options:
    """The training of the TransE that comes first."""
    training = replace(RUN, epochs=options.first, sparse_lr=options.first_lr, seed=options.training.seed)
    return replace(
        options, graph=replace(options.graph, score="transe", relation_dim=0, dropout=0.0), training=training
    )


def train_graph(
    options: Options, graph: Graph, train: Triples, ranker: Ranker, environment: Environment
) -> TrainResult:
    """Train a score, or go on with it, from the checkpoint of the TransE if one comes first. A collective."""
    config, training = options.graph, options.training
    torch.manual_seed(training.seed)
    task = GraphTask(GraphModel(graph, config), config)
    out = options.out / config.score
    begins = config.score != "transe" and options.first and checkpoint.latest(out / "checkpoints") is None

    def begin() -> None:
        if begins:
            checkpoint.load_model(options.out / "transe" / "checkpoints", task, parts=SHARED)

    files = [options.data / f"{part}2id.txt" for part in ("train", "valid", "test")]
    stream = LinkStream(
        train,
        graph,
        batch_size=training.batch_size,
        group=config.group,
        negatives=config.negatives,
        rank=environment.rank,
        world_size=environment.world_size,
        epochs=training.epochs,
        passes=options.passes,
        seed=training.seed,
    )
    return fit(
        task,
        stream,
        training,
        environment,
        tasks=(),
        identity={
            "files": identify_files(files, options.data),
            "config": flatten({"graph": asdict(config), "training": asdict(training), "first": options.first}),
        },
        out=out,
        title=config.score,
        begun=begin,
        after_epoch=ranker,
        score="1 - MRR",
    )


def some(triples: Triples, most: int) -> Triples:
    """At most so many of the triples, drawn with seed 0."""
    return triples.take(np.sort(np.random.default_rng(0).permutation(len(triples))[:most]))


if __name__ == "__main__":
    which, rest = tyro.cli(Which, return_unknown_args=True)
    main(tyro.cli(Options, default=RECIPES[which.score], args=rest, description=__doc__))
