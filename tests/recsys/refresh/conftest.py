import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.refresh import cycle
from recsys.train.distributed import Environment, process_group
from tests.recsys.refresh.daily_example import DAYS, daily_config, refresh, start_run
from tests.recsys.refresh.example import write_log


@pytest.fixture(scope="package")
def environment() -> Iterator[Environment]:
    """This process as the only rank."""
    with process_group() as running:
        yield running


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared data that no test changes."""
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="package")
def two_days(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> tuple[Path, Path]:
    """Data and run after two days, pages drawn; no test changes them."""
    data, out = start_run(tmp_path_factory.mktemp("two_days"), DAYS[:2], environment)
    assert refresh(daily_config(), data, out, every=True) == DAYS[:2]
    return data, out


@pytest.fixture
def run(two_days: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of its own of data and run after two days."""
    data, out = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in two_days)
    return data, out


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny cycle."""
    monkeypatch.setattr(cycle.quality_page, "write_pages", lambda folder, upstream: None)
