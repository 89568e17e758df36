"""Tables in the host's memory of which a GPU caches rows, `fused_uvm_caching`: what is written into them is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup, GroupedPooledEmbeddingsLookup

from recsys.train.distributed import Environment
from recsys.train.passes import Passes
from recsys.train.sharding import shard
from recsys.train.shards import lookups
from recsys.train.tables import draw_tables, renew_rows
from tests.recsys.train.toy import make_task

Kept = dict[int, list[Tensor]]
"""Lookup -> the rows that its GPU has of each table, which its steps change; none where it has none."""


def tables(lookup: Any) -> list[Tensor]:
    """In the host's memory."""
    return [x for kernel in lookup._emb_modules for x in kernel.emb_module.split_embedding_weights()]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """FBGEMM's cache of all lookups, where there is no GPU to have one."""
    kept: Kept = {}

    def flush(lookup: Any) -> None:
        for table, rows in zip(tables(lookup), kept.get(id(lookup), ()), strict=False):
            table.copy_(rows)

    for kind in (GroupedEmbeddingsLookup, GroupedPooledEmbeddingsLookup):
        monkeypatch.setattr(kind, "flush", flush)
        monkeypatch.setattr(kind, "purge", lambda lookup: kept.pop(id(lookup), None))
    return kept


def read(model: nn.Module, kept: Kept) -> Iterator[Tensor]:
    """What lookups find."""
    for lookup in lookups(model):
        yield from kept.setdefault(id(lookup), [table.clone() for table in tables(lookup)])


def drawn_anew(model: nn.Module) -> Callable[[], object]:
    return lambda: draw_tables(model, 0)


def rows_renewed(model: nn.Module) -> Callable[[], object]:
    return lambda: renew_rows(model, np.arange(40), 0)


def pass_brought_back(model: nn.Module) -> Callable[[], object]:
    passes = Passes(model, lambda _: (0.5,), keeps=True)
    passes.evaluate()
    return lambda: passes.bring(0)


@pytest.mark.parametrize(("how", "rows"), [(drawn_anew, 1000), (rows_renewed, 40), (pass_brought_back, 1000)])
def test_what_is_written_is_read_and_all_else_as_it_was(
    environment: Environment, kept: Kept, how: Callable[[nn.Module], Callable[[], object]], rows: int
) -> None:
    model = draw_tables(shard(make_task(), environment, sparse_lr=0.1), 0)
    first = [table.clone() for table in read(model, kept)]
    write = how(model)
    for table in read(model, kept):
        table.add_(1)  # steps
    write()
    found = list(read(model, kept))
    assert len(found) == len(first) == 3
    for before, after in zip(first, found, strict=True):
        assert torch.equal(after[:rows], before[:rows])
        assert torch.equal(after[rows:], before[rows:] + 1)
