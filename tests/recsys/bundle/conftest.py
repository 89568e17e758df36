"""A bundle of a small ranker on a small market, which tests copy and do not change."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.bundle.bundle import Bundle, load_bundle
from recsys.bundle.manifest import BundleError
from recsys.bundle.write import train_bundle
from recsys.folders import bundle_folder
from tests.recsys.downstream.conftest import data as data
from tests.recsys.downstream.conftest import store as store
from tests.recsys.downstream.example import CONFIG as HARDLY_TRAINED

CONFIG = replace(HARDLY_TRAINED, training=replace(HARDLY_TRAINED.training, dense_lr=0.02, sparse_lr=0.1))
ARM = "ctr_user_item"


@pytest.fixture(scope="module")
def made(data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's folder."""
    out = tmp_path_factory.mktemp("made")
    train_bundle(CONFIG, ARM, data, out, str(store))
    return bundle_folder(out)


@pytest.fixture(scope="module")
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
