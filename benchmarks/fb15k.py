"""FB15k-237, or another graph of OpenKE's form: filtered MRR and Hits of the upstream kind `graph`.

    python -m benchmarks.fb15k --data ../shared/data/fb15k-237 --score complex

Trains on `train2id.txt` through the one training loop, chooses the pass by the MRR on `valid2id.txt`, and scores
`test2id.txt` once, at the end. Ranks are filtered by the triples of all three files, heads and tails, ties by their
mean. Published for FB15k-237: TransR Hits@10 0.511 (OpenKE); TransE MRR 0.313, ComplEx 0.348 (LibKGE).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import tyro
from torch import nn

from recsys.config import TrainConfig
from recsys.config.graph import SCORES, GraphConfig
from recsys.data.links import LinkStream
from recsys.data.triples import Graph, Triples, read_openke
from recsys.evaluate.links import KnownLinks, LinkRanks, rank_links
from recsys.models.graph import GraphModel, GraphTask, WholeGraph
from recsys.train.distributed import Environment, peak_memory, process_group
from recsys.train.trainer import fit


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train."""

    graph: GraphConfig
    """The score and its loss."""
    training: TrainConfig
    """The run; its epochs are of so many `passes`."""
    passes: int = 5
    """Passes over the triples between two looks at the validation triples."""
    judged: int = 5000
    """Validation triples of such a look; after the last, all of them are ranked."""
    data: Path = Path("../shared/data/fb15k-237")
    """Folder of train2id.txt, valid2id.txt and test2id.txt."""
    test: bool = True
    """Whether the test triples are ranked, at the end."""


RECIPES = {
    score: Options(
        graph=GraphConfig(score=score, dim=128),
        training=TrainConfig(epochs=6, batch_size=2048, sparse_lr=0.1, dense_lr=0.01, log_every=133),
    )
    for score in SCORES
}


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which recipe to follow."""

    score: str = "transr"
    """transr, transe, distmult, complex or rotate."""


def main(options: Options) -> None:
    """Train, evaluate, print."""
    graph, (train, valid, test) = read_openke(options.data)
    known = KnownLinks(Triples.join((train, valid, test)), graph)
    with process_group() as environment:
        started = time.perf_counter()
        judge = Judge(graph, some(valid, options.judged), known, environment)
        config, training = options.graph, options.training
        torch.manual_seed(training.seed)
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
        result = fit(
            GraphTask(GraphModel(graph, config), config),
            stream,
            training,
            environment,
            tasks=(),
            title=config.score,
            after_epoch=judge,
            score="1 - MRR",
        )
        trained = time.perf_counter() - started
        print_ranks("validation", judge.rank(result.model, valid))
        if options.test:
            print_ranks("test", judge.rank(result.model, test))
        print(
            f"{trained:.0f} s, {result.samples_per_second:.0f} links/s, waited {result.input_wait_fraction:.1%}, "
            f"{peak_memory() / 2**20:.0f} MiB"
        )


class Judge:
    def __init__(self, graph: Graph, valid: Triples, known: KnownLinks, environment: Environment) -> None:
        self.graph, self.valid, self.known, self.environment = graph, valid, known, environment

    def rank(self, model: nn.Module, triples: Triples) -> LinkRanks:
        model.eval()
        whole = WholeGraph(cast(GraphTask, model.module).model, self.graph, self.environment.device)
        return rank_links(whole, triples, self.known, self.graph)

    def __call__(self, model: nn.Module) -> tuple[float]:
        started = time.perf_counter()
        ranks = self.rank(model, self.valid)
        print_ranks(f"validation ({time.perf_counter() - started:.1f} s)", ranks)
        return (1 - ranks.mrr,)


def some(triples: Triples, most: int) -> Triples:
    """At most so many of the triples, drawn with seed 0."""
    return triples.take(np.sort(np.random.default_rng(0).permutation(len(triples))[:most]))


def print_ranks(name: str, ranks: LinkRanks) -> None:
    print(name, " ".join(f"{key} {value:.4f}" for key, value in ranks.record().items()), flush=True)


if __name__ == "__main__":
    which, rest = tyro.cli(Which, return_unknown_args=True)
    main(tyro.cli(Options, default=RECIPES[which.score], args=rest, description=__doc__))
