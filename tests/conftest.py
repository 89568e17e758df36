"""What holds for all tests: none depends on how fast the machine is, nor on what else runs there."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault(
    "TORCHINDUCTOR_COMPILE_THREADS", "1"
)  # its pool of compiling processes takes longer than it saves

TESTS = Path(__file__).parent

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start jobs come first: a long one that came last would run alone."""
    items.sort(key=lambda item: item.path.is_relative_to(TESTS / "embedding_store"))
