from collections.abc import Iterator

import pytest

from recsys.train.distributed import Environment, process_group


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    """This process as the only rank."""
    with process_group() as running:
        yield running
