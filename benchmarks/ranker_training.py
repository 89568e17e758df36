"""Training throughput of every kind of ranker, with and without the store's vectors.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ranker_training
    OMP_WAIT_POLICY=PASSIVE torchrun --nproc-per-node 2 -m benchmarks.ranker_training

Each trains for a pass on a small market (SYNTHETIC), its reader, its tables and the lookup of the vectors as in
`recsys bundle`, one after the other in one run: rows a second without vectors and with two series of random ones; the
share of a step that these cost (`vectors_cost`), reading, network and all; and the share that waits for what
is read (`waits`). Under torchrun all ranks train each ranker together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.bundle import Options as StoreOptions
from benchmarks.bundle import job, publish
from benchmarks.common import print_record
from embedding_store import EmbeddingStore
from recsys.config import RankerConfig
from recsys.config.ranker import RANKERS
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.data.synthetic import prepare_synthetic
from recsys.downstream.features import StoreFeatures
from recsys.downstream.training import RankerTraining, sized
from recsys.source import ranker_schema
from recsys.train.distributed import Environment, broadcast, process_group


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    entities: int = 1_000_000
    """Vectors of each series."""
    dim: int = 64
    """D of each series."""
    batch_size: int = 1024
    """Rows a rank and step."""
    rounds: int = 2
    """Trainings of each ranker, of which the fastest counts."""


def main(options: Options) -> None:
    """Measure."""
    with process_group() as environment, _market(options, environment) as folder:
        figures: dict[str, dict[str, float]] = {}
        for kind in RANKERS:
            plain, rich = (
                max(_train(kind, names, folder, options, environment) for _ in range(options.rounds))
                for names in ((), ("user_ctr", "item_ctr"))
            )
            figures[kind] = {
                "rows_per_s": round(plain[0]),
                "with_vectors": round(rich[0]),
                "vectors_cost": round(1 - rich[0] / plain[0], 3),
                "waits": round(rich[1], 3),
            }
        if environment.is_main:
            sizes = {"ranks": environment.world_size, "batch_size": options.batch_size, "dim": options.dim}
            print_record("ranker_training", {**sizes, **figures})


@contextmanager
def _market(options: Options, environment: Environment) -> Iterator[Path]:
    """The market and the store, made by rank 0 for all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(broadcast(name, environment))
        if environment.is_main:
            prepare_synthetic(folder / "data", users=2_500, items=5_000, events_per_day=15_000)
            publish(folder / "data", folder / "store", StoreOptions(entities=options.entities, dim=options.dim))
        broadcast(None, environment)
        yield folder
        broadcast(None, environment)  # nobody's files go while another one reads them


def _train(
    kind: str, names: tuple[str, ...], folder: Path, options: Options, environment: Environment
) -> tuple[float, float]:
    """Rows a second of all ranks, without the first step, and the share of the time that waits for input."""
    data, config = folder / "data", _config(kind, options)
    config, tables = sized(config, data, NOTHING, ranks=environment.world_size, told=False)
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    training = RankerTraining(
        seed=0,
        schema=schema,
        config=config,
        data=data,
        features=StoreFeatures(EmbeddingStore(folder / "store"), names, config.publish_delay_ms),
        seen=read_ids(find_files(data, config.train), schema),
        environment=environment,
        skip=NOTHING,
    )
    result = training.train().result
    return result.samples_per_second, result.input_wait_fraction


def _config(kind: str, options: Options) -> RankerConfig:
    config = job()
    network = replace(config.network, kind=kind)
    return replace(config, network=network, training=replace(config.training, batch_size=options.batch_size))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
