"""What was stored comes back, on whatever device it is looked up. It needs nothing that a borrowed GPU may lack."""

from __future__ import annotations

import warnings

import pytest
import torch

from embedding_store import EmbeddingStore
from embedding_store.dtypes import DTYPES, decode, encode
from tests.embedding_store.helpers import publish

EXTREMES = [-(2**63), -(2**63) + 1, -(2**31) - 1, -1, 0, 1, 2**31, 2**32 + 7, 2**63 - 2, 2**63 - 1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("rows_per_batch", [None, 3])
def test_stored_vectors_come_back(store: EmbeddingStore, name: str, rows_per_batch: int | None, device: str):
    series = store.create(f"user_{name}", dim=5, dtype=name)
    vectors = torch.randn(len(EXTREMES), 5, generator=torch.Generator().manual_seed(1))
    snapshot = publish(series, 1, EXTREMES[::-1], vectors.flip(0), rows_per_batch=rows_per_batch)
    assert len(snapshot.manifest.segments) == (1 if rows_per_batch is None else 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about read-only memory
        table = snapshot.load(device, verify=True)
        got, found = table.lookup(torch.tensor(EXTREMES, device=device))
    assert table.device.type == got.device.type == found.device.type == device
    assert got.dtype == torch.float32
    assert bool(found.all())
    expected = decode(encode(vectors, DTYPES[name]), 5, DTYPES[name])
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0 if device == "cpu" else 1e-6)
    assert len(table) == len(EXTREMES)
    assert table.ids().tolist() == EXTREMES
