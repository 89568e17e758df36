"""`recsys towers`: a two-tower model on some ranks of this machine, its vectors in a store that is there."""

from __future__ import annotations

from pathlib import Path

from embedding_store import EmbeddingStore
from recsys.config import TwoTowerConfig
from recsys.downstream.two_tower import check_target, stage_name
from recsys.folders import make_out
from recsys.pipeline import ranks_here, start_job


def make_towers(config: TwoTowerConfig, data: Path, store: str, out: Path, ranks: int) -> None:
    """Train and publish it; what has been done is not done again.

    Raises:
        ConfigError: `out` cannot be written into, or the store has series of this name of another dimension.
        JobError: the job failed.
    """
    make_out(out)
    check_target(config, EmbeddingStore(store))
    start_job("twotower", stage_name(config), config, data, out, ranks_here(ranks), "--store", store)
    print(
        f"retrieve from it: recsys retrieve --store {store} --upstream {config.name} --users FILE --k 100 --out FILE "
        f"--temperature {config.temperature:g}",
        flush=True,
    )
