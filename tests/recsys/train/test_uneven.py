"""Rows that ranks cannot share evenly, nor batches: no rank is left waiting in a collective of a step or of a score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys.config import LossConfig, TrainConfig, UpstreamConfig
from recsys.folders import upstream_folder
from recsys.upstream import train_upstream
from tests.distributed import run_ranks
from tests.recsys.refresh.example import CONFIG, MODEL, SCHEMA, SOURCE, events
from tests.recsys.refresh.test_kinds import GRAPH, OWN

ROWS, RANKS, BATCH = 101, 3, 7
"""About a fifth of the rows is held out: neither these nor the others are three ranks' whole batches."""
TRAINING = TrainConfig(epochs=2, batch_size=BATCH, log_every=2, checkpoint_every=0)
DERM = replace(
    CONFIG.upstreams[0],
    name="derm",
    source=replace(SOURCE, users=()),
    training=TRAINING,
    held_out=0.2,
    loss=LossConfig(uniform_negatives=3),
)
KINDS = {
    "derm": DERM,
    "contrastive": replace(DERM, name="contrastive", kind="contrastive", model=type(MODEL)(), contrastive=OWN),
    "graph": replace(DERM, name="graph", kind="graph", model=type(MODEL)(), graph=GRAPH),
}


def trained(data: Path, out: Path, upstream: UpstreamConfig) -> str:
    train_upstream(upstream, data, out)
    return "trained"


@pytest.mark.parametrize("kind", KINDS)
def test_no_rank_waits_for_ever(kind: str, tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    SCHEMA.save(tmp_path / "schema.toml")
    table = events(ROWS)
    for number, (first, count) in enumerate(((0, 4), (4, 90), (94, 7))):
        pq.write_table(table.slice(first, count), tmp_path / f"events/part-{number}.parquet", row_group_size=5)
    assert run_ranks(trained, RANKS, tmp_path, tmp_path, KINDS[kind]) == ["trained"] * RANKS
    result = json.loads((upstream_folder(tmp_path, kind) / "result.json").read_text())
    assert result["passes"]["done"] == 2
    assert result["steps"] % 2 == 0
