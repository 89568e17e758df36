"""A two-tower model's job: from events and a store to vectors in that store which `recsys retrieve` reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.config import ConfigError, ModelConfig, RankerTrainConfig, TwoTowerConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema, SchemaError
from recsys.downstream.two_tower import not_positive, train_two_tower
from recsys.refresh import publish
from recsys.retrieval import RetrievalError, open_exact
from recsys.train.checkpoint import CheckpointError
from tests.distributed import run_ranks
from tests.recsys.downstream.example import SPLIT

CONFIG = TwoTowerConfig(
    name="tower",
    schema="market/schema.toml",
    train=SPLIT.train,
    validation=SPLIT.validation,
    label="click",
    series=("user_ctr", "item_ctr"),
    features=("user_id", "country", "item_id", "price"),
    publish_delay_ms=0,
    model=ModelConfig(token_dim=4, layers=(("mlp",),), tokens=2, out_tokens=2, out_dim=3),
    uniform_negatives=20,
    training=RankerTrainConfig(epochs=2, batch_size=32, shuffle_batches=2),
)


@pytest.fixture(scope="module")
def made(data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with the vectors of a two-tower model, and the folder of its training, of two ranks."""
    own, out = tmp_path_factory.mktemp("own") / "store", tmp_path_factory.mktemp("made")
    shutil.copytree(store, own)
    run_ranks(train_two_tower, 2, CONFIG, data, out, own)
    return own, out


def trained_on(data: Path, column: str) -> list[int]:
    """A column of the training rows."""
    tables = [pq.ParquetFile(path).read([column]) for path in find_files(data, SPLIT.train)]
    return pa.concat_tables(tables)[column].to_pylist()


def vectors_of(store: Path, name: str) -> dict[int, np.ndarray]:
    table = EmbeddingStore(store).series(name).latest().load()
    ids = table.ids()
    return dict(zip(ids.tolist(), table.lookup(ids)[0].numpy(), strict=True))


def test_vectors_are_published_as_a_pair_that_retrieval_reads(data: Path, made: tuple[Path, Path]) -> None:
    store, _ = made
    opened = EmbeddingStore(store)
    user, item = (opened.series(f"{owner}_tower").latest() for owner in ("user", "item"))
    newest = max(trained_on(data, "timestamp"))
    assert [(each.space, each.version, each.as_of) for each in (user, item)] == [("tower-1", 1, newest)] * 2
    for owner in ("user", "item"):
        vectors = vectors_of(store, f"{owner}_tower")
        assert vectors.keys() == {*trained_on(data, f"{owner}_id")}
        np.testing.assert_allclose(np.linalg.norm([*vectors.values()], axis=1), 1, atol=2e-3)
    retriever = open_exact(store, "tower", temperature=CONFIG.temperature)
    answered = retriever.search(torch.tensor([*trained_on(data, "user_id")[:3], 10**12]), 5)
    assert answered.found.tolist() == [True, True, True, False]
    prior = opened.series("item_tower.prior").latest().load()
    greatest = prior.lookup(prior.ids())[0][:, 0].topk(5).values  # of equal ones any may be among them
    assert torch.equal(prior.lookup(answered.items[3])[0][:, 0], greatest), "who has no vector gets what is popular"
    with pytest.raises(RetrievalError, match="k is 100000"):
        retriever.search(torch.tensor([1]), 100_000)


def test_the_same_command_does_nothing_and_another_training_opens_a_space(
    data: Path, made: tuple[Path, Path], tmp_path: Path, environment: object
) -> None:
    store, out = Path(shutil.copytree(made[0], tmp_path / "store")), shutil.copytree(made[1], tmp_path / "out")
    before = vectors_of(store, "user_tower")
    train_two_tower(CONFIG, data, out, store)
    assert EmbeddingStore(store).series("user_tower").versions() == [1]
    other = replace(CONFIG, training=replace(CONFIG.training, seed=1))
    with pytest.raises(CheckpointError, match=r"training.seed"):
        train_two_tower(other, data, out, store)
    train_two_tower(other, data, tmp_path / "other", store)
    series = [EmbeddingStore(store).series(f"{owner}_tower") for owner in ("user", "item")]
    assert [(each.latest().version, each.latest().space) for each in series] == [(2, "tower-2")] * 2
    after = vectors_of(store, "user_tower")
    assert after.keys() == before.keys()
    assert np.mean([before[user] @ after[user] for user in before]) < 0.999


def test_a_crash_between_the_two_commits_is_mended(
    data: Path, store: Path, tmp_path: Path, environment: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = Path(shutil.copytree(store, tmp_path / "store")), tmp_path / "out"
    monkeypatch.setattr(publish.Publisher, "move_tags", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_two_tower(CONFIG, data, out, own)
    monkeypatch.undo()
    train_two_tower(CONFIG, data, out, own)
    series = [EmbeddingStore(own).series(f"{owner}_tower") for owner in ("user", "item")]
    assert [(each.versions(), each.tags()) for each in series] == [([1], {"prod": 1})] * 2


def test_only_positives_are_learned_from(data: Path) -> None:
    files = find_files(data, SPLIT.train)
    schema = Schema.load(data / "market/schema.toml").select(labels=("click",))
    first = pq.ParquetFile(files[0]).read(["click"])["click"].to_numpy()
    gone = Quarantine({files[0]: np.array([0, 2])})
    for skip, missing in ((NOTHING, set()), (gone, {0, 2})):
        negative = not_positive(files, schema, skip)
        assert {*negative.of(files[0]).tolist()} == {*np.flatnonzero(first != 1).tolist()} - missing


def without_positives(data: Path, folder: Path) -> Path:
    """The market, nobody clicks in the validation files."""
    shutil.copytree(data, folder)
    for path in find_files(folder, SPLIT.validation):
        table = pq.ParquetFile(path).read()
        place = table.column_names.index("click")
        pq.write_table(table.set_column(place, "click", pa.array(np.zeros(len(table), np.int64))), path)
    return folder


def same(data: Path, folder: Path) -> Path:
    return data


@pytest.mark.parametrize(
    ("change", "events", "error", "words"),
    [
        ({"series": ("user_ctr", "item_cvr")}, same, KeyError, "item_cvr"),
        ({"label": "buy"}, same, SchemaError, "unknown label 'buy'"),
        ({}, without_positives, DataError, "validation: label 'click' is 1 in 0 rows of its 2 files"),
        ({"publish_delay_ms": 10**9}, same, DataError, r"series 'user_ctr' begins with as_of"),
        ({"name": "wide"}, same, ConfigError, r"'user_wide' of 7 dimensions.*out_dim is 6"),
        ({"name": "late"}, same, DataError, r"no row to train on is later than \d+ ms.*'user_late'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    data: Path,
    store: Path,
    tmp_path: Path,
    environment: object,
    change: dict[str, object],
    events: Callable[[Path, Path], Path],
    error: type[Exception],
    words: str,
) -> None:
    own, out = Path(shutil.copytree(store, tmp_path / "store")), tmp_path / "out"
    opened = EmbeddingStore(own)
    opened.create("user_wide", dim=7)
    for owner in ("user", "item"):
        with opened.create(f"{owner}_late", dim=6).write(as_of=2 * 10**12, space="late-1") as writer:
            writer.append(torch.tensor([1]), torch.ones(1, 6))
    names = opened.list()
    with pytest.raises(error, match=words):
        train_two_tower(replace(CONFIG, **change), events(data, tmp_path / "data"), out, own)
    assert EmbeddingStore(own).list() == names
    assert not list(out.rglob("checkpoints"))


def test_a_config_that_contradicts_itself() -> None:
    for change, words in (
        ({"series": ("user_tower",)}, "what it publishes"),
        ({"series": ("user_ctr", "user_ctr")}, "give each once"),
        ({"temperature": 0.0}, "more than 0"),
        ({"uniform_negatives": -1}, "0 or more"),
        ({"label": ""}, "label is empty"),
        ({"train": ()}, "train is empty"),
    ):
        with pytest.raises(ConfigError, match=words):
            replace(CONFIG, **change)
