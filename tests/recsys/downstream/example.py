"""A job of small rankers on a small market."""

from pathlib import Path

import pyarrow.parquet as pq
import torch

from embedding_store import EmbeddingStore
from recsys.config import NetworkConfig, RankerSettings, RankerTrainConfig
from recsys.data.synthetic import market_split
from recsys.downstream.ranking import Ranker
from recsys.study.ablation import ablation_arms, ranker_job

SPLIT = market_split(days=6, upstream_days=2)
RANKERS = RankerSettings(
    schema="market/schema.toml",
    train=SPLIT.train,
    validation=SPLIT.validation,
    test=SPLIT.test,
    tasks={"ctr": "click", "cvr": "conversion"},
    publish_delay_ms=0,
    features=("user_id", "country", "price", "hour", "item_id"),
    seeds=(0, 1),
    network=NetworkConfig(embedding_dim=4, projection_dim=4, hidden=(8,)),
    training=RankerTrainConfig(epochs=2, batch_size=64, shuffle_batches=2),
)
CONFIG = ranker_job("tasks", RANKERS, ablation_arms(["ctr"]))
NONE = Ranker("tasks", "none", (), 0)
USER = Ranker("tasks", "ctr_user", ("user_ctr",), 0)
BOTH = Ranker("tasks", "ctr_user_item", ("user_ctr", "item_ctr"), 0)


def publish_vectors(
    data: Path,
    store: Path,
    *,
    later_ms: int = 0,
    turned: float = 0.0,
    space: str = "ctr-1",
    upstream: str = "ctr",
    dim: int = 6,
) -> None:
    """Vectors of most users and items, as of the last upstream day or later; `turned`: towards others, 0 to 1."""
    opened, generator = EmbeddingStore(store), torch.Generator().manual_seed(0)
    for owner in ("user", "item"):
        rows = pq.ParquetFile(data / f"market/{owner}s/part-0.parquet").read(["timestamp", f"{owner}_id"])
        ids = torch.from_numpy(rows[f"{owner}_id"].to_numpy().copy())
        series = opened.create(f"{owner}_{upstream}", dim=dim, exist_ok=True)
        vectors, others = (torch.randn(len(ids), dim, generator=generator) for _ in range(2))
        with series.write(as_of=rows["timestamp"][0].as_py() + later_ms, space=space) as writer:
            writer.append(ids, (1 - turned) * vectors + turned * others)
