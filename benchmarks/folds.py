"""Cross-fitting, for logs without times: what the scripts share that deal training rows into folds.

A training row reads the vectors of the upstream that has not seen its fold, validation and test rows the mean of all K.
The spaces are turned into the first one's by orthogonal Procrustes over all users and items (recsys/refresh/align.py).
The store keeps the K and their mean as versions of one series, "as of" fold 1 to K + 1, and a row's time is its fold,
so the join by time picks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from embedding_store import EmbeddingStore
from recsys.config import RankerSettings, UpstreamConfig
from recsys.data.files import find_files, write_part
from recsys.data.last_events import last_events
from recsys.data.quarantine import NOTHING
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.downstream.features import StoreFeatures
from recsys.downstream.predictions import read_predictions, write_predictions
from recsys.downstream.training import RankerTraining, counted_tables, sized
from recsys.downstream.validation import row_losses
from recsys.evaluate.bootstrap import paired_bootstrap
from recsys.evaluate.metrics import roc_auc
from recsys.evaluate.recalibration import fit_recalibration
from recsys.folders import store_folder, upstream_folder
from recsys.refresh.align import procrustes
from recsys.refresh.embed import embed
from recsys.refresh.first import load_towers
from recsys.source import ranker_schema, sized_upstream, upstream_schema
from recsys.train.distributed import Environment
from recsys.upstream import train_upstream

OWNERS = ("user", "item")
FOLDS = "folds"
"""Folder of the prepared rows, below that of the data."""
TASK = "like"

Vectors = dict[str, tuple[Tensor, Tensor]]
"""Owner -> its entities' ids, ascending, int64 [n], and vectors, float32 [n, D]."""


def write_folds(
    train: pa.Table, others: Mapping[str, pa.Table], entities: Mapping[str, pa.Table], out: Path, folds: int, seed: int
) -> None:
    """Write the training rows into folders of `folds` folds, at random; those of validation and test (`others`), and
    the rows of users and items, beside them. A row's time is its fold's number from 1 on, of the others folds + 1."""
    rng = np.random.default_rng(seed)
    order, fold = rng.permutation(len(train)), rng.permutation(np.arange(len(train)) % folds)
    for number in range(folds):
        write_part(_at(train.take(order[fold == number]), number + 1), out / "train" / f"fold={number + 1}")
    for name, rows in (*others.items(), *((f"{owner}s", entities[owner]) for owner in OWNERS)):
        write_part(_at(rows, folds + 1), out / name)


def _at(table: pa.Table, time: int) -> pa.Table:
    return table.append_column("timestamp", pa.array(np.full(len(table), time)))


def without(number: int, folds: int) -> tuple[str, ...]:
    """The files of the training rows outside fold `number`, from 1 on."""
    return tuple(f"{FOLDS}/train/fold={fold}/*.parquet" for fold in range(1, folds + 1) if fold != number)


def publish_folds(
    upstreams: Sequence[UpstreamConfig], space: str, data: Path, out: Path, environment: Environment
) -> list[float]:
    """Train the K upstreams, number k of which has not seen fold k; turn their vectors into the space of the first, and
    publish them and their mean, as long as they are, as of 1 to K + 1: series `user_<space>` and `item_<space>`.

    Returns:
        the mean cosine of each but the first with that, after it was turned, over entities that the fit did not see.
    """
    versions, cosines = list[Vectors](), list[float]()
    for config in upstreams:
        train_upstream(config, data, out)
        found = entity_vectors(config, data, out, environment)
        if versions:
            rotation, quality = procrustes(*_shared(found, versions[0]))
            cosines.append(round(quality.cosine_after, 3))
            found = {owner: (ids, vectors @ rotation) for owner, (ids, vectors) in found.items()}
        versions.append(found)
    versions.append({owner: mean_vectors([of[owner] for of in versions]) for owner in OWNERS})
    store = EmbeddingStore(store_folder(out))
    for owner in OWNERS:
        name, dim = f"{owner}_{space}", versions[0][owner][1].shape[1]
        series = store.series(name) if name in store.list() else store.create(name, dim=dim)
        for as_of, each in list(enumerate(versions, start=1))[len(series.history()) :]:
            with series.write(as_of=as_of, space=space) as writer:
                writer.append(*each[owner])
    return cosines


def entity_vectors(config: UpstreamConfig, data: Path, out: Path, environment: Environment) -> Vectors:
    """Of all users and items that the upstream knows."""
    schema, config = upstream_schema(config, data, out), sized_upstream(config, out)
    model, _ = load_towers(upstream_folder(out, config.name) / "checkpoints", config, schema, environment)
    found = {}
    for owner in OWNERS:
        rows = last_events(find_files(data, (f"{FOLDS}/{owner}s/*.parquet",)), schema, owner)
        ids, vectors, *_ = (
            torch.cat(each) for each in zip(*embed(model, schema, rows, owner, environment), strict=True)
        )
        order = ids.argsort()
        found[owner] = ids[order], vectors[order]
    return found


def _shared(old: Vectors, new: Vectors) -> tuple[Tensor, Tensor]:
    """Both vectors, [n, D], of the entities that have two."""
    pairs = []
    for owner in OWNERS:
        both = [torch.isin(x[owner][0], y[owner][0]) for x, y in ((old, new), (new, old))]
        pairs.append([of[owner][1][there] for of, there in zip((old, new), both, strict=True)])
    one, other = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return one, other


def mean_vectors(versions: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Each entity's mean direction, and as length the mean of its vectors', over the versions that know it."""
    every, at = torch.cat([ids for ids, _ in versions]).unique(return_inverse=True)
    vectors = torch.cat([vectors for _, vectors in versions])
    total = torch.zeros(len(every), vectors.shape[1]).index_add_(0, at, vectors)
    lengths = torch.zeros(len(every)).index_add_(0, at, vectors.norm(dim=1)) / at.bincount(minlength=len(every))
    return every, normalize(total, dim=1) * lengths.unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What rankers read; they differ in nothing else."""

    series: tuple[str, ...] = ()
    """Of the store."""
    features: tuple[str, ...] = ()
    """Of the schema; empty: all."""


class Said(NamedTuple):
    """What the rankers of all arms say of the N test rows."""

    labels: NDArray  # float32 [N]
    users: NDArray  # int64 [N]
    logits: dict[str, list[NDArray]]  # arm -> float [N] a seed

    def auc(self, arm: str) -> float:
        """Mean over the seeds."""
        return float(np.mean([roc_auc(self.labels, line) for line in self.logits[arm]]))

    def where(self, rows: NDArray[np.bool_]) -> Said:
        """Of some of the rows."""
        logits = {arm: [line[rows] for line in lines] for arm, lines in self.logits.items()}
        return Said(self.labels[rows], self.users[rows], logits)

    def lift(self, without_it: str, with_it: str, metric: str = "auc") -> list[float]:
        """Of one arm over another, in percent, and its 95 % interval, over users and seeds."""
        plain, variant = (np.stack(self.logits[arm]) for arm in (without_it, with_it))
        lift = paired_bootstrap(self.labels, self.users, plain, variant, metric)
        return [round(100 * x, 3) for x in (lift.lift, lift.low, lift.high)]


def rank(config: RankerSettings, arms: Mapping[str, Arm], data: Path, out: Path, environment: Environment) -> Said:
    """Train the rankers of all arms and seeds that have not been; what they say of the test rows."""
    labels, users, logits = np.empty(0), np.empty(0), {name: list[NDArray]() for name in arms}
    for seed in config.seeds:
        for name, arm in arms.items():
            path = out / "rankers" / f"{name}-{config.network.kind}-{seed}.npz"
            if not path.is_file():
                training = _training(config, arm, seed, data, out, environment)
                _train(training, path, f"{name}, seed {seed}")
            predicted = read_predictions(path)
            logits[name].append(predicted["logits"])
            labels, users = predicted["labels"], predicted["users"]
            print(f"{name}, seed {seed}: AUC {roc_auc(labels, logits[name][-1]):.4f}", flush=True)
    return Said(labels, users, logits)


def _training(
    config: RankerSettings, arm: Arm, seed: int, data: Path, out: Path, environment: Environment
) -> RankerTraining:
    config = replace(config, features=arm.features)
    config, tables = sized(config, data, NOTHING, told=False), counted_tables(config, data, NOTHING, told=False)
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    seen = read_ids(find_files(data, config.train), schema)
    features = StoreFeatures(EmbeddingStore(store_folder(out)), arm.series)
    return RankerTraining(seed, schema, config, data, features, seen, environment, NOTHING)


def _train(training: RankerTraining, path: Path, title: str) -> None:
    """Train one, recalibrate it on the validation rows, and write what it says of the test rows."""
    trained = training.train(title=title)
    labels, logits, _ = trained.of_task(TASK)
    print(f"{title}: validation AUC {roc_auc(labels, logits):.4f}", flush=True)
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


def ranker_settings(seeds: tuple[int, ...]) -> RankerSettings:
    """Of the rankers of all arms."""
    return RankerSettings(
        schema=f"{FOLDS}/schema.toml",
        train=(f"{FOLDS}/train/*/*.parquet",),
        validation=(f"{FOLDS}/validation/*.parquet",),
        test=(f"{FOLDS}/test/*.parquet",),
        tasks={TASK: TASK},
        publish_delay_ms=0,
        seeds=seeds,
    )
