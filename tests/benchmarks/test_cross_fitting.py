"""benchmarks/cross_fitting.py: no row reads vectors of an upstream that has seen it, and all are of one space."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import folds
from benchmarks.cross_fitting import ARMS, SPACE, Options, deal, judged, settings, upstream
from benchmarks.folds import OWNERS, Said, mean_vectors, publish_folds, rank
from embedding_store import EmbeddingStore
from recsys.config import UpstreamConfig
from recsys.data.files import find_files
from recsys.data.movielens import prepare_movielens_1m
from recsys.downstream.features import StoreFeatures
from recsys.evaluate.metrics import log_loss, roc_auc
from recsys.folders import store_folder
from recsys.train.distributed import Environment, process_group
from tests.recsys.refresh.test_align import turn

USERS, ITEMS, FOLDS, DIM = 40, 30, 3, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens's form, prepared and dealt."""
    source, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    people = [f"{u}::{'FM'[u % 2]}::25::{u % 21}::{u:05}" for u in range(1, USERS + 1)]
    films = [f"{i}::Film {i} (1990)::Drama" for i in range(1, ITEMS + 1)]
    for name, lines in (("users.dat", people), ("movies.dat", films)):
        (source / name).write_text("\n".join([*lines, ""]))
    rng = np.random.default_rng(0)
    pairs = rng.permutation(USERS * ITEMS)[:900]
    columns = {"user_id": pairs // ITEMS + 1, "movie_id": pairs % ITEMS + 1, "like": rng.integers(0, 2, 900)}
    split = rng.choice(["train", "valid", "test"], 900, p=[0.8, 0.1, 0.1])
    pq.write_table(pa.table({**columns, "split": split}), source / "interactions.parquet")
    prepare_movielens_1m(source, out)
    deal(out, FOLDS)
    return out


def pairs_of(data: Path, pattern: str) -> list[tuple[int, int, int]]:
    rows = pq.read_table(find_files(data, (pattern,)))
    return list(zip(*(rows[name].to_pylist() for name in ("timestamp", "user_id", "item_id")), strict=True))


def test_every_training_row_is_in_one_fold_and_its_time_is_the_folds(data: Path) -> None:
    dealt = pairs_of(data, "folds/train/*/*.parquet")
    rows = [
        row[name].to_pylist()
        for part in ("upstream", "train")
        for row in [pq.read_table(find_files(data, (f"ratings/events/{part}/*.parquet",)))]
        for name in ("user_id", "item_id")
    ]
    given = list(zip(rows[0] + rows[2], rows[1] + rows[3], strict=True))
    assert sorted(row[1:] for row in dealt) == sorted(given)
    counts = np.bincount([time for time, _, _ in dealt])
    assert counts[0] == 0
    assert len(counts) == FOLDS + 1
    assert np.ptp(counts[1:]) <= 1
    for name in ("validation", "test"):
        assert {time for time, _, _ in pairs_of(data, f"folds/{name}/*.parquet")} == {FOLDS + 1}


def test_an_upstream_sees_the_rows_of_the_other_folds_alone(data: Path) -> None:
    options = Options(folds=FOLDS)
    for number in range(1, FOLDS + 1):
        files = find_files(data, upstream(number, options).source.events)
        times = {time for file in files for time in pq.read_table(file)["timestamp"].to_pylist()}
        assert times == set(range(1, FOLDS + 1)) - {number}
    assert len({upstream(number, options).name for number in range(1, FOLDS + 1)}) == FOLDS


def true_vectors(owner: str) -> tuple[Tensor, Tensor]:
    count, seed = (USERS, 1) if owner == "user" else (ITEMS, 2)
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.arange(1, count + 1), normalize(drawn, dim=1)


def mark(number: int, owner: str) -> Tensor:
    """What tells the vectors of one upstream from another's, in one space: how much shorter some are."""
    ids, vectors = true_vectors(owner)
    shorter = 0.1 * (number if number <= FOLDS else (1 + FOLDS) / 2)
    return vectors * (1 - shorter * (ids % 2).unsqueeze(1))


@pytest.fixture
def options(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A run in which each upstream is "trained" to the vectors above, turned into a space of its own."""

    def vectors_of(config: UpstreamConfig, *_: object) -> dict[str, tuple[Tensor, Tensor]]:
        number = int(config.name.removeprefix("without"))
        turned = torch.eye(DIM) if number == 1 else turn(DIM, seed=number)
        return {owner: (true_vectors(owner)[0], mark(number, owner) @ turned) for owner in OWNERS}

    monkeypatch.setattr(folds, "train_upstream", lambda *_: None)
    monkeypatch.setattr(folds, "entity_vectors", vectors_of)
    return Options(data=data, out=tmp_path, folds=FOLDS, seeds=(0, 1))


def publish(options: Options, data: Path, environment: Environment) -> list[float]:
    return publish_folds([upstream(each + 1, options) for each in range(FOLDS)], SPACE, data, options.out, environment)


def test_a_row_reads_its_folds_upstream_turned_into_the_one_space(data: Path, options: Options) -> None:
    with process_group() as environment:
        cosines = publish(options, data, environment)
        assert publish(options, data, environment) == cosines  # as when it goes on
    assert min(cosines) > 0.99
    store = EmbeddingStore(store_folder(options.out))
    for series in StoreFeatures(store, [f"{owner}_{SPACE}" for owner in OWNERS]).series:
        ids, _ = true_vectors(series.spec.owner)
        assert len(series.snapshots) == FOLDS + 1
        for number in range(1, FOLDS + 2):
            vectors, found = series.lookup(ids, torch.full_like(ids, number))
            assert bool(found.all())
            assert torch.allclose(vectors, mark(number, series.spec.owner), atol=0.1)
            assert torch.allclose(vectors.norm(dim=1), mark(number, series.spec.owner).norm(dim=1), atol=1e-5)


def test_both_arms_are_judged_on_all_test_rows(data: Path, options: Options) -> None:
    with process_group() as environment:
        publish(options, data, environment)
        figures = judged(rank(settings(options), ARMS, data, options.out, environment))
    assert figures["test_rows"] == len(pairs_of(data, "folds/test/*.parquet"))
    assert figures["seeds"] == 2
    _, low, high = figures["auc_lift_percent"]
    assert low < high
    assert len(list((options.out / "rankers").iterdir())) == 4


def test_the_mean_is_of_the_versions_that_know_an_entity() -> None:
    one = torch.tensor([1, 5]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    other = torch.tensor([1, 9]), torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    ids, vectors = mean_vectors([one, other])
    assert ids.tolist() == [1, 5, 9]
    assert torch.allclose(
        vectors, torch.tensor([[2 * 3, 2 * 1], [0.0, 2.0], [4.0, 0.0]]) / torch.tensor([[10**0.5], [1], [1]])
    )


def test_figures_are_means_over_seeds() -> None:
    rng = np.random.default_rng(0)
    labels, users = rng.integers(0, 2, 200), rng.integers(0, 20, 200)
    plain = [rng.normal(size=200) for _ in range(2)]
    better = [line + labels for line in plain]
    figures = judged(Said(labels, users, {"plain": plain, "vectors": better}))
    assert figures["plain_auc"] == pytest.approx(np.mean([roc_auc(labels, x) for x in plain]), abs=1e-4)
    assert figures["vectors_log_loss"] == pytest.approx(np.mean([log_loss(labels, x) for x in better]), abs=1e-4)
    assert figures["auc_lift_percent"][1] > 0


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="folds is 1; use 2 or more"):
        Options(folds=1)
