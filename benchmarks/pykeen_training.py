"""Training speed of PyKEEN's TransR on FB15k-237: what `benchmarks.graph_training --pykeen` holds ours against.

    PYTHON -m benchmarks.pykeen_training --data ../shared/data/fb15k-237

`PYTHON` is that of an environment with `pip install pykeen tyro`, in a process without TorchRec: PyKEEN registers every
optimizer class there is by its name, and TorchRec has two of one name. Nothing else of the project needs PyKEEN. Prints
a line of JSON.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from pykeen import get_version
from pykeen.losses import InfoNCELoss
from pykeen.models import TransR
from pykeen.training import SLCWATrainingLoop, TrainingCallback
from pykeen.triples import CoreTriplesFactory

from recsys.data.triples import read_openke

GATHERED = 256 * 2**20
"""Bytes of relations' matrices that are gathered at once."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train."""

    data: Path
    """Folder of train2id.txt."""
    dim: int = 64
    """Of entities and of relations' spaces."""
    negatives: int = 16
    """Of a triple, K."""
    batch_size: int = 1024
    """Triples a step."""
    steps: int = 4
    """Steps, the first of which is not timed."""
    threads: int = 2
    """Of torch's."""


class Clock(TrainingCallback):
    """When each step ended."""

    def __init__(self, ends: list[float]) -> None:
        super().__init__()
        self.ends = ends

    def post_batch(self, epoch: int, batch: object, **kwargs: object) -> None:
        """Called by the training loop."""
        self.ends.append(time.perf_counter())


def main(options: Options) -> None:
    """Train some triples, drawn with seed 0, and print."""
    torch.set_num_threads(options.threads)
    graph, (train,) = read_openke(options.data, ("train",))
    some = train.take(np.random.default_rng(0).permutation(len(train))[: options.steps * options.batch_size])
    triples = CoreTriplesFactory(
        torch.from_numpy(np.stack((some.heads, some.relations, some.tails), axis=1)),
        num_entities=graph.rows[0],
        num_relations=len(graph.relations),
    )
    model = TransR(
        triples_factory=triples,
        embedding_dim=options.dim,
        relation_dim=options.dim,
        scoring_fct_norm=2,
        loss=InfoNCELoss(margin=0.0, log_adversarial_temperature=0.0),
        random_seed=0,
    )
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=triples,
        optimizer=torch.optim.Adagrad(model.parameters(), lr=0.1),
        negative_sampler="basic",
        negative_sampler_kwargs={"num_negs_per_pos": options.negatives},
        automatic_memory_optimization=False,  # it tries how much fits, and on a CPU that ends the process
    )
    ends: list[float] = []
    part = min(options.batch_size, max(1, GATHERED // (options.negatives * options.dim**2 * 4)))
    losses = loop.train(
        triples,
        batch_size=options.batch_size,
        sub_batch_size=part,
        use_tqdm=False,
        num_workers=0,
        pin_memory=False,
        callbacks=Clock(ends),
    )
    figures = {
        "triples_per_second": options.batch_size * (len(ends) - 1) / (ends[-1] - ends[0]),
        "loss": losses[-1] if losses else None,
        "sub_batch_size": part,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "version": get_version(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
