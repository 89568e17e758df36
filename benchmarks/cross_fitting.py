"""A ranker of all training rows that also reads vectors, none of an upstream that has seen the row: cross-fitting.

    python -m benchmarks.cross_fitting --data DIR --out runs/cross-fitting

DIR holds MovieLens 1M as `recsys run movielens-1m` takes it. Protocol: like = rating > 3, random 8:1:1, all training
rows, no times. The training rows are dealt into K folds at random; an upstream is trained on the rows outside each. A
training row reads the vectors of the upstream that has not seen its fold, validation and test rows the mean of all K,
brought back to unit length. The spaces are turned into the first one's by orthogonal Procrustes over all users and
items (recsys/refresh/align.py). The store keeps the K and their mean as versions of one series, "as of" fold 1 to
K + 1, and a row's time is its fold, so the join by time picks them. The validation rows choose the number of passes and
recalibrate; the test rows are scored once. The ranker without vectors is the same network with the same rows, start and
seeds; the difference is bootstrapped over users and seeds. Stopped, the same command goes on with the first training
that is not done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.common import print_record
from embedding_store import EmbeddingStore
from recsys.config import RankerSettings, SourceConfig, TrainConfig, UpstreamConfig
from recsys.config.upstream import ModelConfig
from recsys.data.files import find_files, replacing_folder, write_part
from recsys.data.last_events import last_events
from recsys.data.movielens import FOLDER, prepare_movielens_1m
from recsys.data.quarantine import NOTHING
from recsys.data.schema import Schema
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.downstream.features import StoreFeatures
from recsys.downstream.ranking import read_predictions, write_predictions
from recsys.downstream.training import RankerTraining, counted_tables, sized
from recsys.downstream.validation import row_losses
from recsys.evaluate.bootstrap import paired_bootstrap
from recsys.evaluate.metrics import log_loss, roc_auc
from recsys.evaluate.recalibration import fit_recalibration
from recsys.folders import store_folder, upstream_folder
from recsys.refresh.align import procrustes
from recsys.refresh.embed import embed
from recsys.refresh.first import load_towers
from recsys.source import ranker_schema, upstream_schema
from recsys.train.distributed import Environment, process_group
from recsys.upstream import train_upstream

OWNERS = ("user", "item")
SPACE = "fitted"
_FOLDS, _SEED = "folds", 0


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
    if not (data / _FOLDS).is_dir():
        prepare_movielens_1m(options.data, data)
        deal(data, options.folds)
    with process_group() as environment:
        cosines = publish_folds(options, data, environment)
        figures = {"folds": options.folds, "network": options.network, "aligned_cosine": cosines}
        figures |= rank(options, data, environment)
    print_record("cross_fitting", figures)


def deal(data: Path, folds: int) -> None:
    """Write `folds`: the training rows in K folders, those of validation and test beside them; a row's time is its
    fold's number from 1 on, of validation and test K + 1."""
    source = data / FOLDER
    parts = {name: pq.read_table(find_files(source, (f"events/{name}/*.parquet",))) for name in _PARTS}
    rows = pa.concat_tables([parts["upstream"], parts["train"]])
    rng = np.random.default_rng(_SEED)
    order, fold = rng.permutation(len(rows)), rng.permutation(np.arange(len(rows)) % folds)
    schema = replace(Schema.load(source / "schema.toml"), timestamp="timestamp")
    with replacing_folder(data / _FOLDS) as out:
        schema.save(out / "schema.toml")
        for number in range(folds):
            write_part(_at(rows.take(order[fold == number]), number + 1), out / "train" / f"fold={number + 1}")
        for name in ("validation", "test"):
            write_part(_at(parts[name], folds + 1), out / name)
        for owner in OWNERS:
            (path,) = find_files(source, (f"{owner}s/*.parquet",))
            write_part(_at(pq.read_table(path), folds + 1), out / f"{owner}s")


_PARTS = ("upstream", "train", "validation", "test")


def _at(table: pa.Table, time: int) -> pa.Table:
    return table.append_column("timestamp", pa.array(np.full(len(table), time)))


def upstream(number: int, options: Options) -> UpstreamConfig:
    """The one that has not seen fold `number`, from 1 on: two passes in large batches, because there are K of them."""
    seen = [fold for fold in range(1, options.folds + 1) if fold != number]
    small = ModelConfig(layers=(("mlp",),), tokens=4)
    return UpstreamConfig(
        name=f"without{number}",
        source=SourceConfig(
            schema=f"{_FOLDS}/schema.toml",
            events=tuple(f"{_FOLDS}/train/fold={fold}/*.parquet" for fold in seen),
        ),
        model=small if options.small else ModelConfig(),
        training=TrainConfig(epochs=2, batch_size=2048, sparse_lr=0.04, dense_lr=2e-3),
        held_out=0.0,
    )


def publish_folds(options: Options, data: Path, environment: Environment) -> list[float]:
    """Train the K upstreams, turn their vectors into the space of the first, and publish them and their mean as of 1 to
    K + 1.

    Returns:
        the mean cosine of each but the first with that, after it was turned, over entities that the fit did not see.
    """
    versions: list[dict[str, tuple[Tensor, Tensor]]] = []
    cosines: list[float] = []
    for number in range(1, options.folds + 1):
        config = upstream(number, options)
        train_upstream(config, data, options.out)
        found = entity_vectors(config, data, options.out, environment)
        if versions:
            old, new = (torch.cat([of[owner][1] for owner in OWNERS]) for of in (found, versions[0]))
            rotation, quality = procrustes(old, new)
            cosines.append(round(quality.cosine_after, 3))
            found = {owner: (ids, vectors @ rotation) for owner, (ids, vectors) in found.items()}
        versions.append(found)
    total = {owner: torch.stack([of[owner][1] for of in versions]).mean(0) for owner in OWNERS}
    versions.append({owner: (versions[0][owner][0], normalize(total[owner], dim=1)) for owner in OWNERS})
    store = EmbeddingStore(store_folder(options.out))
    for owner in OWNERS:
        name = f"{owner}_{SPACE}"
        dim = total[owner].shape[1]
        series = store.series(name) if name in store.list() else store.create(name, dim=dim)
        for as_of, each in list(enumerate(versions, start=1))[len(series.history()) :]:
            with series.write(as_of=as_of, space=SPACE) as writer:
                writer.append(*each[owner])
    return cosines


def entity_vectors(
    config: UpstreamConfig, data: Path, out: Path, environment: Environment
) -> dict[str, tuple[Tensor, Tensor]]:
    """Ids and vectors of all users and items, by owner, ids ascending."""
    schema = upstream_schema(config, data, out)
    model, _ = load_towers(upstream_folder(out, config.name) / "checkpoints", config, schema, environment)
    found = {}
    for owner in OWNERS:
        rows = last_events(find_files(data, (f"{_FOLDS}/{owner}s/*.parquet",)), schema, owner)
        ids, vectors, *_ = (
            torch.cat(each) for each in zip(*embed(model, schema, rows, owner, environment), strict=True)
        )
        order = ids.argsort()
        found[owner] = ids[order], vectors[order]
    return found


def rank(options: Options, data: Path, environment: Environment) -> dict[str, object]:
    """Train the rankers of both arms and all seeds; their figures on the test rows."""
    config = settings(options)
    config, tables = sized(config, data, NOTHING, told=True), counted_tables(config, data, NOTHING, told=True)
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    seen = read_ids(find_files(data, config.train), schema)
    store = EmbeddingStore(store_folder(options.out))
    arms = {"plain": (), "vectors": tuple(f"{owner}_{SPACE}" for owner in OWNERS)}
    said: dict[str, list[NDArray]] = {arm: [] for arm in arms}
    labels = users = np.empty(0)
    for seed in options.seeds:
        for arm, names in arms.items():
            path = options.out / "rankers" / f"{arm}-{options.network}-{seed}.npz"
            if not path.is_file():
                features = StoreFeatures(store, names)
                training = RankerTraining(seed, schema, config, data, features, seen, environment, NOTHING)
                _train(training, path, f"{arm}, seed {seed}")
            predicted = read_predictions(path)
            said[arm].append(predicted["logits"])
            labels, users = predicted["labels"], predicted["users"]
            print(f"{arm}, seed {seed}: AUC {roc_auc(labels, said[arm][-1]):.4f}", flush=True)
    return judged(labels, users, said)


def settings(options: Options) -> RankerSettings:
    """Of the rankers of both arms."""
    config = RankerSettings(
        schema=f"{_FOLDS}/schema.toml",
        train=(f"{_FOLDS}/train/*/*.parquet",),
        validation=(f"{_FOLDS}/validation/*.parquet",),
        test=(f"{_FOLDS}/test/*.parquet",),
        tasks={"like": "like"},
        publish_delay_ms=0,
        seeds=options.seeds,
    )
    return replace(config, network=replace(config.network, kind=options.network))


def _train(training: RankerTraining, path: Path, title: str) -> None:
    """Train one, recalibrate it on the validation rows, and write what it says of the test rows."""
    trained = training.train(title=title)
    labels, logits, _ = trained.of_task("like")
    said, known, mask, users = trained.test()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(
        path,
        logits=fit_recalibration(labels, logits)(said[:, 0]),
        labels=known[:, 0],
        mask=mask[:, 0],
        users=users,
        validation_losses=row_losses(labels, logits),
    )


def judged(labels: NDArray, users: NDArray, said: Mapping[str, list[NDArray]]) -> dict[str, object]:
    """AUC and log loss of both arms, means over seeds, and the lift of the vectors with its interval."""
    figures: dict[str, object] = {"test_rows": len(labels), "seeds": len(said["plain"])}
    for arm, lines in said.items():
        figures[f"{arm}_auc"] = round(float(np.mean([roc_auc(labels, line) for line in lines])), 4)
        figures[f"{arm}_log_loss"] = round(float(np.mean([log_loss(labels, line) for line in lines])), 4)
    for metric in ("auc", "ne"):
        lift = paired_bootstrap(labels, users, np.stack(said["plain"]), np.stack(said["vectors"]), metric)
        figures[f"{metric}_lift_percent"] = [round(100 * x, 3) for x in (lift.lift, lift.low, lift.high)]
    return figures


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
