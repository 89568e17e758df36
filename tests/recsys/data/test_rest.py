"""Passes that several numbers of ranks share: what each rank reads, over all of them, is a partition of the pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.links import LinkStream
from recsys.data.rest import Place, Ranges
from recsys.data.stream import EventStream
from tests.recsys.data.events import SCHEMA, items_of, temporary_log
from tests.recsys.data.test_links import GRAPH, links_of, some_links

LEGS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.floats(0, 1)), min_size=2, max_size=4)
"""World size, batch size, and the share of what is left that is done by these."""


def read(streams: Callable[[int, int], list[Any]], legs: list[tuple[int, int, float]]) -> Iterator[list[list[Any]]]:
    """The batches of each rank, leg by leg; the last leg goes on to the end of all passes."""
    place = Place(0, ())
    for number, (world_size, batch_size, share) in enumerate(legs):
        ranks = streams(world_size, batch_size)
        positions = {rank.resume(place) for rank in ranks}
        assert len(positions) == 1, "ranks that disagree would wait for each other for ever"
        (position,) = positions
        left = min(ranks[0].steps_per_epoch - position % ranks[0].steps_per_epoch, ranks[0].total_steps - position)
        steps = int(left * share) if number < len(legs) - 1 else ranks[0].total_steps - position
        batches = [list(islice(rank, steps)) for rank in ranks]
        assert {len(each) for each in batches} == {steps}
        places = {rank.place(position + steps) for rank in ranks}
        assert len(places) == 1
        place = Place.of(json.loads(json.dumps(places.pop().record())))
        yield batches


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    row_group=st.integers(1, 20),
    shuffle_batches=st.integers(0, 3),
    seed=st.integers(0, 99),
    legs=LEGS,
)
def test_every_row_of_a_pass_is_read_once(
    sizes: list[int], row_group: int, shuffle_batches: int, seed: int, legs: list[tuple[int, int, float]]
) -> None:
    rows, options = sum(sizes), {"shuffle_batches": shuffle_batches, "seed": seed, "epochs": 2}
    if rows < max(world_size for world_size, *_ in legs):
        return
    with temporary_log(sizes, row_group) as files:

        def streams(world_size: int, batch_size: int) -> list[EventStream]:
            options.update(batch_size=batch_size, world_size=world_size)
            return [EventStream(files, SCHEMA, rank=rank, **options) for rank in range(world_size)]

        batches = []
        for leg in read(streams, legs):
            for step in zip(*leg, strict=True):
                assert len({len(batch) for batch in step}) == 1, "ranks exchange what a contrastive loss compares"
                batches += step
    for epoch in range(2):
        found = Counter(row for batch in items_of([x for x in batches if x.epoch == epoch]) for row in batch)
        assert set(found.values()) <= {1}
    first = sum(len(batch) for batch in batches if batch.epoch == 0)
    last = legs[-1][0]
    begun = [steps for steps in legs[:-1] if steps[2]]
    if len({leg[:2] for leg in legs}) > 1 and begun and first:
        plain = [rows // size // batch * batch * size for size, batch, _ in legs if batch <= rows // size]
        assert first > rows - last or first in plain, "only less than a row a rank is left out"


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=3, max_size=3).filter(any),
    group=st.integers(1, 4),
    passes=st.integers(1, 2),
    legs=LEGS,
)
def test_every_link_of_a_pass_is_in_one_batch(
    counts: list[int], group: int, passes: int, legs: list[tuple[int, int, float]]
) -> None:
    links = some_links(counts)

    def streams(world_size: int, batch_size: int) -> list[LinkStream]:
        options = {"batch_size": batch_size, "group": group, "negatives": 2, "passes": passes, "world_size": world_size}
        return [LinkStream(links, GRAPH, rank=rank, epochs=2 // passes, **options) for rank in range(world_size)]

    found = Counter(link for leg in read(streams, legs) for rank in leg for batch in rank for link in links_of(batch))
    columns = (links.heads, links.relations, links.tails, links.weights)
    wanted = Counter(zip(*(x.tolist() for x in columns), strict=True))
    assert found == Counter({link: 2 * count for link, count in wanted.items()})


RANGES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=6)


def ranges(drawn: list[tuple[int, int]]) -> Ranges:
    """Gaps and lengths as ranges that do not touch."""
    gaps, lengths = np.array(drawn, np.int64).reshape(-1, 2).T
    ends = np.cumsum(gaps + lengths + 1)
    return Ranges(ends - lengths, ends)


def rows_of(some: Ranges) -> list[int]:
    return [row for start, end in zip(some.starts, some.ends, strict=True) for row in range(start, end)]


@given(mine=RANGES, wanted=RANGES, gap=st.integers(1, 4))
def test_ranges_are_sets_of_rows(mine: list[tuple[int, int]], wanted: list[tuple[int, int]], gap: int) -> None:
    some, numbers = ranges(mine), ranges(wanted)
    rows = rows_of(some)
    assert some.rows == len(rows)
    inside = [number for number in rows_of(numbers) if number < len(rows)]
    part = some.part(numbers.starts, numbers.ends)
    assert rows_of(part) == [rows[number] for number in inside]
    assert (part.starts[1:] > part.ends[:-1]).all()
    spans = list(some.spans(gap))
    assert [row for span in spans for row in rows_of(span)] == rows
    assert all((span.starts[1:] - span.ends[:-1] < gap).all() for span in spans)
    for first, end in ((0, 9), (3, 4), (5, 40), (60, 60)):
        assert some.missing(first, end).tolist() == [row - first for row in range(first, end) if row not in rows]
