"""The store that layers read."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedding_store import EmbeddingStore
from tests.embedding_store.nn.layers import make_store


@pytest.fixture
def both(tmp_path: Path) -> EmbeddingStore:
    return make_store(tmp_path / "store")
