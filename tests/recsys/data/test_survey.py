"""One scan by several ranks finds what a loop over all rows does, whatever the files are cut into."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys.data.held_out as held_out_module
from recsys.data.errors import DataError
from recsys.data.held_out import hold_out
from recsys.data.label_facts import survey_labels
from recsys.data.last_events import LastEvents, everywhere, last_events, newest_rows, share_events
from recsys.data.newest import behind
from recsys.data.quarantine import Quarantine
from recsys.data.ranks import ALONE, Ranks, cut
from recsys.data.sampled import Sampled
from recsys.data.schema import Feature, Label, Schema
from recsys.data.sizes import room_for
from recsys.data.survey import OWNERS, Surveyed, one_after_another, survey
from recsys.data.tables import count_tables
from recsys.dates import UNTIMED
from recsys.monitor.traffic import Traffic
from recsys.train.distributed import current_environment
from recsys.train.exchange import ranks_of
from tests.distributed import run_ranks
from tests.recsys.data.threads import run_threads
from tests.recsys.monitor.publishing import read_traffic

SCHEMA = Schema(
    timestamp="time", user_id="user", item_id="item", labels=(Label(name="click"), Label(name="buy", valid="click"))
)
START = 1_600_000_000_000
ROW = st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(0, 3), st.booleans(), st.booleans())
FILES = st.lists(st.tuples(st.lists(ROW, min_size=1, max_size=9), st.integers(1, 5)), min_size=1, max_size=4)
NAMES = ("user", "item", "time", "click", "buy")


def write(folder: Path, files: list[tuple[list[tuple[Any, ...]], int]]) -> list[Path]:
    """Files of these rows, in row groups of so many."""
    paths = []
    for number, (rows, size) in enumerate(files):
        columns = dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))
        columns["time"] = [START + time for time in columns["time"]]
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        paths.append(folder / f"{number}.parquet")
        pq.write_table(table, paths[-1], row_group_size=size)
    return paths


def rows_of(files: list[tuple[list[tuple[Any, ...]], int]], gone: set[tuple[int, int]]) -> list[tuple[Any, ...]]:
    """(file, row, user, item, time, click, buy) of every row that is read."""
    every = [(n, at, *row) for n, (rows, _) in enumerate(files) for at, row in enumerate(rows)]
    return [row for row in every if row[:2] not in gone]


def last_by_a_loop(rows: list[tuple[Any, ...]], owner: str) -> dict[int, tuple[int, int, int, int]]:
    """Id -> file, row, time, events, in the order of files and rows."""
    found: dict[int, tuple[int, int, int, int]] = {}
    for file, at, user, item, time, *_ in rows:
        id_ = user if owner == "user" else item
        _, _, newest, events = before = found.get(id_, (0, 0, -1, 0))
        found[id_] = (file, at, time, events + 1) if time >= newest else (*before[:3], events + 1)
    return dict(sorted(found.items(), key=lambda each: each[1][:2]))


def entries(found: LastEvents) -> dict[int, tuple[int, int, int, int]]:
    columns = (found.file, found.row, found.active - START, found.events)
    return {id_: row for id_, *row in zip(found.ids.tolist(), *(x.tolist() for x in columns), strict=True)} | {}


@settings(max_examples=60, deadline=None)
@given(files=FILES, world_size=st.integers(1, 4), data=st.data())
def test_the_ranks_find_what_a_loop_finds(files: Any, world_size: int, data: st.DataObject) -> None:
    every = [(n, at) for n, (rows, _) in enumerate(files) for at in range(len(rows))]
    gone = set(data.draw(st.lists(st.sampled_from(every), max_size=len(every) - 1)))
    rows = rows_of(files, gone)
    with TemporaryDirectory() as folder:
        paths = write(Path(folder), files)
        numbers = {path: sorted(at for n, at in gone if n == number) for number, path in enumerate(paths)}
        skip = Quarantine({path: np.array(found, np.int64) for path, found in numbers.items() if found})

        def found(ranks: Ranks) -> Any:
            known = survey(paths, SCHEMA, ("buy",), skip, ranks=ranks)
            shared = {owner: share_events(paths, known.rows[owner], ranks=ranks, without={2}) for owner in OWNERS}
            seen = {owner: known.seen(owner, ranks).tolist() for owner in OWNERS}
            return known, shared, seen, read_traffic(paths, SCHEMA, "click", skip, ranks=ranks)

        told = run_threads(found, world_size)
        for owner in OWNERS:
            wanted = last_by_a_loop(rows, owner)
            kept = [(id_, list(row)) for id_, row in wanted.items() if id_ != 2]
            shares = [shared[owner].shard(0, world_size) for _, shared, *_ in told]
            assert [each for share in shares for each in entries(share).items()] == kept
            assert [len(share) for share in shares] == [
                len(kept) * (r + 1) // world_size - len(kept) * r // world_size for r in range(world_size)
            ]
            for _, shared, seen, _ in told:
                assert len(shared[owner]) == len(kept)
                assert list(entries(shared[owner].spare).items()) == kept[:1]
                assert shared[owner].as_of == max(row[4] for row in rows) + START
                assert seen[owner] == sorted(wanted)
            alone = last_events(paths, SCHEMA, owner, skip)
            assert list(entries(alone).items()) == [(id_, list(row)) for id_, row in wanted.items()]
        positives: dict[int, int] = {}
        for row in rows:
            if row[5] and row[6]:
                positives[row[3]] = positives.get(row[3], 0) + 1
        counted = {}
        for known, *_ in told:
            assert not counted.keys() & set(known.positives.ids.tolist())
            counted |= dict(zip(known.positives.ids.tolist(), known.positives.counts.tolist(), strict=True))
            assert known.newest == max(row[4] for row in rows) + START
        assert counted == positives
        check_traffic(told[0][-1], rows)


def check_traffic(traffic: Traffic, rows: list[tuple[Any, ...]]) -> None:
    """Of so few events the samples are all of them, in their order."""
    for seen, at in ((traffic.users, 2), (traffic.items, 3)):
        ids, counts = np.unique([row[at] for row in rows], return_counts=True)
        assert (seen.ids.tolist(), seen.events.tolist()) == (ids.tolist(), counts.tolist())
    judged = (traffic.judged.users.tolist(), traffic.judged.items.tolist(), traffic.judged.labels.tolist())
    assert list(zip(*judged, strict=True)) == [(row[2], row[3], float(row[5])) for row in rows]
    pairs = list(zip(traffic.choosers.tolist(), traffic.chosen.tolist(), strict=True))
    assert pairs == sorted({(row[2], row[3]) for row in rows if row[5]})
    assert traffic.events == len(rows)


@settings(max_examples=40, deadline=None)
@given(files=FILES, at=st.integers(0, 4))
def test_days_one_after_another_are_one_list(files: Any, at: int) -> None:
    with TemporaryDirectory() as folder:
        paths = write(Path(folder), files)
        parts = [part for part in (paths[:at], paths[at:]) if part]
        joined = one_after_another([survey(part, SCHEMA, ("click",)) for part in parts])
        whole = survey(paths, SCHEMA, ("click",))
        assert (joined.files, joined.newest) == (whole.files, whole.newest)
        for owner in OWNERS:
            assert all(map(np.array_equal, joined.rows[owner], whole.rows[owner]))
        assert all(map(np.array_equal, joined.positives, whole.positives))


def test_own_rows_are_no_events_and_count_as_active_when_they_came(tmp_path: Path) -> None:
    events, own = write(tmp_path, [([(1, 1, 5, True, True), (2, 1, 1, True, True)], 1), ([(2, 0, 3, False, False)], 1)])
    since = {own: START + 9}

    def found(ranks: Ranks) -> Any:
        known = survey([events], SCHEMA, ranks=ranks)
        parts = [(known.rows["user"], 1), (newest_rows([own], SCHEMA, "user", own=since, ranks=ranks), 1)]
        return everywhere(share_events([events, own], behind(parts), since, ranks), ranks)

    for all_of_them in run_threads(found, 3):
        assert entries(all_of_them) == {1: [0, 0, 5, 1], 2: [1, 0, 9, 1]}


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.integers(0, 2**62), unique=True, max_size=40), world_size=st.integers(1, 5), data=st.data())
def test_places_are_cut_into_equal_shares(places: list[int], world_size: int, data: st.DataObject) -> None:
    of = [data.draw(st.integers(0, world_size - 1)) for _ in places]

    def bounds(ranks: Ranks) -> Any:
        return cut(np.sort(np.array([p for p, r in zip(places, of, strict=True) if r == ranks.rank], np.int64)), ranks)

    for found in run_threads(bounds, world_size):
        shares = np.bincount(np.searchsorted(found, places, side="right"), minlength=world_size)
        count = len(places)
        assert shares.tolist() == [count * (r + 1) // world_size - count * r // world_size for r in range(world_size)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 2)), max_size=60),
    size=st.integers(1, 12),
    world_size=st.integers(1, 3),
    distinct=st.booleans(),
)
def test_a_sample_is_the_same_whoever_reads(rows: Any, size: int, world_size: int, distinct: bool) -> None:
    def sampled(ranks: Ranks) -> list[tuple[int, ...]]:
        found = Sampled(size, salt=1, distinct=distinct)
        for key, value in rows[ranks.rank :: ranks.world_size]:
            found.add(np.array([key]), np.array([value]))
        return list(zip(*(column.tolist() for column in found.together(ranks, 1)), strict=True))

    alone = sampled(ALONE)
    assert all(sample == alone for sample in run_threads(sampled, world_size))
    kept = {key for key, _ in alone}
    assert len(kept) == min(size, len({key for key, _ in rows}))
    wanted = sorted(row for row in rows if row[0] in kept)
    assert alone == (sorted(set(wanted)) if distinct else wanted)


def on_gloo(paths: list[Path]) -> tuple[Surveyed, LastEvents]:
    ranks = ranks_of(current_environment())
    known = survey(paths, SCHEMA, ("click",), ranks=ranks)
    assert int(ranks.max(np.array([ranks.rank]))[0]) == ranks.world_size - 1
    return known, everywhere(share_events(paths, known.rows["user"], ranks=ranks), ranks)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_on_gloo_ranks(world_size: int, tmp_path: Path) -> None:
    """Uneven files, and in the second of two row groups in all: the third rank reads nothing."""
    random = np.random.default_rng(0)
    many = [tuple(x) for x in random.integers(0, (50, 20, 100, 2, 2), (200, 5)).tolist()]
    rows = [(*row[:3], bool(row[3]), bool(row[4])) for row in many]
    for files in ([(rows[:150], 7), (rows[150:], 50)], [(rows[:3], 3), (rows[3:4], 1)]):
        folder = tmp_path / str(len(files[0][0]))
        folder.mkdir()
        paths = write(folder, files)
        told = run_ranks(on_gloo, world_size, paths)
        alone = last_events(paths, SCHEMA, "user")
        ids = np.concatenate([known.positives.ids for known, _ in told])
        counts = np.concatenate([known.positives.counts for known, _ in told])
        whole = survey(paths, SCHEMA, ("click",)).positives
        assert np.array_equal(ids[np.argsort(ids)], whole.ids)
        assert np.array_equal(counts[np.argsort(ids)], whole.counts)
        for _, found in told:
            assert list(entries(found).items()) == list(entries(alone).items())


def test_nothing_but_skipped_rows(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [([(1, 1, 1, True, True)], 1)])
    found = survey([path], SCHEMA, ("click",), Quarantine({path: np.array([0])}))
    assert (found.newest, len(found.positives.ids)) == (UNTIMED, 0)
    assert len(share_events([path], found.rows["user"])) == 0


def test_a_value_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    table = {"user": [1, None], "item": [1, 2], "time": [START, START], "click": [1, 0], "buy": [0, 0]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: column 'user', row 1: the id is null"):
        survey([tmp_path / "a.parquet"], SCHEMA)


@settings(max_examples=25, deadline=None)
@given(files=FILES, world_size=st.integers(2, 4))
def test_what_is_held_out_and_how_large_tables_are_hang_on_no_rank(files: Any, world_size: int) -> None:
    features = tuple(Feature(name=name, owner=name, kind="id") for name in ("user", "item"))
    schema = Schema(features=features, labels=SCHEMA.labels, timestamp="time", user_id="user", item_id="item")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out_module, "LEAST", 1)
        paths = write(Path(folder), files)

        def found(ranks: Ranks) -> Any:
            held = hold_out(paths, SCHEMA, 0.5, ranks=ranks)
            rows = {path.name: held.rows.of(path).tolist() for path in paths}
            return rows, held.judged, held.count, count_tables(paths, schema, ranks=ranks)

        alone = found(ALONE)
        assert run_threads(found, world_size) == [alone] * world_size
        for name, at in (("user", 0), ("item", 1)):
            ids = np.unique([row[at] for rows, _ in files for row in rows])
            assert alone[-1][f"{name}.{name}"] == room_for(ids)


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=30), size=st.integers(1, 7), data=st.data())
def test_means_of_values_are_the_same_for_any_number_of_ranks(values: list[float], size: int, data: Any) -> None:
    schema = Schema(timestamp="", user_id="user", item_id="user", labels=(Label(name="spent", kind="value"),))
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        columns = {"user": np.arange(len(values)), "spent": np.array(values, np.float32)}
        pq.write_table(pa.table(columns), path, row_group_size=size)
        alone = survey_labels([path], schema)
        world_size = data.draw(st.integers(2, 4))
        assert run_threads(lambda ranks: survey_labels([path], schema, ranks=ranks), world_size) == [alone] * world_size
        mean = np.mean(np.array(values, np.float32), dtype=np.float64)
        assert alone.means["spent"] == pytest.approx(mean or 1.0, rel=1e-9)
