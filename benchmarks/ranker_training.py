"""Training throughput of every kind of ranker, with and without the store's vectors.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ranker_training
    OMP_WAIT_POLICY=PASSIVE torchrun --nproc-per-node 2 -m benchmarks.ranker_training

Each trains for a pass on a small market (SYNTHETIC), its reader, its tables and the lookup of the vectors as in
`recsys bundle`, one after the other in one run: rows a second without vectors and with two series of random ones; the
share of a step that these cost (`vectors_cost`), reading, network and all; and the share that waits for what
is read (`waits`). Under torchrun all ranks train each ranker together.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ranker_training --reading

A DLRM's rows a second by what it reads of `reading_entities` users and items: nothing; vectors of 64 dimensions; of
512, of which their projections one by one join at the concatenation layer, they themselves, or one projection of all of
them to 512 (`network.join`); and beside those of 64 the eight last ones, their mean or to attend to. Beside it the
process's CPU seconds for the pass and its validation (`cpu_s`), which hold on a machine that others use too.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.bundle import Options as StoreOptions
from benchmarks.bundle import job, publish
from benchmarks.common import print_record
from embedding_store import EmbeddingStore
from recsys.config import ArmConfig, RankerConfig
from recsys.config.ranker import RANKERS
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.data.synthetic import prepare_synthetic
from recsys.downstream.features import StoreFeatures
from recsys.downstream.training import RankerTraining, counted_tables, sized
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
    reading: bool = False
    """Measure the ways to read, not the kinds."""
    reading_entities: int = 100_000
    """Vectors of each of these series."""


BOTH = ArmConfig(name="both", series=("user_ctr", "item_ctr"))
READING = {
    "none": (64, ArmConfig(name="none"), "each"),
    "64": (64, BOTH, "each"),
    "512 each": (512, BOTH, "each"),
    "512 raw": (512, BOTH, "raw"),
    "512 together": (512, BOTH, "together"),
    "64, mean of 8": (64, replace(BOTH, history=8), "each"),
    "64, attention to 8": (64, replace(BOTH, history=8, history_pooling="attention"), "each"),
}
"""Way to read -> dimension, series, and `network.join`."""


def main(options: Options) -> None:
    """Measure."""
    with process_group() as environment, _market(options, environment) as folder:
        figures = (_reading if options.reading else _kinds)(folder, options, environment)
        if environment.is_main:
            sizes = {"ranks": environment.world_size, "batch_size": options.batch_size}
            print_record("ranker_reading" if options.reading else "ranker_training", {**sizes, **figures})


def _kinds(folder: Path, options: Options, environment: Environment) -> dict[str, object]:
    figures: dict[str, object] = {"dim": options.dim}
    for kind in RANKERS:
        plain, rich = (
            max(
                _train(config_of(kind, options), arm, folder / "store", folder, environment)
                for _ in range(options.rounds)
            )
            for arm in (ArmConfig(name="none"), BOTH)
        )
        figures[kind] = {
            "rows_per_s": round(plain[0]),
            "with_vectors": round(rich[0]),
            "vectors_cost": round(1 - rich[0] / plain[0], 3),
            "waits": round(rich[1], 3),
        }
    return figures


def _reading(folder: Path, options: Options, environment: Environment) -> dict[str, object]:
    """Round by round, so that what else the machine does meets all ways."""
    speeds, seconds = dict.fromkeys(READING, 0.0), dict.fromkeys(READING, math.inf)
    for _ in range(options.rounds):
        for way, (dim, arm, join) in READING.items():
            config = config_of("dlrm", options)
            config = replace(config, network=replace(config.network, join=join))
            begun = time.process_time()
            speed, _ = _train(config, arm, folder / f"store-{dim}", folder, environment)
            seconds[way] = min(seconds[way], time.process_time() - begun)
            speeds[way] = max(speeds[way], speed)
    figures = {way: {"rows_per_s": round(speeds[way]), "cpu_s": round(seconds[way], 2)} for way in READING}
    return {"entities": options.reading_entities, **figures}


@contextmanager
def _market(options: Options, environment: Environment) -> Iterator[Path]:
    """The market and the stores, made by rank 0 for all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(broadcast(name, environment))
        if environment.is_main:
            prepare_synthetic(folder / "data", users=2_500, items=5_000, events_per_day=15_000)
            _publish(folder, options)
        broadcast(None, environment)
        yield folder
        broadcast(None, environment)  # nobody's files go while another one reads them


def _publish(folder: Path, options: Options) -> None:
    if not options.reading:
        publish(folder / "data", folder / "store", StoreOptions(entities=options.entities, dim=options.dim))
        return
    for dim, versions in ((64, 8), (512, 1)):
        sizes = StoreOptions(entities=options.reading_entities, dim=dim)
        publish(folder / "data", folder / f"store-{dim}", sizes, versions=versions)


def _train(
    config: RankerConfig, arm: ArmConfig, store: Path, folder: Path, environment: Environment
) -> tuple[float, float]:
    """Rows a second of all ranks, without the first step, and the share of the time that waits for input."""
    result = prepare(config, arm, store, folder / "data", environment).train().result
    return result.samples_per_second, result.input_wait_fraction


def prepare(config: RankerConfig, arm: ArmConfig, store: Path, data: Path, environment: Environment) -> RankerTraining:
    """The training of a ranker that reads an arm's series, as `recsys bundle` does it."""
    tables = counted_tables(config, data, NOTHING, told=False)
    config = sized(config, data, NOTHING, ranks=environment.world_size, told=False)
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    features = StoreFeatures(
        EmbeddingStore(store),
        arm.series,
        config.publish_delay_ms,
        history=arm.history,
        pooling=arm.history_pooling,
        device=environment.device,
        gpu_bytes=config.gpu_bytes,
    )
    return RankerTraining(
        seed=0,
        schema=schema,
        config=config,
        data=data,
        features=features,
        seen=read_ids(find_files(data, config.train), schema),
        environment=environment,
        skip=NOTHING,
    )


def config_of(kind: str, options: Options) -> RankerConfig:
    """The market's ranker, of this kind."""
    config = job()
    network = replace(config.network, kind=kind)
    return replace(config, network=network, training=replace(config.training, batch_size=options.batch_size))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
