"""Days that follow one another in the store, against a dict."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import EmbeddingStore, InvalidVectorsError, Series, SpaceMismatchError, WriterClosedError
from recsys.config import AGGREGATIONS
from recsys.dates import DAY_MS
from recsys.refresh.aggregate import Aggregation
from recsys.refresh.aggregator import Aggregator, DayWriter, activity_series

FIRST = 19_000


def end(day: int) -> int:
    """The end of a day, ms; days are counted from one of this age."""
    return (FIRST + day + 1) * DAY_MS


IDS = (0, 1, -1, 7, 2**40, 2**63 - 1, -(2**63))


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What power failures do is tested with the store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def vector(entity: int, day: int, delivery: int = 0) -> list[float]:
    """What the model says of an entity on a day: deterministic, of length about 1."""
    angle = (entity % 1009) * 0.7 + day * 1.3 + delivery
    return [math.cos(angle), math.sin(angle), 0.25]


@dataclass
class Model:
    """What the store should hold: one dict entry an entity, one day after the other."""

    settings: Aggregation
    entities: dict[int, tuple[list[float], int, int, int]] = field(default_factory=dict)
    """Vector, day last active, days, events: two a day."""

    def run(self, day: int, ids: list[int], delivery: int) -> Model:
        """The model after a day; this one stays, for the day's correction."""
        how = self.settings
        kept = {who: it for who, it in self.entities.items() if day - it[1] < how.time_to_live_days}
        result = dict(kept)
        for who in ids:
            new = vector(who, day, delivery)
            old, _, count, seen = kept.get(who, (new, day, 0, 0))
            share = {"latest": 0.0, "ma": how.weight, "average": count / (count + 1)}[how.method] if count else 0.0
            blend = [share * a + (1 - share) * b for a, b in zip(old, new, strict=True)]
            length = math.sqrt(sum(x * x for x in blend)) if how.renormalise else 1.0
            result[who] = ([x / length for x in blend], day, count + 1, seen + 2)
        return replace(self, entities=result)


def open_series(folder: str | Path, dtype: str = "float32") -> tuple[Series, Series]:
    store = EmbeddingStore(folder)
    series = store.create("user_ctr", dim=3, dtype=dtype, exist_ok=True)
    return series, activity_series(store, "user_ctr")


def number(day: int, entities: int) -> torch.Tensor:
    """The day's number for each entity."""
    return torch.full((entities,), day)


def run_day(pair: tuple[Series, Series], how: Aggregation, day: int, ids: list[int], delivery: int = 0) -> DayWriter:
    """Publish a day in blocks of two entities."""
    aggregator = Aggregator(*pair, how, day=day, as_of=end(day), space="ctr-1")
    vectors = torch.tensor([vector(who, day, delivery) for who in ids]).reshape(-1, 3)
    with aggregator.writer(len(ids)) as writer:
        for start in range(0, len(ids), 2):
            part = slice(start, start + 2)
            n = len(ids[part])
            writer.append(aggregator.blend(torch.tensor(ids[part]), vectors[part], number(day, n), number(2, n)))
    return writer


def check_pair(pair: tuple[Series, Series], model: Model, tolerance: float = 1e-5) -> None:
    """The newest snapshot and its activity are those of the model."""
    series, activity = pair
    snapshot = series.latest()
    table, counted = snapshot.load(), activity.as_of(snapshot.as_of).load()
    ids = sorted(model.entities)
    assert table.ids().tolist() == ids
    assert counted.ids().tolist() == ids
    vectors, found = table.lookup(torch.tensor(ids, dtype=torch.int64))
    assert found.all()
    assert vectors.flatten().tolist() == pytest.approx(
        [x for who in ids for x in model.entities[who][0]], abs=tolerance
    )
    days, _ = counted.lookup(torch.tensor(ids, dtype=torch.int64))
    assert days.tolist() == [list(map(float, model.entities[who][1:])) for who in ids]


DAYS = st.lists(
    st.tuples(
        st.integers(1, 4),  # days since the one before
        st.lists(st.sampled_from(IDS), min_size=1, unique=True),
        st.booleans(),  # whether it is delivered again, with corrections
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=20, deadline=None)
@given(
    days=DAYS,
    method=st.sampled_from(AGGREGATIONS),
    time_to_live=st.sampled_from([1, 3, 90]),
    delta_below=st.sampled_from([0.0, 0.5, 1.0]),
    renormalise=st.booleans(),
)
def test_many_days_against_a_dict(
    days: list[tuple[int, list[int], bool]],
    method: str,
    time_to_live: int,
    delta_below: float,
    renormalise: bool,
) -> None:
    """Absent entities keep theirs, time to live ends, days are missing or corrected; deltas and whole snapshots."""
    how = Aggregation(method=method, time_to_live_days=time_to_live, delta_below=delta_below, renormalise=renormalise)
    with tempfile.TemporaryDirectory() as folder:
        pair = open_series(folder)
        model, day = Model(how), 19_000
        for gap, ids, corrected in days:
            day += gap
            before = model
            for delivery in range(1 + corrected):  # a correction may have other entities
                present = ids[delivery:] or ids
                model = before.run(day, present, delivery)
                writer = run_day(pair, how, day, present, delivery)
                check_pair(pair, model)
                assert writer.expired == len(set(before.entities) - set(model.entities))
        assert delta_below > 0 or writer.whole


def test_little_change_is_a_delta_and_much_is_whole(tmp_path: Path) -> None:
    pair = open_series(tmp_path)
    how = Aggregation(delta_below=0.5)
    everybody = list(range(20))
    assert run_day(pair, how, 1, everybody).whole
    assert not run_day(pair, how, 2, everybody[:9]).whole
    assert pair[0].latest().manifest.base == 1
    assert run_day(pair, how, 3, everybody[:10]).whole
    assert pair[0].latest().manifest.base is None
    whole = [run_day(pair, how, day, everybody[:4]).whole for day in range(4, 16)]
    assert whole == [False] * 5 + [True] + [False] * 5 + [True]  # before dead rows outnumber the 20 live ones


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_narrow_storage_stays_close(tmp_path: Path, dtype: str) -> None:
    """Rounding once a day does not add up, whether a vector is blended, copied or left where it is."""
    pair, how = open_series(tmp_path, dtype), Aggregation(delta_below=0.4)
    model = Model(how)
    for day in range(30):
        ids = [who for index, who in enumerate(IDS) if (day + index) % (2 + index % 3) == 0] or [IDS[0]]
        model = model.run(day, ids, 0)
        run_day(pair, how, day, ids)
    check_pair(pair, model, tolerance={"float16": 2e-3, "int8": 0.03}[dtype])


def crash_between_commits(pair: tuple[Series, Series], how: Aggregation, day: int, ids: list[int]) -> None:
    """Run a day whose disk is full when the vectors are committed: the activity is committed, they are not."""

    def full() -> None:
        raise OSError("no space left on disk")

    with ExitStack() as stack:
        aggregator = Aggregator(*pair, how, day=day, as_of=end(day), space="ctr-1")
        writer = stack.enter_context(aggregator.writer(len(ids)))
        writer.append(aggregator.blend(torch.tensor(ids), torch.ones(len(ids), 3), *2 * (number(day, len(ids)),)))
        writer.finish()
        writer._vectors.commit = full  # type: ignore[method-assign]


@pytest.mark.parametrize("delta_below", [0.0, 1.0])
def test_a_crash_between_activity_and_vectors_is_harmless(tmp_path: Path, delta_below: float) -> None:
    pair, how = open_series(tmp_path), Aggregation(method="average", delta_below=delta_below)
    run_day(pair, how, 1, [1, 2])
    model = Model(how).run(1, [1, 2], 0)
    with pytest.raises(OSError, match="no space"):
        crash_between_commits(pair, how, 2, [2, 3, 4])
    assert (pair[0].versions(), pair[1].versions()) == ([1], [1, 2])
    check_pair(pair, model)
    run_day(pair, how, 2, [2, 3])
    check_pair(pair, model.run(2, [2, 3], 0))


@pytest.mark.parametrize("delta_below", [0.0, 1.0])
def test_the_last_event_by_time_counts_whatever_day_brings_it(tmp_path: Path, delta_below: float) -> None:
    """Entity 1 was active on day 4, 2 on day 2, 3 never before; a cycle of day 5 brings events of day 3 for all. Those
    of entity 1 change no vector, but are counted."""
    pair, how = open_series(tmp_path), Aggregation(method="latest", delta_below=delta_below, time_to_live_days=4)
    run_day(pair, how, 2, [1, 2])
    run_day(pair, how, 4, [1])
    aggregator = Aggregator(*pair, how, day=5, as_of=end(5), space="ctr-1")
    with aggregator.writer(4) as writer:
        days, events = torch.tensor([3, 3, 3, 5]), torch.tensor([7, 1, 2, 3])
        writer.append(aggregator.blend(torch.tensor([1, 2, 3, 4]), torch.full((4, 3), 9.0), days, events))
    ids = torch.tensor([1, 2, 3, 4])
    vectors, found = writer.snapshot.load().lookup(ids)
    assert bool(found.all())
    assert vectors[:, 0].tolist() == [pytest.approx(vector(1, 4)[0]), 9, 9, 9]
    counted = writer.activity_snapshot.load().lookup(ids)[0].tolist()
    assert counted == [[4, 2, 11], [3, 2, 3], [3, 1, 2], [5, 1, 3]]
    run_day(pair, how, 7, [5])
    assert sorted(pair[0].latest().load().ids().tolist()) == [1, 4, 5], "two and three were last active on day 3"


def test_a_late_event_of_an_entity_whose_time_is_over_brings_nothing_back(tmp_path: Path) -> None:
    pair, how = open_series(tmp_path), Aggregation(time_to_live_days=2)
    run_day(pair, how, 4, [1, 2])
    aggregator = Aggregator(*pair, how, day=7, as_of=end(7), space="ctr-1")
    with aggregator.writer(2) as writer:
        blended = aggregator.blend(torch.tensor([1, 2]), torch.ones(2, 3), torch.tensor([3, 7]), number(1, 2))
        assert blended.ids.tolist() == [2]
        writer.append(blended)
    assert writer.snapshot.load().ids().tolist() == [2]
    assert writer.activity_snapshot.load().lookup(torch.tensor([2]))[0].tolist() == [[7, 1, 1]], "it starts anew"


def test_several_series_commit_together_or_not_at_all(tmp_path: Path) -> None:
    store, how = EmbeddingStore(tmp_path), Aggregation()
    pairs = {name: (store.create(name, dim=3), activity_series(store, name)) for name in ("user_ctr", "item_ctr")}

    def run(fail: bool) -> None:
        with ExitStack() as stack:
            writers = {}
            for name, pair in pairs.items():
                aggregator = Aggregator(*pair, how, day=1, as_of=end(0), space="ctr-1")
                writers[name] = stack.enter_context(aggregator.writer(2))
                writers[name].append(
                    aggregator.blend(torch.tensor([1, 2]), torch.ones(2, 3), number(1, 2), number(1, 2))
                )
            for writer in writers.values():
                writer.finish()
            if fail:
                raise RuntimeError("refused by a check")

    with pytest.raises(RuntimeError, match="refused"):
        run(fail=True)
    assert [series.versions() for pair in pairs.values() for series in pair] == [[]] * 4
    run(fail=False)
    assert [series.versions() for pair in pairs.values() for series in pair] == [[1]] * 4


def test_a_failed_day_leaves_nothing_behind(tmp_path: Path) -> None:
    pair, how = open_series(tmp_path), Aggregation()
    aggregator = Aggregator(*pair, how, day=1, as_of=end(0), space="ctr-1")
    with pytest.raises(InvalidVectorsError, match="id 2"), aggregator.writer(2) as writer:
        writer.append(
            aggregator.blend(torch.tensor([1, 2]), torch.tensor([[1.0] * 3, [math.inf] * 3]), *2 * (number(1, 2),))
        )
    assert pair[0].versions() == pair[1].versions() == []
    assert not list(tmp_path.rglob("*.arrow"))


def test_append_after_finish_is_refused(tmp_path: Path) -> None:
    pair = open_series(tmp_path)
    aggregator = Aggregator(*pair, Aggregation(), day=1, as_of=end(0), space="ctr-1")
    blended = aggregator.blend(torch.tensor([1]), torch.ones(1, 3), number(1, 1), number(1, 1))
    with aggregator.writer(1) as writer:
        writer.append(blended)
        writer.finish()
        with pytest.raises(WriterClosedError, match="finish"):
            writer.append(blended)
    assert writer.snapshot.rows == writer.activity_snapshot.rows == 1


def test_two_spaces_are_not_averaged(tmp_path: Path) -> None:
    pair, how = open_series(tmp_path), Aggregation()
    run_day(pair, how, 1, [1, 2])
    with pytest.raises(SpaceMismatchError, match="'ctr-1', the day's vectors are in 'ctr-2'"):
        Aggregator(*pair, how, day=2, as_of=end(2), space="ctr-2")
    fresh = Aggregator(*pair, how, day=2, as_of=end(2), space="ctr-2", fresh=True)
    with fresh.writer(1) as writer:
        writer.append(fresh.blend(torch.tensor([2]), torch.ones(1, 3), number(2, 1), number(5, 1)))
    assert writer.snapshot.space == "ctr-2"
    assert writer.snapshot.load().ids().tolist() == [2]
    assert writer.activity_snapshot.load().lookup(torch.tensor([2]))[0].tolist() == [[2.0, 1.0, 5.0]]


def test_a_rotation_carries_the_old_space_over(tmp_path: Path) -> None:
    """Blended and absent entities alike; the days after go on in the new space without it."""
    pair, how = open_series(tmp_path), Aggregation(weight=0.5, delta_below=1.0)
    run_day(pair, how, 1, [1, 2])
    turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    old = torch.tensor([vector(1, 1), vector(2, 1)]) @ turn
    expected = old.clone()
    for day in (2, 3):
        aggregator = Aggregator(*pair, how, day=day, as_of=end(day), space="ctr-2", rotation=turn)
        with aggregator.writer(1) as writer:
            writer.append(aggregator.blend(torch.tensor([2]), torch.ones(1, 3), number(day, 1), number(1, 1)))
        expected[1] = 0.5 * expected[1] + 0.5
        assert writer.whole == (day == 2)
        assert writer.snapshot.space == "ctr-2"
        assert torch.allclose(writer.snapshot.load().lookup(torch.tensor([1, 2]))[0], expected, atol=1e-6)


def test_a_series_without_activity_goes_on(tmp_path: Path) -> None:
    """Published by other means: each vector counts as one day's, of the day it was published as of."""
    pair = open_series(tmp_path)
    with pair[0].write(as_of=end(4), space="ctr-1") as writer:
        writer.append(torch.tensor([1, 2]), torch.tensor([vector(1, 0), vector(2, 0)]))
    how = Aggregation(method="average", time_to_live_days=4)
    model = Model(how, {who: (vector(who, 0), 4, 1, 0) for who in (1, 2)})
    for day, ids in ((6, [2]), (8, [3])):
        writer = run_day(pair, how, day, ids)
        model = model.run(day, ids, 0)
        check_pair(pair, model)
    assert sorted(model.entities) == [2, 3]


def test_a_new_schema_is_written_whole(tmp_path: Path) -> None:
    pair, how = open_series(tmp_path), Aggregation(delta_below=1.0)
    run_day(pair, how, 1, [1, 2, 3])
    evolved = (pair[0].evolve(dtype="float16"), pair[1])
    assert run_day(evolved, how, 2, [1]).whole
    check_pair(evolved, Model(how).run(1, [1, 2, 3], 0).run(2, [1], 0), tolerance=1e-3)


def test_ranks_share_the_work(tmp_path: Path) -> None:
    """Shares blended by aggregators of their own come out as one blended alone."""
    pair, how = open_series(tmp_path), Aggregation()
    run_day(pair, how, 1, [1, 2, 3, 4])
    ids, today = torch.tensor([1, 2, 3, 5]), torch.randn(4, 3)
    ranks = [Aggregator(*open_series(tmp_path), how, day=2, as_of=end(2), space="ctr-1") for _ in range(2)]
    shares = [rank.blend(ids[i::2], today[i::2], number(2, 2), number(1, 2)) for i, rank in enumerate(ranks)]
    alone = ranks[0].blend(ids, today, number(2, 4), number(1, 4))
    for i, share in enumerate(shares):
        assert torch.equal(share.vectors, alone.vectors[i::2])
        assert torch.equal(share.activity, alone.activity[i::2])
