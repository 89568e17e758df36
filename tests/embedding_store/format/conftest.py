import pytest
import torch

from embedding_store import Series, Snapshot
from embedding_store.write import batches
from tests.embedding_store.format.forging import IDS
from tests.embedding_store.helpers import publish


@pytest.fixture
def snapshot(series: Series, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """Segments of 6, 6 and then 6, 2 rows in two files."""
    monkeypatch.setattr(batches, "FILE_BYTES", 12 * 20)
    vectors = torch.randn(len(IDS), 3, generator=torch.Generator().manual_seed(0))
    return publish(series, 1, IDS, vectors, rows_per_batch=6)
