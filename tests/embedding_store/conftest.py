from __future__ import annotations

from pathlib import Path

import pytest

from embedding_store import EmbeddingStore, Series


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "store")


@pytest.fixture
def series(store: EmbeddingStore) -> Series:
    return store.create("user_ctr", dim=3)
