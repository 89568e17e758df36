"""A bundle of a small ranker on a small market, which tests copy and do not change."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.bundle.bundle import Bundle, load_bundle
from recsys.bundle.manifest import BundleError
from recsys.bundle.write import train_bundle
from recsys.data.files import find_files
from recsys.folders import bundle_folder
from tests.recsys.bundle.live import SIZES, Answer, Place, answers_of
from tests.recsys.downstream.conftest import data as data
from tests.recsys.downstream.conftest import store as store
from tests.recsys.downstream.example import CONFIG as HARDLY_TRAINED
from tests.recsys.downstream.example import SPLIT, publish_vectors

CONFIG = replace(HARDLY_TRAINED, training=replace(HARDLY_TRAINED.training, dense_lr=0.02, sparse_lr=0.1))
ARM = "ctr_user_item"


@pytest.fixture(scope="session")
def made(data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's folder."""
    out = tmp_path_factory.mktemp("made")
    train_bundle(CONFIG, ARM, data, out, str(store))
    return bundle_folder(out)


@pytest.fixture(scope="session")
def bundle(made: Path) -> Bundle:
    return load_bundle(made)


@pytest.fixture
def copied(made: Path, store: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The bundle and its store, to be changed."""
    shutil.copytree(made, tmp_path / "bundle")
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "bundle", tmp_path / "store"


@pytest.fixture
def refusal(copied: tuple[Path, Path]) -> Callable[[], str]:
    """With what words the copied bundle is not loaded."""

    def words() -> str:
        with pytest.raises(BundleError) as caught:
            load_bundle(copied[0], store=copied[1])
        return str(caught.value)

    return words


@pytest.fixture(scope="session")
def kept(made: Path, data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both bundles and their store, which tests copy."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(store, folder / "store")
    shutil.copytree(made, folder / "a")
    publish_vectors(data, folder / "store", later_ms=1000, turned=0.3)
    other = replace(CONFIG, network=replace(CONFIG.network, hidden=(6,)))
    train_bundle(other, ARM, data, folder / "out", str(folder / "store"))
    bundle_folder(folder / "out").rename(folder / "b")
    return folder


@pytest.fixture
def place(kept: Path, tmp_path: Path) -> Place:
    for name in ("a", "b", "store"):
        shutil.copytree(kept / name, tmp_path / name)
    place = Place(tmp_path)
    place.deploy("a")
    return place


@pytest.fixture(scope="session")
def requests(data: Path) -> list[pa.Table]:
    rows = pa.concat_tables(pq.ParquetFile(path).read() for path in find_files(data, SPLIT.test))
    ends = itertools.accumulate(SIZES)
    return [rows.slice(end - size, size) for size, end in zip(SIZES, ends, strict=True)]


@pytest.fixture(scope="session")
def said(kept: Path, requests: list[pa.Table]) -> dict[str, list[Answer]]:
    """What each bundle answers."""
    return {name: answers_of(load_bundle(kept / name, store=kept / "store"), requests) for name in "ab"}
