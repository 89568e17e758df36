"""The last versions as of a time: against a loop over a list of versions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    InvalidTimeError,
    PointInTime,
    SchemaChangedError,
    Series,
    Snapshot,
    SpaceMismatchError,
)
from tests.embedding_store.helpers import folder

FIRST, LAST = -(2**63), 2**63 - 1
IDS = (0, 1, -1, 5, LAST, FIRST)
TIMES = (FIRST, -1, 0, 1, 2, 3, 4, 5, 9, LAST)


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What power failures do is tested with the writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def constant(series: Series, as_of: int, x: float, ids: list[int], space: str = "ctr-1") -> Snapshot:
    """Publish a snapshot of which every value is x."""
    with series.write(as_of=as_of, space=space) as writer:
        writer.append(ints(ids), torch.full((len(ids), series.dim), x))
    return writer.snapshot


def history(series: Series, id: int, time: int, k: int, **options: object) -> tuple[list, list, list]:
    """First values, mask and ages of one id."""
    vectors, mask, ages = series.lookup_history_as_of(ints([id]), ints([time]), k, **options)
    assert vectors.shape == (1, k, series.dim)
    return vectors[0, :, 0].tolist(), mask[0].tolist(), ages[0].tolist()


def expected(
    snapshots: list[tuple[int, list[int], bool]], id: int, time: int, k: int, delay: int
) -> list[tuple[float, bool, int]]:
    """Value, mask and age of each place, the slow way: one version a time, the last that was not refused."""
    places = []
    for at in sorted({as_of for as_of, _, refused in snapshots if not refused}, reverse=True):
        if at + delay > time:
            continue
        of_this_time = [i for i, (as_of, _, refused) in enumerate(snapshots) if as_of == at and not refused]
        version = of_this_time[-1] + 1
        holds = id in snapshots[version - 1][1]
        places.append((float(version), True, min(time - at, LAST)) if holds else (0.0, False, 0))
    return (places + [(0.0, False, 0)] * k)[:k]


@settings(max_examples=40, deadline=None)
@given(
    snapshots=st.lists(
        st.tuples(
            st.integers(-1, 5),  # many are equal: corrections
            st.lists(st.sampled_from(IDS), max_size=6, unique=True),
            st.sampled_from([False, False, True]),  # refused
        ),
        max_size=7,
    ),
    events=st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(TIMES)), max_size=20),
    k=st.sampled_from([1, 2, 3, 20]),
    delay=st.sampled_from([0, 1, 3, 10]),
    out_dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_against_a_loop(
    snapshots: list[tuple[int, list[int], bool]],
    events: list[tuple[int, int]],
    k: int,
    delay: int,
    out_dtype: torch.dtype,
) -> None:
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot[0])
    ids, times = (ints([event[i] for event in events]) for i in (0, 1))
    with tempfile.TemporaryDirectory() as store:
        series = EmbeddingStore(store).create("user_ctr", dim=3)
        for version, (as_of, held, _) in enumerate(snapshots, start=1):
            constant(series, as_of, float(version), held)
        for version, (_, _, refused) in enumerate(snapshots, start=1):
            if refused:
                series.refuse(version, ["unfit"])
        vectors, mask, ages = series.lookup_history_as_of(ids, times, k, delay, out_dtype)
        newest, found, _ = series.lookup_as_of(ids, times, delay, out_dtype)
    assert (vectors.dtype, mask.dtype, ages.dtype) == (out_dtype, torch.bool, torch.int64)
    assert (vectors.shape, mask.shape, ages.shape) == ((len(events), k, 3), (len(events), k), (len(events), k))
    assert torch.equal(vectors[:, 0], newest)
    assert torch.equal(mask[:, 0], found)
    for row, (who, time) in enumerate(events):
        places = zip(vectors[row].tolist(), mask[row].tolist(), ages[row].tolist(), strict=True)
        answers = expected(snapshots, who, time, k, delay)
        assert list(places) == [([value] * 3, holds, age) for value, holds, age in answers]


def test_places_are_versions_whether_they_hold_the_id_or_not(series: Series) -> None:
    constant(series, 10, 1.0, [1, 2])
    constant(series, 20, 2.0, [2])
    constant(series, 30, 3.0, [1, 2])
    assert history(series, 1, 35, 2) == ([3.0, 0.0], [True, False], [5, 0])
    assert history(series, 1, 35, 3) == ([3.0, 0.0, 1.0], [True, False, True], [5, 0, 25])
    assert history(series, 2, 35, 5) == ([3.0, 2.0, 1.0, 0.0, 0.0], [True] * 3 + [False] * 2, [5, 15, 25, 0, 0])
    assert history(series, 1, 9, 2) == ([0.0] * 2, [False] * 2, [0] * 2)


def test_a_correction_takes_the_place_of_what_it_corrects(series: Series) -> None:
    for as_of, x in ((10, 1.0), (20, 2.0), (20, 3.0), (20, 4.0), (30, 5.0)):
        constant(series, as_of, x, [1])
    assert history(series, 1, 30, 3) == ([5.0, 4.0, 1.0], [True] * 3, [0, 10, 20])
    series.refuse(4, ["unfit"])
    assert history(series, 1, 30, 3)[0] == [5.0, 3.0, 1.0]
    assert history(series, 1, 30, 3, refused=True)[0] == [5.0, 4.0, 1.0]


def test_a_version_becomes_a_place_just_in_time(series: Series) -> None:
    constant(series, 0, 0.0, [1])
    constant(series, 100, 1.0, [1])
    assert history(series, 1, 149, 2, delay_ms=50) == ([0.0, 0.0], [True, False], [149, 0])
    assert history(series, 1, 150, 2, delay_ms=50) == ([1.0, 0.0], [True, True], [50, 150])
    assert history(series, 1, LAST, 2, delay_ms=LAST - 50) == ([0.0, 0.0], [True, False], [LAST, 0])


def test_any_shape_and_strides(series: Series) -> None:
    constant(series, 0, 1.0, [1])
    constant(series, 5, 2.0, [1])
    ids, times = torch.ones(2, 3, dtype=torch.int64), ints([0, 4, 5, 6, -1, 5]).view(3, 2).T
    vectors, mask, ages = series.lookup_history_as_of(ids, times, 2)
    assert vectors[..., 0].tolist() == [[[1.0, 0.0], [2.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [2.0, 1.0], [2.0, 1.0]]]
    assert torch.equal(mask, vectors[..., 0] > 0)
    assert ages.tolist() == [[[0, 0], [0, 5], [0, 0]], [[4, 0], [1, 6], [0, 5]]]
    scalar = series.lookup_history_as_of(torch.tensor(1), torch.tensor(5), 2)
    assert (scalar[0].shape, scalar[1].tolist(), scalar[2].tolist()) == ((2, 3), [True, True], [0, 5])


@pytest.mark.parametrize("versions", [0, 2])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 2)])
def test_no_ids(series: Series, versions: int, shape: tuple[int, ...]) -> None:
    for version in range(versions):
        constant(series, version, 1.0, [1])
    none = torch.empty(shape, dtype=torch.int64)
    vectors, mask, ages = series.lookup_history_as_of(none, none, 5, out_dtype=torch.float16)
    assert (vectors.shape, mask.shape, ages.shape) == ((*shape, 5, 3), (*shape, 5), (*shape, 5))
    assert (vectors.dtype, mask.dtype, ages.dtype) == (torch.float16, torch.bool, torch.int64)


def test_no_snapshot(series: Series) -> None:
    assert history(series, 1, LAST, 2) == ([0.0] * 2, [False] * 2, [0] * 2)


def test_only_versions_in_a_place_are_opened(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in range(1, 9):
        constant(series, 10 * version, float(version), [1])
    opened: list[int] = []
    load = Snapshot.load
    monkeypatch.setattr(Snapshot, "load", lambda self: opened.append(self.version) or load(self))
    vectors, _, _ = series.lookup_history_as_of(ints([1, 1, 2]), ints([35, 75, 5]), 2)
    assert vectors[..., 0].tolist() == [[3.0, 2.0], [7.0, 6.0], [0.0, 0.0]]
    assert opened == [2, 3, 6, 7]
    history(series, 1, 70, 3)
    assert opened == [2, 3, 6, 7, 5]


def test_what_changes_between_two_calls_is_seen(series: Series) -> None:
    """Of one handle, whoever changes it: no call answers from what an earlier one has listed."""
    other = EmbeddingStore(folder(series).parent).series("user_ctr")
    assert history(series, 1, 35, 4)[1] == [False] * 4
    for as_of in (10, 20, 30):
        constant(other, as_of, as_of / 10, [1])
        assert history(series, 1, 35, 4)[0][0] == as_of / 10
    other.tag("prod", 1)
    assert history(series, 1, 35, 4)[0] == [3.0, 2.0, 1.0, 0.0]
    other.expire(keep_last=1, dry_run=False)  # all but the tagged one and the newest
    assert history(series, 1, 35, 4)[0] == [3.0, 1.0, 0.0, 0.0]
    other.untag("prod")
    other.expire(keep_last=1, dry_run=False)
    assert history(series, 1, 35, 4)[0] == [3.0, 0.0, 0.0, 0.0]
    constant(other, 34, 4.0, [1])
    other.refuse(4, ["unfit"])
    assert history(series, 1, 35, 4)[0] == [3.0, 0.0, 0.0, 0.0]
    other.retract(4)
    assert history(series, 1, 35, 4, refused=True)[0] == [3.0, 0.0, 0.0, 0.0]


def test_two_dtypes_are_read_together(series: Series) -> None:
    constant(series, 0, 1.0, [1, 2])
    narrow = series.evolve(dtype="float16")
    constant(narrow, 10, 2.0, [1])
    constant(narrow.evolve(dtype="int8"), 20, 3.0, [1, 2])
    read = EmbeddingStore(folder(series).parent).series("user_ctr")
    assert history(read, 1, 25, 4) == ([3.0, 2.0, 1.0, 0.0], [True] * 3 + [False], [5, 15, 25, 0])
    assert history(read, 2, 25, 3) == ([3.0, 0.0, 1.0], [True, False, True], [5, 0, 25])


def test_two_spaces_are_not_mixed(series: Series) -> None:
    for as_of, space in ((0, "ctr-1"), (10, "ctr-1"), (20, "ctr-2"), (30, "ctr-2")):
        constant(series, as_of, as_of / 10, [1], space)
    with pytest.raises(SpaceMismatchError, match=r"'ctr-1' \(version 2\) and 'ctr-2' \(version 4\).*space='ctr-2'"):
        history(series, 1, 35, 3)
    assert history(series, 1, 35, 2)[0] == [3.0, 2.0]
    assert history(series, 1, 35, 3, space="ctr-2")[0] == [3.0, 2.0, 0.0]
    assert history(series, 1, 35, 3, space="ctr-1")[0] == [1.0, 0.0, 0.0]


def test_two_dimensions_are_not_mixed(series: Series) -> None:
    constant(series, 0, 1.0, [1])
    wider = series.evolve(dim=4)
    constant(wider, 10, 2.0, [1])
    assert history(wider, 1, 15, 1)[0] == [2.0]
    with pytest.raises(SchemaChangedError, match="version 1 of series 'user_ctr' has dim = 3, asked for is 4"):
        history(wider, 1, 15, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, InvalidArgumentError, r"^k is 0; use 1 \.\. 4096: each id gets k vectors"),
        ({"k": -1}, InvalidArgumentError, r"^k is -1; use 1 \.\. 4096"),
        ({"k": 4097}, InvalidArgumentError, r"^k is 4097; use 1 \.\. 4096"),
        ({"k": 2.0}, InvalidArgumentError, r"^k is 2\.0; use 1 \.\. 4096"),
        ({"k": True}, InvalidArgumentError, "^k is True"),
        ({"delay_ms": -1}, InvalidArgumentError, "^delay_ms is -1; use 0 or more"),
        ({"out_dtype": torch.int64}, InvalidArgumentError, "^out_dtype is torch.int64; use one of torch.float32"),
        ({"ids": torch.ones(1)}, InvalidIdsError, "^ids are torch.float32 on cpu: give an int64 tensor"),
        ({"ids": [1]}, InvalidIdsError, "^ids are list: give an int64 tensor"),
        ({"ids": ints([1]).to("meta")}, InvalidIdsError, "^ids are torch.int64 on meta: give an int64 tensor, dense"),
        ({"ids": ints([1]).to_sparse()}, InvalidIdsError, "^ids are torch.int64 on cpu: give an int64 tensor, dense"),
        ({"timestamps": torch.ones(1)}, InvalidIdsError, "^timestamps are torch.float32"),
        ({"timestamps": ints([1, 2])}, InvalidIdsError, r"^ids are \[1\], timestamps \[2\]: give one for each id"),
        ({"timestamps": ints([1_700_000_000])}, InvalidTimeError, "^timestamps is 1700000000, which reads as seconds"),
    ],
)
@pytest.mark.parametrize("versions", [0, 1])
def test_arguments_that_cannot_be(
    series: Series, versions: int, change: dict[str, object], error: type[Exception], message: str
) -> None:
    """Whether there is something to look into or not."""
    for version in range(versions):
        constant(series, version, 1.0, [1])
    arguments: dict[str, object] = {"ids": ints([1]), "timestamps": ints([1]), "k": 2}
    with pytest.raises(error, match=message):
        series.lookup_history_as_of(**{**arguments, **change})  # type: ignore[arg-type]


def test_the_largest_k_and_snapshots_of_the_callers_choice(series: Series) -> None:
    snapshots = [constant(series, 10 * version, float(version), [1]) for version in (1, 2, 3)]
    vectors, mask, ages = PointInTime(snapshots[::2], 3).lookup_history(ints([1]), ints([30]), 4096)
    assert (vectors.shape, int(mask.sum())) == ((1, 4096, 3), 2)
    assert (vectors[0, :3, 0].tolist(), ages[0, :3].tolist()) == ([3.0, 1.0, 0.0], [0, 20, 0])
