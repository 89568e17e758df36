"""What needs two ranks: one call of `run_ranks` for everything, since starting two processes takes seconds."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embedding_store import EmbeddingStore
from recsys.config import TableConfig
from recsys.data.last_events import LastEvents, last_events
from recsys.folders import store_folder
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.embed import embed, gather, source_files
from recsys.train.distributed import Environment, current_environment
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.refresh.example import REFRESH, SCHEMA, SOURCE, make_model, plain_model, save_checkpoint

CASES = [("user", 1, 4), ("user", 2, 1), ("user", 5, 2), ("user", 20, 4096), ("item", 9, 2), ("item", 7, 3)]
"""Owner, entities (fewer than ranks, odd, all), rows of a batch."""
PLANS = {"user_user_id": TableConfig(sharding="row_wise"), "item_item_id": TableConfig(sharding="table_wise")}


def first(events: LastEvents, count: int) -> LastEvents:
    return replace(events, ids=events.ids[:count], file=events.file[:count], row=events.row[:count])


def on_two_ranks(log: Path, out: Path) -> list[list[Any]]:
    environment = current_environment()
    holder = nn.ModuleDict({"model": make_model()})
    model = draw_tables(shard(holder, environment, sparse_lr=0.1, tables=PLANS), 0).module["model"]
    results = []
    for owner, count, batch_size in CASES:
        events = first(last_events(source_files(log, SOURCE, owner), SCHEMA, owner), count)
        shares = list(embed(model, SCHEMA, events, owner, environment, batch_size=batch_size))
        results.append([(share, gather(share, batch_size, environment)) for share in shares])
    refresh_upstream(REFRESH, log, out)
    refresh_upstream(REFRESH, log, out)
    return results


@pytest.fixture(scope="module")
def two(log: Path, tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> tuple[Path, list[Any]]:
    """The folder into which two ranks published, and what each rank got from `embed`."""
    out = tmp_path_factory.mktemp("two")
    save_checkpoint(out, 1, environment)
    return out, run_ranks(on_two_ranks, 2, log, out)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_embed_as_one(log: Path, two: tuple[Path, list[Any]], environment: Environment, case: int) -> None:
    owner, count, batch_size = CASES[case]
    events = first(last_events(source_files(log, SOURCE, owner), SCHEMA, owner), count)
    assert len(events) == count
    ((ids, vectors, *_),) = embed(plain_model(), SCHEMA, events, owner, environment)
    main, other = (rank[case] for rank in two[1])
    assert len(main) == len(other) == math.ceil(math.ceil(count / 2) / batch_size)
    assert all(gathered is None for _, gathered in other)
    shares = [torch.cat([share[0] for share, _ in rank]) for rank in (main, other)]
    assert [ids.tolist() for ids in shares] == [events.shard(rank, 2).ids.tolist() for rank in range(2)]
    got_ids, got = (torch.cat(column) for column in zip(*(gathered[:2] for _, gathered in main), strict=True))
    assert sorted(got_ids.tolist()) == sorted(ids.tolist())
    torch.testing.assert_close(got[got_ids.argsort()], vectors[ids.argsort()])


def test_two_ranks_publish_as_one(
    log: Path, two: tuple[Path, list[Any]], environment: Environment, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, 1, environment)
    refresh_upstream(REFRESH, log, tmp_path)
    for name in ("user_ctr", "item_ctr"):
        one, both = (EmbeddingStore(store_folder(out)).series(name) for out in (tmp_path, two[0]))
        assert one.versions() == both.versions() == [1]
        ids = one.latest().load().ids()
        assert torch.equal(ids, both.latest().load().ids())
        assert one.latest().as_of == both.latest().as_of
        torch.testing.assert_close(one.latest().load().lookup(ids), both.latest().load().lookup(ids))
