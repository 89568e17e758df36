"""The market that the rankers of `example` learn from, and a store that they read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.data.synthetic import prepare_synthetic
from recsys.folders import store_folder
from recsys.train.distributed import Environment, process_group
from tests.recsys.downstream.example import publish_vectors


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    with process_group() as running:
        yield running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market of six small days, prepared."""
    folder = tmp_path_factory.mktemp("data")
    prepare_synthetic(folder, users=100, items=100, days=6, events_per_day=400, upstream_days=2)
    return folder


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    """The folder of a run whose store has vectors of most users and items, as of the last upstream day."""
    publish_vectors(data, store_folder(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with vectors of most users and items, that tests copy before they change it."""
    folder = tmp_path_factory.mktemp("store")
    publish_vectors(data, folder)
    return folder
