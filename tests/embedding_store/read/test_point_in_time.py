"""Lookup as of a time: against a loop over a list of versions, and the op against plain PyTorch."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    SchemaChangedError,
    Series,
    Snapshot,
    SpaceMismatchError,
)
from embedding_store.native import ops, reference
from embedding_store.read import open_tables
from tests.embedding_store.helpers import finish, folder, publish
from tests.embedding_store.small_table import SmallTable, small_table

FIRST, LAST = -(2**63), 2**63 - 1
IDS = (0, 1, -1, 5, LAST, FIRST)
TIMES = (FIRST, -1, 0, 1, 2, 3, 4, 5, 9, LAST)
DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What power failures do is tested with the writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def value(series: Series, id: int, time: int, delay_ms: int = 0) -> float:
    """The first value of a vector; it must be found."""
    vectors, found, _ = series.lookup_as_of(ints([id]), ints([time]), delay_ms)
    assert found.all()
    return float(vectors[0, 0])


def constant(series: Series, as_of: int, x: float, ids: list[int], space: str = "ctr-1") -> Snapshot:
    """Publish a snapshot of which every value is x."""
    with series.write(as_of=as_of, space=space) as writer:
        writer.append(ints(ids), torch.full((len(ids), series.dim), x))
    return writer.snapshot


@settings(max_examples=40, deadline=None)
@given(
    snapshots=st.lists(
        st.tuples(
            st.integers(-1, 5),
            st.lists(st.sampled_from(IDS), max_size=6, unique=True),
            st.booleans(),  # a delta on the one before
        ),
        max_size=6,
    ),
    events=st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(TIMES)), max_size=20),
    delay=st.sampled_from([0, 1, 3, 10]),
    out_dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_against_a_loop(
    snapshots: list[tuple[int, list[int], bool]],
    events: list[tuple[int, int]],
    delay: int,
    out_dtype: torch.dtype,
) -> None:
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot[0])
    contents: list[dict[int, float]] = []
    with tempfile.TemporaryDirectory() as store:
        series = EmbeddingStore(store).create("user_ctr", dim=3)
        for version, (as_of, ids, delta) in enumerate(snapshots, start=1):
            base = version - 1 if delta and version > 1 else None
            contents.append((contents[-1] if base else {}) | dict.fromkeys(ids, float(version)))
            with series.write(as_of=as_of, space="ctr-1", base=base) as writer:
                writer.append(ints(ids), torch.full((len(ids), 3), float(version)))
        ids, times = (ints([event[i] for event in events]) for i in (0, 1))
        vectors, found, versions = series.lookup_as_of(ids, times, delay, out_dtype)
    assert (vectors.dtype, vectors.shape) == (out_dtype, (len(events), 3))
    for row, (who, time) in enumerate(events):
        visible = [0] + [v for v, snapshot in enumerate(snapshots, start=1) if snapshot[0] + delay <= time]
        content = contents[visible[-1] - 1] if visible[-1] else {}
        assert int(versions[row]) == visible[-1]
        assert bool(found[row]) == (who in content)
        assert vectors[row].tolist() == [content.get(who, 0.0)] * 3


@pytest.mark.parametrize("late", [1, 1000])
@pytest.mark.parametrize("delay", [0, 1, 3_600_000])
def test_a_planted_leak_cannot_be_read(series: Series, late: int, delay: int) -> None:
    """The label is in a vector that is published 1 ms, or a second, too late for the event; then just in time."""
    now = 1_700_000_000_000
    constant(series, now - 86_400_000, 0.0, [1])
    constant(series, now - delay + late, 1.0, [1])
    assert value(series, 1, now, delay) == 0.0
    assert value(series, 1, now + late - 1, delay) == 0.0
    assert value(series, 1, now + late, delay) == 1.0


def test_no_snapshot_and_none_yet(series: Series) -> None:
    vectors, found, versions = series.lookup_as_of(ints([1, 2]), ints([0, LAST]))
    assert (vectors.tolist(), found.tolist(), versions.tolist()) == ([[0.0] * 3] * 2, [False] * 2, [0, 0])
    constant(series, 10, 7.0, [1])
    vectors, found, versions = series.lookup_as_of(ints([1, 1, 2]), ints([9, 10, 10]))
    assert vectors.tolist() == [[0.0] * 3, [7.0] * 3, [0.0] * 3]
    assert (found.tolist(), versions.tolist()) == ([False, True, False], [0, 1, 1])


def test_a_correction_wins_and_is_seen_by_the_next_call(series: Series) -> None:
    constant(series, 10, 1.0, [1])
    assert value(series, 1, 10) == 1.0
    constant(series, 10, 2.0, [1])
    assert value(series, 1, 10) == 2.0


def test_any_shape(series: Series) -> None:
    constant(series, 0, 1.0, [1])
    constant(series, 5, 2.0, [1])
    ids, times = torch.ones(2, 3, dtype=torch.int64), ints([0, 4, 5, 6, -1, 5]).view(3, 2).T
    vectors, found, versions = series.lookup_as_of(ids, times)
    assert (vectors.shape, found.shape) == ((2, 3, 3), (2, 3))
    assert versions.tolist() == [[1, 2, 0], [1, 2, 2]]
    assert vectors[:, :, 0].tolist() == versions.tolist()
    vectors, found, versions = series.lookup_as_of(ints([]), ints([]))
    assert (vectors.shape, found.shape, versions.shape) == ((0, 3), (0,), (0,))
    scalar = series.lookup_as_of(torch.tensor(1), torch.tensor(5))
    assert (scalar[0].tolist(), scalar[2].item()) == ([2.0] * 3, 2)


def test_an_expired_version_leaves_its_time_to_the_one_before(series: Series) -> None:
    for version in (1, 2, 3):
        constant(series, 10 * version, float(version), [1])
    series.tag("kept", 1)
    assert value(series, 1, 25) == 2.0
    series.expire(keep_last=1, dry_run=False)
    assert value(series, 1, 25) == 1.0


def test_a_delay_beyond_int64_hides_everything(series: Series) -> None:
    constant(series, 10, 1.0, [1])
    assert series.lookup_as_of(ints([1]), ints([LAST]), LAST)[2].tolist() == [0]
    assert series.lookup_as_of(ints([1]), ints([LAST]), LAST - 10)[2].tolist() == [1]


def test_two_spaces_are_not_mixed(series: Series) -> None:
    for as_of, space in ((0, "ctr-1"), (10, "ctr-1"), (20, "ctr-2"), (30, "ctr-2")):
        constant(series, as_of, as_of / 10, [1], space)
    ids = ints([1, 1])
    with pytest.raises(SpaceMismatchError, match=r"'ctr-1' \(version 2\) and 'ctr-2' \(version 3\).*space='ctr-2'"):
        series.lookup_as_of(ids, ints([15, 25]))
    assert series.lookup_as_of(ids, ints([5, 15]))[2].tolist() == [1, 2]
    assert series.lookup_as_of(ids, ints([25, 35]))[2].tolist() == [3, 4]
    assert series.lookup_as_of(ids, ints([15, 25]), space="ctr-2")[2].tolist() == [0, 3]
    assert series.lookup_as_of(ids, ints([15, 25]), space="ctr-1")[2].tolist() == [2, 2]


def test_two_dimensions_are_not_mixed(series: Series) -> None:
    constant(series, 0, 1.0, [1])
    wider = series.evolve(dim=4)
    constant(wider, 10, 2.0, [1], "ctr-2")
    with pytest.raises(SchemaChangedError, match="version 1 of series 'user_ctr' has dim = 3, asked for is 4"):
        wider.lookup_as_of(ints([1]), ints([5]))
    assert wider.lookup_as_of(ints([1]), ints([10]))[0].tolist() == [[2.0] * 4]


def test_two_dtypes_are_read_together(series: Series) -> None:
    """How vectors are stored is no property of the feature."""
    constant(series, 0, 1.0, [1, 2])
    narrow = series.evolve(dtype="float16")
    constant(narrow, 10, 2.0, [1])
    constant(narrow.evolve(dtype="int8"), 20, 3.0, [1])
    vectors, found, versions = (
        EmbeddingStore(folder(series).parent)
        .series("user_ctr")
        .lookup_as_of(ints([1, 2, 1, 2, 1, 1]), ints([5, 5, 15, 15, 25, -1]))
    )
    assert vectors[:, 0].tolist() == [1.0, 1.0, 2.0, 0.0, 3.0, 0.0]
    assert found.tolist() == [True, True, True, False, True, False]
    assert versions.tolist() == [1, 1, 2, 2, 3, 0]


@pytest.mark.parametrize(
    ("ids", "timestamps", "options", "error", "message"),
    [
        (torch.ones(1), ints([1]), {}, InvalidIdsError, "ids are torch.float32 on cpu: give an int64 tensor"),
        (ints([1]), torch.ones(1), {}, InvalidIdsError, "timestamps are torch.float32"),
        ([1], ints([1]), {}, InvalidIdsError, "ids are list"),
        (ints([1]), ints([1, 2]), {}, InvalidIdsError, r"ids are \[1\], timestamps \[2\]"),
        (ints([1]), ints([1]), {"delay_ms": -1}, InvalidArgumentError, "delay_ms is -1; use 0 or more"),
        (ints([1]), ints([1]), {"delay_ms": 0.5}, InvalidArgumentError, "delay_ms is 0.5"),
        (ints([1]), ints([1]), {"out_dtype": torch.int64}, InvalidArgumentError, "out_dtype is torch.int64"),
    ],
)
def test_arguments_that_cannot_be(
    series: Series, ids: Tensor, timestamps: Tensor, options: dict, error: type[Exception], message: str
) -> None:
    constant(series, 0, 1.0, [1])
    with pytest.raises(error, match=message):
        series.lookup_as_of(ids, timestamps, **options)


def test_tables_are_opened_once_and_no_more_than_a_number_stay(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_tables, "OPEN_TABLES", 2)
    for version in range(4):
        constant(series, version, float(version), [1])
    opened: list[int] = []
    load = Snapshot.load
    monkeypatch.setattr(Snapshot, "load", lambda self: opened.append(self.version) or load(self))
    for time in (1, 2, 1, 3, 1, 2):  # 2 goes when 3 comes: 1 was used later
        assert value(series, 1, time) == float(time)
    assert opened == [2, 3, 4, 3]
    everything = series.lookup_as_of(ints([1] * 4), ints([0, 1, 2, 3]))[0][:, 0]
    assert everything.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_flipped_bit_is_an_error_that_names_the_file(series: Series) -> None:
    publish(series, 0, [1])
    publish(series, 10, [1])
    before = {path for path in folder(series).rglob("*.arrow")}
    newest = series.latest().manifest.data[0].path
    (path,) = (path for path in before if path.as_posix().endswith(newest))
    content = bytearray(path.read_bytes())
    content[series.latest().manifest.segments[0].vector] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert value(series, 1, 5) == 0.0
    with pytest.raises(ChecksumError, match=newest):
        series.lookup_as_of(ints([1, 1]), ints([5, 15]))


# The op


def tables_of(dtype: str, dim: int, counts: list[int]) -> list[SmallTable]:
    """Tables that share some ids; segments and layouts differ."""
    return [
        small_table(
            [7 * i + number for i in range(rows)],
            dim,
            dtype,
            segment_rows=[rows // 2, rows - rows // 2],
            in_row=number % 2 == 0,
            seed=number % 3,
        )
        for number, rows in enumerate(counts)
    ]


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    dim=st.sampled_from([1, 5, 16, 33]),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    rows=st.sampled_from([0, 1, 5, 100]),
    out=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_the_op_against_plain_pytorch(
    dtype: str, dim: int, counts: list[int], rows: int, out: torch.dtype, seed: int
) -> None:
    tables = tables_of(dtype, dim, counts)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-5, 300, (2, rows), generator=generator)
    choice = torch.randint(-1, len(tables), (2, rows), generator=generator)
    inputs = (ids, choice, [t.storage for t in tables], [t.layout for t in tables], dim, dtype, out)
    vectors, found = ops.lookup_versions(*inputs)
    expected, expected_found = reference.lookup_versions(*inputs)
    assert torch.equal(found, expected_found)
    assert vectors.dtype == out
    assert torch.equal(vectors, expected)
    for number, table in enumerate(tables):
        here = choice == number
        assert torch.equal(vectors[here], table.answer(ids[here], out)[0])


def test_one_table_is_a_plain_lookup_over_many_threads() -> None:
    (table,) = tables_of("float32", 16, [5000])
    ids = torch.randint(-100, 40_000, (30_000,), generator=torch.Generator().manual_seed(0))
    storages, layouts = [table.storage] * 3, [table.layout] * 3
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            got = ops.lookup_versions(ids, ids % 3, storages, layouts, 16, "float32")
            expected = ops.lookup(ids, table.storage, table.layout, 16, "float32")
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": ints([0, 1, 2])}, "choice is 2; use -1 or the number of one of 2 tables"),
        ({"choice": ints([0, -2, 1])}, "choice is -2; use -1"),
        ({"choice": ints([0])}, "choice is not int64, one for each id"),
        ({"choice": torch.zeros(3)}, "choice is not int64"),
        ({"storages": [], "layouts": []}, "storages and layouts are not one or more"),
        ({"layouts": []}, "storages and layouts are not one or more"),
        ({"ids": torch.zeros(3)}, "ids are not int64"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_the_op_refuses(change: dict[str, object], message: str) -> None:
    tables = tables_of("float32", 4, [3, 5])
    inputs: dict[str, object] = {
        "ids": ints([0, 7, 1]),
        "choice": ints([0, 0, 1]),
        "storages": [table.storage for table in tables],
        "layouts": [table.layout for table in tables],
        "dim": 4,
        "dtype": "float32",
    }
    with pytest.raises((RuntimeError, ValueError), match=message):  # torch versions differ
        ops.lookup_versions(**{**inputs, **change})  # type: ignore[arg-type]


def test_the_op_is_what_torch_expects() -> None:
    tables = tables_of("float16", 8, [3, 5])
    storages, layouts = [table.storage for table in tables], [table.layout for table in tables]
    inputs = (ints([0, 7, 1, 9]), ints([0, -1, 1, 1]), storages, layouts, 8, "float16", torch.float32)
    torch.library.opcheck(torch.ops.embedding_store.lookup_versions.default, inputs)
    compiled = torch.compile(ops.lookup_versions, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(*inputs), ops.lookup_versions(*inputs), strict=True):
        assert torch.equal(got, expected)


class SlowLoad:
    """Stands in for `Snapshot.load`: version 1's takes until it is told to go on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        load = Snapshot.load

        def slow(snapshot: Snapshot, *arguments: object) -> object:
            if snapshot.version == 1 and threading.current_thread() is not threading.main_thread():
                self.begun.set()
                self.go_on.wait(600)
            return load(snapshot)

        patch.setattr(Snapshot, "load", slow)


def test_a_load_keeps_neither_other_versions_nor_a_forked_child_waiting(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant(series, 1, 1.0, [1])
    constant(series, 2, 2.0, [1])
    slow = SlowLoad(monkeypatch)
    values: list[float] = []
    thread = threading.Thread(target=lambda: values.append(value(series, 1, 1)))
    thread.start()
    try:
        assert slow.begun.wait(600)
        others = threading.Thread(target=lambda: values.append(value(series, 1, 2)), daemon=True)
        others.start()
        others.join(600)
        assert values == [2.0]
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if (value(series, 1, 1), value(series, 1, 2)) == (1.0, 2.0) else 1)
            except BaseException:
                os._exit(2)
        assert finish(child) == 0
    finally:
        slow.go_on.set()
        thread.join(600)
    assert values == [2.0, 1.0]
