"""What each of two ranks holds of a large table: its share, while it trains, resumes and embeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from recsys.config import ModelConfig, TrainConfig, UpstreamConfig
from recsys.data.files import find_files
from recsys.data.last_events import last_events
from recsys.data.schema import Schema
from recsys.refresh.embed import embed, source_files
from recsys.refresh.first import load_towers
from recsys.train import planning
from recsys.train.distributed import current_environment
from recsys.train.planning import PlanError
from recsys.training_set import TrainingSet
from recsys.upstream import train_on
from tests.distributed import run_ranks
from tests.recsys.refresh.example import SCHEMA, SOURCE, write_log

STATUS = Path("/proc/self/status")
ROWS, DIM = 2_000_000, 32
WHOLE = ROWS * DIM * 4
SMALL = UpstreamConfig(
    name="ctr",
    source=SOURCE,
    model=ModelConfig(token_dim=DIM, layers=(("mlp",),), tokens=2, out_tokens=1, out_dim=4),
    training=TrainConfig(epochs=2, batch_size=8, log_every=100),
)


def schema(rows: int) -> Schema:
    features = (replace(x, rows=rows) if x.name == "user_id" else x for x in SCHEMA.features)
    return replace(SCHEMA, features=tuple(features))


def peak() -> int:
    """Largest resident set of this process so far, bytes. Not getrusage: a child begins with its parent's."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def train(log: Path, out: Path, rows: int, upstream: UpstreamConfig = SMALL) -> int:
    given = TrainingSet(files=find_files(log, SOURCE.events), schema=schema(rows), data=log)
    options = {"out": out, "store": out / "store", "title": None}
    return train_on(given, upstream, upstream.training, current_environment(), **options).result.steps


def embed_all(log: Path, out: Path, rows: int) -> int:
    model, _ = load_towers(out / "checkpoints", SMALL, schema(rows), current_environment())
    events = last_events(source_files(log, SOURCE, "user"), schema(rows), "user")
    return sum(len(ids) for ids, *_ in embed(model, schema(rows), events, "user", current_environment()))


def on_two_ranks(log: Path, out: Path) -> list[float]:
    """Growth of the peak after training, resuming and embedding, and after a refused plan, in whole tables."""
    for _ in range(2):  # what code and libraries take, once and for all
        train(log, out / "small", 50)
        embed_all(log, out / "small", 50)
    base, grown = peak(), []
    huge = replace(SMALL, model=replace(SMALL.model, token_dim=64))
    with patch.object(planning, "host_memory", return_value=64 * 2**30), pytest.raises(PlanError, match="450,000,001"):
        train(log, out / "huge", 450_000_000, huge)
    grown.append((peak() - base) / WHOLE)
    for work in (train, train, embed_all):
        assert work(log, out / "large", ROWS)
        grown.append((peak() - base) / WHOLE)
    return grown


@pytest.mark.skipif(not STATUS.is_file(), reason="reads Linux's /proc")
def test_a_rank_holds_its_share_of_a_table(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    # A whole table, or a second half beside the first, would be 1. The allocator's own takes 17 MB more in some runs.
    for refused, trained, resumed, embedded in run_ranks(on_two_ranks, 2, log, tmp_path / "out"):
        assert refused < 0.1, "a plan that cannot be is refused before anything is allocated"
        assert 0.4 < trained < 0.9, "half of the table, and its optimizer's state"
        assert resumed < 0.9, "half, and for a moment a piece of the file"
        assert embedded < 0.9, "the model that was trained is gone"
