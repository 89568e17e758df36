from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import negatives as negatives_module
from recsys.data.batch import Batch
from recsys.data.last_events import last_events
from recsys.data.negatives import UniformNegatives, take, with_negatives
from recsys.data.stream import EventStream
from recsys.models.vocabulary import Vocabulary
from tests.recsys.models.support import full_schema, random_batch
from tests.recsys.refresh.example import SCHEMA, write_log


def rows(batch: Batch, key: str) -> list[list[int]]:
    return [row.tolist() for row in batch.sparse[key].to_dense()]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 5), count=st.integers(0, 7), bank=st.integers(1, 4), seed=st.integers(0, 99))
def test_drawn_items_lie_behind_the_events(size: int, count: int, bank: int, seed: int) -> None:
    schema = full_schema()
    events, items = random_batch(schema, size, seed), random_batch(schema, bank, seed + 1, owners=("item",))
    picked = np.random.default_rng(seed).integers(0, bank, count)
    batch = with_negatives(events, take(items, picked))
    assert len(batch) == size
    assert batch.negatives.tolist() == items.item_ids[picked].tolist()
    assert batch.sparse.stride() == size + count
    keys, items_own = events.sparse.keys(), items.sparse.keys()
    for key in keys:
        behind = [rows(items, key)[row] for row in picked] if key in items_own else [[]] * count
        assert rows(batch, key) == rows(events, key) + behind
    for owner, dense in events.dense.items():
        behind = items.dense[owner][picked] if owner == "item" else dense[:0]
        assert torch.equal(batch.dense[owner], torch.cat((dense, behind)))
    assert batch.labels is events.labels
    assert batch.vectors is None
    read = replace(events, vectors=torch.ones(size, 2), found=torch.ones(size, 1, dtype=torch.bool))
    drawn = replace(take(items, picked), vectors=torch.zeros(count, 2), found=torch.zeros(count, 1, dtype=torch.bool))
    both = with_negatives(read, drawn)
    assert both.vectors.sum(1).tolist() == [2.0] * size + [0.0] * count
    assert both.found[:, 0].tolist() == [True] * size + [False] * count


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_log(tmp_path_factory.mktemp("log")).glob("events/*"))


def drawing(log: list[Path], count: int = 5, *, seed: int = 0, rank: int = 0) -> UniformNegatives:
    return UniformNegatives(last_events(log, SCHEMA, "item"), SCHEMA, count, lambda batch: batch, seed=seed, rank=rank)


def test_every_item_is_drawn_as_often_as_any_other_with_its_last_row(log: list[Path]) -> None:
    drawn = drawing(log, 900)
    (whole,) = EventStream(log, SCHEMA, batch_size=60)
    last = {int(item): rows(whole, "tags")[row] for row, item in enumerate(whole.item_ids)}  # in order of time
    counts = Counter[int]()
    for position in range(10):
        batch = drawn(replace(whole, position=position))
        counts.update(batch.negatives.tolist())
        assert rows(batch, "tags")[60:] == [last[item] for item in batch.negatives.tolist()]
    assert set(counts) == set(last)
    assert drawn.items == len(last)
    assert all(abs(count - 1000) < 150 for count in counts.values())  # five standard deviations


def test_what_is_drawn_hangs_on_seed_rank_and_position(log: list[Path]) -> None:
    events = random_batch(SCHEMA, 2)

    def ids(position: int, **words: int) -> list[int]:
        return drawing(log, **words)(replace(events, position=position)).negatives.tolist()

    one = ids(3)
    assert one == ids(3)
    for other in (ids(4), ids(3, seed=1), ids(3, rank=1)):
        assert other != one


@pytest.mark.parametrize("shuffle_batches", [0, 2])
def test_a_stream_that_goes_on_draws_what_it_would_have_drawn(log: list[Path], shuffle_batches: int) -> None:
    def stream() -> EventStream:
        options = {"batch_size": 8, "shuffle_batches": shuffle_batches, "epochs": 2, "rank": 1, "world_size": 2}
        return EventStream(log, SCHEMA, transform=drawing(log), **options)

    whole = list(stream())
    assert [(batch.position, batch.epoch) for batch in whole] == [(number, number // 3) for number in range(6)]
    assert len({tuple(batch.negatives.tolist()) for batch in whole}) == 6
    for position in range(6):
        resumed = stream()
        resumed.seek(position)
        for again, before in zip(resumed, whole[position:], strict=True):
            assert again.negatives.tolist() == before.negatives.tolist()
            assert torch.equal(again.item_ids, before.item_ids)


def test_of_many_items_each_rank_keeps_some(log: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    events, every = random_batch(SCHEMA, 2), set(last_events(log, SCHEMA, "item").ids.tolist())
    monkeypatch.setattr(negatives_module, "MOST", 3)
    ranks = [drawing(log, 200, rank=rank) for rank in range(24)]
    kept = [set(rank(events).negatives.tolist()) for rank in ranks]
    assert {len(items) for items in kept} == {3}
    assert set().union(*kept) == every
    assert {rank.items for rank in ranks} == {len(every)}


def test_events_and_drawn_items_pass_the_same_transform(log: list[Path]) -> None:
    seen = []

    def transform(batch: Batch) -> Batch:
        seen.append((len(batch), batch.position, batch.epoch))
        return replace(batch, item_ids=batch.item_ids + 1)

    plain = drawing(log)
    drawn = UniformNegatives(last_events(log, SCHEMA, "item"), SCHEMA, 5, transform, seed=0)
    events = replace(random_batch(SCHEMA, 2), position=7, epoch=3)
    batch = drawn(events)
    assert seen == [(2, 7, 3), (5, 7, 3)]
    assert torch.equal(batch.item_ids, events.item_ids + 1)
    assert torch.equal(batch.negatives, plain(events).negatives + 1)


def test_ids_of_drawn_items_are_dropped_at_every_draw_anew(log: list[Path]) -> None:
    """Of each item some draws read its own row and some the unknown one; what is drawn stays as it is."""
    vocabulary, items = Vocabulary(SCHEMA), last_events(log, SCHEMA, "item")
    vocabulary.admit({"user": np.empty(0, np.int64), "item": items.ids[:-1]})
    drawn = UniformNegatives(items, SCHEMA, 900, partial(vocabulary.resolve, dropout=0.3, seed=1), seed=0)
    batches = list(EventStream(log, SCHEMA, batch_size=30, transform=drawn))
    ids = torch.cat([batch.negatives for batch in batches])
    unknown = torch.cat([batch.sparse["item_id"].values()[-900:] == 30 for batch in batches])
    assert unknown[ids == items.ids[-1]].all()
    shares = [float(unknown[ids == item].float().mean()) for item in items.ids[:-1].tolist()]
    assert all(0.1 < share < 0.5 for share in shares)
    again = EventStream(log, SCHEMA, batch_size=30, transform=drawing(log, 900))
    assert [batch.negatives.tolist() for batch in again] == [batch.negatives.tolist() for batch in batches]
