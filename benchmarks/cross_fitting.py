"""A ranker of all training rows that also reads vectors, none of an upstream that has seen the row: cross-fitting.

    python -m benchmarks.cross_fitting --data DIR --out runs/cross-fitting

DIR holds MovieLens 1M as `recsys run movielens-1m` takes it. Protocol: like = rating > 3, random 8:1:1, all training
rows, no times. The training rows are dealt into K folds at random; an upstream is trained on the rows outside each, and
a training row reads the vectors of the one that has not seen it (benchmarks/folds.py says how). The validation rows
choose the number of passes and recalibrate; the test rows are scored once. The ranker without vectors is the same
network with the same rows, start and seeds; the difference is bootstrapped over users and seeds. Stopped, the same
command goes on with the first training that is not done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from benchmarks.common import print_record
from benchmarks.folds import FOLDS, OWNERS, Arm, Said, publish_folds, rank, ranker_settings, without, write_folds
from recsys.config import RankerSettings, SourceConfig, TrainConfig, UpstreamConfig
from recsys.config.upstream import ModelConfig
from recsys.data.files import find_files, replacing_folder
from recsys.data.movielens import FOLDER, prepare_movielens_1m
from recsys.data.schema import Schema
from recsys.evaluate.metrics import log_loss
from recsys.train.distributed import process_group

SPACE = "fitted"
ARMS = {"plain": Arm(), "vectors": Arm(series=tuple(f"{owner}_{SPACE}" for owner in OWNERS))}
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train."""

    data: Path = Path("../shared/data/ml-1m")
    """MovieLens 1M's files."""
    out: Path = Path("runs/cross-fitting")
    """Folder of the run."""
    folds: int = 4
    """K."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the rankers, of each arm; all read the same upstreams."""
    network: str = "dlrm"
    """Kind of the rankers."""
    small: bool = False
    """Upstreams of one layer and four tokens, some three times as fast."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; use 2 or more: an upstream learns from the rows of the others")


def main(options: Options) -> None:
    """Train upstreams and rankers, and print what the vectors are worth."""
    data = options.out / "data"
    if not (data / FOLDS).is_dir():
        prepare_movielens_1m(options.data, data)
        deal(data, options.folds)
    with process_group() as environment:
        upstreams = [upstream(number, options) for number in range(1, options.folds + 1)]
        cosines = publish_folds(upstreams, SPACE, data, options.out, environment)
        figures = {"folds": options.folds, "network": options.network, "aligned_cosine": cosines}
        figures |= judged(rank(settings(options), ARMS, data, options.out, environment))
    print_record("cross_fitting", figures)


def deal(data: Path, folds: int) -> None:
    """Write `folds`: the training rows in K folders, those of validation and test beside them, see `write_folds`."""
    source = data / FOLDER
    parts = {name: pq.read_table(find_files(source, (f"events/{name}/*.parquet",))) for name in _PARTS}
    entities = {owner: pq.read_table(find_files(source, (f"{owner}s/*.parquet",))) for owner in OWNERS}
    schema = replace(Schema.load(source / "schema.toml"), timestamp="timestamp")
    rows = pa.concat_tables([parts.pop("upstream"), parts.pop("train")])
    with replacing_folder(data / FOLDS) as out:
        schema.save(out / "schema.toml")
        write_folds(rows, parts, entities, out, folds, _SEED)


_PARTS = ("upstream", "train", "validation", "test")


def upstream(number: int, options: Options) -> UpstreamConfig:
    """The one that has not seen fold `number`, from 1 on: two passes in large batches, because there are K of them."""
    small = ModelConfig(layers=(("mlp",),), tokens=4)
    return UpstreamConfig(
        name=f"without{number}",
        source=SourceConfig(schema=f"{FOLDS}/schema.toml", events=without(number, options.folds)),
        model=small if options.small else ModelConfig(),
        training=TrainConfig(epochs=2, batch_size=2048, sparse_lr=0.04, dense_lr=2e-3),
        held_out=0.0,
    )


def settings(options: Options) -> RankerSettings:
    """Of the rankers of both arms."""
    config = ranker_settings(options.seeds)
    return replace(config, network=replace(config.network, kind=options.network))


def judged(said: Said) -> dict[str, object]:
    """AUC and log loss of both arms, means over seeds, and the lift of the vectors with its interval."""
    figures: dict[str, object] = {"test_rows": len(said.labels), "seeds": len(said.logits["plain"])}
    for arm, lines in said.logits.items():
        figures[f"{arm}_auc"] = round(said.auc(arm), 4)
        figures[f"{arm}_log_loss"] = round(float(np.mean([log_loss(said.labels, line) for line in lines])), 4)
    return figures | {f"{metric}_lift_percent": said.lift("plain", "vectors", metric) for metric in ("auc", "ne")}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
