from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.train.distributed import Environment, process_group
from tests.recsys.refresh.example import write_log


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    """This process as the only rank."""
    with process_group() as running:
        yield running


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared data that no test changes."""
    return write_log(tmp_path_factory.mktemp("log"))
