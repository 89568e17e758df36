"""What holds for all tests: none depends on how fast the machine is, nor on what else runs there."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.s3 import s3, url  # noqa: F401  fixtures

# Files of tests run side by side: a second thread would take another test's core. Tests of threads ask for theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Jobs of one rank have a thread a core: they sleep while they wait for one another, see recsys/jobs.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# TorchInductor's pool of compiling processes takes longer than it saves.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

TESTS = Path(__file__).parent

LONG = bool(os.environ.get("LONG"))
"""`make test LONG=1`, which runs tests marked `long` too: twice as many examples of each property."""

slow = [HealthCheck.too_slow]
settings.register_profile("any machine", deadline=None, max_examples=100 if LONG else 50, suppress_health_check=slow)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start jobs come first: a long one that came last would run alone."""
    items.sort(key=lambda item: item.path.is_relative_to(TESTS / "embedding_store"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: a collection of garbage need not look through it again and again."""
    gc.freeze()
