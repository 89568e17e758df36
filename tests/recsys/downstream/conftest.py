"""The market that the rankers of `example` learn from, and a store that they read."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.data.synthetic import prepare_synthetic
from recsys.folders import store_folder
from recsys.train.distributed import Environment, process_group


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    with process_group() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market of six small days, prepared."""
    folder = tmp_path_factory.mktemp("data")
    prepare_synthetic(folder, users=100, items=100, days=6, events_per_day=400, upstream_days=2)
    return folder


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    """The folder of a run whose store has vectors of most users and items, as of the last upstream day."""
    store = EmbeddingStore(store_folder(tmp_path))
    generator = torch.Generator().manual_seed(0)
    for owner in ("user", "item"):
        rows = pq.ParquetFile(data / f"market/{owner}s/part-0.parquet").read(["timestamp", f"{owner}_id"])
        ids = torch.from_numpy(rows[f"{owner}_id"].to_numpy().copy())
        series = store.create(f"{owner}_ctr", dim=6)
        with series.write(as_of=rows["timestamp"][0].as_py(), space="ctr-1") as writer:
            writer.append(ids, torch.randn(len(ids), 6, generator=generator))
    return tmp_path
