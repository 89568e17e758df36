"""Catalogue, history and schemas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import torch

import embedding_store
from embedding_store import (
    AsOfDecreasedError,
    ChecksumError,
    EmbeddingStore,
    FileFormatError,
    InvalidArgumentError,
    InvalidTimeError,
    SchemaChangedError,
    Series,
    SeriesExistsError,
    SeriesNotFoundError,
    StoreError,
    VersionNotFoundError,
)
from embedding_store.times import event_text, to_milliseconds, to_text
from tests.embedding_store.bare import publish_bare
from tests.embedding_store.helpers import folder, publish


def test_catalogue(store: EmbeddingStore):
    assert store.list() == []
    store.create("user_ctr", dim=4, dtype="int8")
    store.create("item_ctr", dim=4)
    reopened = EmbeddingStore(str(store.path))
    assert reopened.list() == ["item_ctr", "user_ctr"]
    series = reopened.series("user_ctr")
    assert (series.name, series.dim, series.dtype) == ("user_ctr", 4, "int8")


def test_unknown_series_is_a_key_error_that_names_the_known(store: EmbeddingStore):
    with pytest.raises(KeyError, match=r"no series 'nope' in .*; series: none") as caught:
        store.series("nope")
    assert str(caught.value).startswith("no series")  # not KeyError's repr in quotes
    store.create("user_ctr", dim=4)
    with pytest.raises(SeriesNotFoundError, match="series: user_ctr"):
        store.series("nope")


def test_creating_twice(store: EmbeddingStore):
    store.create("user_ctr", dim=4)
    with pytest.raises(SeriesExistsError, match=r"dim = 4, dtype = 'float32'"):
        store.create("user_ctr", dim=4)
    assert store.create("user_ctr", dim=4, exist_ok=True).dim == 4
    with pytest.raises(SeriesExistsError):
        store.create("user_ctr", dim=8, exist_ok=True)
    with pytest.raises(SeriesExistsError):
        store.create("user_ctr", dim=4, dtype="int8", exist_ok=True)
    with pytest.raises(SeriesExistsError, match="ids = 'int64'"):
        store.create("user_ctr", dim=4, ids="text", exist_ok=True)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "ä", "x" * 129])
def test_names_that_no_disk_would_take_are_refused(store: EmbeddingStore, name: str):
    with pytest.raises(InvalidArgumentError, match="series name is"):
        store.create(name, dim=4)
    series = store.create("user_ctr", dim=3)
    publish_bare(series)
    with pytest.raises(InvalidArgumentError, match="tag is"):
        series.tag(name, 1)


def test_wrong_settings_name_the_field(store: EmbeddingStore):
    with pytest.raises(InvalidArgumentError, match="dim is 0"):
        store.create("a", dim=0)
    with pytest.raises(InvalidArgumentError, match="dtype is 'float8'"):
        store.create("a", dim=1, dtype="float8")
    with pytest.raises(InvalidArgumentError, match="ids is 'uuid'; use one of int64, text"):
        store.create("a", dim=1, ids="uuid")
    assert store.path is not None
    assert not store.path.exists()


def test_history_and_the_ways_to_a_snapshot(series: Series):
    for as_of, rows in [(10, 1), (20, 2), (20, 3), (35, 4)]:
        publish(series, as_of, list(range(rows)))
    assert [(s.version, s.as_of, s.rows, s.space) for s in series.history()] == [
        (1, 10, 1, "ctr-1"),
        (2, 20, 2, "ctr-1"),
        (3, 20, 3, "ctr-1"),
        (4, 35, 4, "ctr-1"),
    ]
    assert series.latest().version == 4
    assert series.version(2).rows == 2
    assert [series.as_of(t).version for t in (10, 19, 20, 34, 35, 2**62)] == [1, 1, 3, 3, 4, 4]
    assert series.as_of(datetime(2022, 5, 1, tzinfo=UTC)).version == 4


def test_what_is_not_there_is_named(series: Series):
    for ask in (series.latest, lambda: series.version(1), lambda: series.as_of(5)):
        with pytest.raises(VersionNotFoundError, match=r"none yet|no snapshot yet"):
            ask()
    for as_of in (10, 20, 30):
        publish(series, as_of, [1])
    with pytest.raises(VersionNotFoundError, match=r"'user_ctr' has no version 99; versions: 1-3"):
        series.version(99)
    with pytest.raises(KeyError, match=r"as of 9 or earlier; the first is as of 10"):
        series.as_of(9)
    (folder(series) / "manifests/00000002.json").unlink()
    with pytest.raises(VersionNotFoundError, match=r"versions: 1, 3"):
        series.version(2)


def test_as_of_never_decreases(series: Series):
    publish(series, 20, [1])
    with pytest.raises(AsOfDecreasedError, match=r"as_of is 19 \(counter 19.*version 1 of 'user_ctr' is as of 20"):
        series.write(as_of=19, space="ctr-1")
    with pytest.raises(AsOfDecreasedError), series.write(as_of=30, space="ctr-1"):
        publish(series, 40, [1])  # another writer is faster
    assert [s.as_of for s in series.history()] == [20, 40]
    assert len(list((folder(series) / "data").iterdir())) == 2


def test_times():
    day = datetime(2022, 5, 1, tzinfo=UTC)
    assert to_milliseconds(day, "as_of") == 1_651_363_200_000
    assert to_milliseconds(day.astimezone(timezone(timedelta(hours=8))), "as_of") == 1_651_363_200_000
    assert to_milliseconds(day + timedelta(microseconds=1999), "as_of") == 1_651_363_200_001
    assert to_milliseconds(datetime(1969, 12, 31, 23, 59, 59, 999_500, tzinfo=UTC), "as_of") == -1
    assert to_text(1_651_363_200_001) == "2022-05-01 00:00:00.001 UTC"
    assert event_text(1_651_363_200_001) == to_text(1_651_363_200_001)
    assert event_text(0) == "counter 0", "of a log without times, and not of 1970"
    assert to_text(2**62) == f"{2**62} ms"


@pytest.mark.parametrize("value", [datetime(2022, 5, 1), 1.5, "2022-05-01", None, True, 2**63])
def test_times_that_could_be_misread_are_refused(series: Series, value):
    with pytest.raises(InvalidTimeError, match="as_of is"):
        series.write(as_of=value, space="ctr-1")
    with pytest.raises(InvalidTimeError, match="timestamp is"):
        series.as_of(value)


NOW = 1_700_000_000  # seconds
OTHER_UNITS = [
    (NOW, "seconds: multiply by 1000"),
    (-NOW, "seconds: multiply by 1000"),
    (10**9, "seconds"),
    (10**11 - 1, "seconds"),
    (4 * 10**12, "microseconds: divide by 1000"),
    (NOW * 10**6, "microseconds: divide by 1000"),
    (np.int64(NOW) * 10**9, "nanoseconds: divide by 1000000"),
    (-NOW * 10**9, "nanoseconds: divide by 1000000"),
]


@pytest.mark.parametrize(("value", "unit"), OTHER_UNITS)
def test_times_that_read_as_another_unit_are_refused(series: Series, value: int, unit: str):
    publish(series, 1, [1])
    for name, ask in [
        ("as_of", lambda: series.write(as_of=value, space="ctr-1")),
        ("timestamp", lambda: series.as_of(value)),
        ("timestamps", lambda: series.lookup_as_of(torch.tensor([1, 1]), torch.tensor([5, value]))),
        ("timestamps", lambda: series.lookup_as_of(torch.tensor([[1, 1]]), torch.tensor([[value, NOW * 1000]]))),
        ("older_than", lambda: series.expire(older_than=value)),
    ]:
        with pytest.raises(InvalidTimeError, match=f"^{name} is {value}, which reads as {unit}"):
            ask()
    assert series.versions() == [1]


def test_times_of_this_age_and_counters_are_taken(series: Series):
    for as_of in (-(10**11), -(10**9) + 1, 0, 10**9 - 1, 10**11, np.int64(4 * 10**12 - 1)):
        publish(series, as_of, [1])
    assert [s.as_of for s in series.history()] == [-(10**11), -(10**9) + 1, 0, 10**9 - 1, 10**11, 4 * 10**12 - 1]
    assert series.as_of(4 * 10**18 + 1).version == 6
    assert series.as_of(datetime.max.replace(tzinfo=UTC)).version == 6
    assert series.as_of(datetime(1970, 6, 1, tzinfo=UTC)).version == 4  # of a datetime the unit is known


@pytest.mark.parametrize("value", [datetime(2100, 1, 1, tzinfo=UTC), 2**63 - 1, -(2**63)])
def test_no_snapshot_is_of_a_time_after_which_nothing_could_follow(series: Series, value: int | datetime):
    with pytest.raises(InvalidTimeError, match=r"^as_of is .*: give a time before 4000000000000 \(2096-10-02"):
        series.write(as_of=value, space="ctr-1")


def test_a_renamed_series_is_refused(store: EmbeddingStore, series: Series):
    (store.path / "user_ctr").rename(store.path / "other")
    with pytest.raises(FileFormatError, match="name is 'user_ctr', its folder is 'other'"):
        store.series("other")


def test_every_error_is_a_store_error():
    errors = [getattr(embedding_store, name) for name in embedding_store.__all__ if name.endswith("Error")]
    assert len(errors) > 20
    assert all(issubclass(error, StoreError) for error in errors)


def test_a_new_schema_is_for_what_is_written_next(store: EmbeddingStore, series: Series):
    publish(series, 1, [1], torch.ones(1, 3))
    wider = series.evolve(dim=4, dtype="float16")
    assert (wider.schema, wider.dim, wider.dtype, wider.ids) == (2, 4, "float16", "int64")
    publish(wider, 2, [1], torch.full((1, 4), 2.0))
    newest = store.series("user_ctr").evolve(dtype="int8")
    assert (newest.schema, newest.dim, newest.dtype) == (3, 4, "int8")
    assert [(s.version, s.manifest.schema, s.dim, s.dtype) for s in newest.history()] == [
        (1, 1, 3, "float32"),
        (2, 2, 4, "float16"),
    ]
    assert [s.load().lookup(torch.tensor([1]))[0].shape[1] for s in newest.history()] == [3, 4]
    assert series._storage.names("schemas") == ["00000002.json", "00000003.json"]
    with pytest.raises(SeriesExistsError, match="dim = 4, dtype = 'int8'"):
        store.create("user_ctr", dim=3, exist_ok=True)


def test_a_handle_of_an_older_schema_reads_and_does_not_write(series: Series):
    publish(series, 1, [1])
    newest = series.evolve(dim=2)
    with pytest.raises(SchemaChangedError, match="'user_ctr' has schema 2 by now, this handle has 1: open it again"):
        series.write(as_of=2, space="ctr-1")
    with pytest.raises(SchemaChangedError, match="has schema 2 by now"):
        series.evolve(dim=5)
    publish(newest, 2, [1])
    assert series.latest().dim == 2
    with pytest.raises(SchemaChangedError, match="version 1"):
        newest.write(as_of=3, space="ctr-1", base=1)


def test_a_writer_that_a_new_schema_overtakes_publishes_nothing(series: Series):
    publish(series, 1, [1])
    with pytest.raises(SchemaChangedError), series.write(as_of=2, space="ctr-1"):
        publish(series.evolve(dim=2), 2, [1])
    assert [s.dim for s in series.history()] == [3, 2]


def test_of_two_new_schemas_one_comes_first(series: Series, monkeypatch: pytest.MonkeyPatch):
    check = Series._check_schema

    def overtaken(self: Series) -> None:
        monkeypatch.setattr(Series, "_check_schema", check)
        check(self)
        series.evolve(dim=7)

    monkeypatch.setattr(Series, "_check_schema", overtaken)
    with pytest.raises(SchemaChangedError, match="has schema 2 by now"):
        series.evolve(dim=8)


def test_schemas_that_cannot_be(series: Series):
    for settings, message in [
        ({}, "dim is 3 and dtype 'float32' already: nothing to evolve"),
        ({"dim": 3}, "nothing to evolve"),
        ({"dim": 0}, "dim is 0"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            series.evolve(**settings)
    assert series.evolve(dim=4).evolve(dim=3).schema == 3
    schema = folder(series) / "schemas/00000003.json"
    schema.write_bytes(schema.read_bytes().replace(b'"dim": 3', b'"dim": 5'))
    with pytest.raises(ChecksumError, match=r"schemas/00000003\.json"):
        Series(series._storage, series.name)


def test_a_delta_and_its_compaction(series: Series):
    publish(series, 1, [1, 2, 3], torch.ones(3, 3))
    with series.write(as_of=2, space="ctr-1", base=series.latest()) as writer:
        writer.append(torch.tensor([3, 4]), torch.full((2, 3), 2.0))
        writer.delete(torch.tensor([1]))
    folded = series.compact()
    assert [(s.version, s.as_of, s.rows, s.manifest.base) for s in series.history()] == [
        (1, 1, 3, None),
        (2, 2, 3, 1),
        (3, 2, 3, None),
    ]
    assert series.compact().version == folded.version == 3
    for snapshot in series.history()[1:]:
        vectors, found = snapshot.load().lookup(torch.tensor([1, 2, 3, 4]))
        assert found.tolist() == [False, True, True, True]
        assert vectors[:, 0].tolist() == [0, 1, 2, 2]


def test_a_base_of_another_series_is_refused(store: EmbeddingStore, series: Series):
    other = store.create("item_ctr", dim=3)
    base = publish(other, 1, [1])
    with pytest.raises(
        InvalidArgumentError, match=r"base is Snapshot\('item_ctr'.*not a snapshot of series 'user_ctr'"
    ):
        series.write(as_of=1, space="ctr-1", base=base)
    with pytest.raises(VersionNotFoundError, match="has no version 1"):
        series.write(as_of=1, space="ctr-1", base=1)


def test_integers_of_numpy_are_integers(store: EmbeddingStore):
    series = store.create("numpy", dim=np.int32(2))
    publish(series, 1, [1], torch.ones(1, 2))
    publish(series, 2, [1], torch.ones(1, 2))
    assert series.version(np.int64(2)).version == 2
    series.tag("prod", np.int16(2))
    assert series.tags() == {"prod": 2}
    assert series.diff(np.int64(1), np.uint8(2)).kept == 1
    assert [s.version for s in series.expire(keep_last=np.int64(1))] == [1]
    with series.write(as_of=3, space="ctr-1", base=np.int64(2)) as writer:
        writer.append(torch.tensor([2]), torch.zeros(1, 2))
    assert writer.snapshot.rows == 2
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(InvalidArgumentError, match=r"^version is "):
            series.version(wrong)


@pytest.mark.parametrize("dim", [0, -1, 65_537, 2**20, 2**63, True, 2.0, "3"])
def test_dims_that_no_lookup_has_room_for_are_refused(store: EmbeddingStore, dim: object):
    with pytest.raises(InvalidArgumentError, match=r"^dim is .*; use 1 \.\. 65536$"):
        store.create("wide", dim=dim)  # type: ignore[arg-type]
    assert store.list() == []
    with pytest.raises(InvalidArgumentError, match=r"^dim is "):
        store.create("narrow", dim=3).evolve(dim=dim)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_the_widest_vectors_are_found(store: EmbeddingStore, dtype: str):
    series = store.create("wide", dim=65_536, dtype=dtype)
    vectors = torch.randn(2, 65_536)
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(torch.tensor([1, 2]), vectors)
    found, known = writer.snapshot.load().lookup(torch.tensor([2, 3]))
    assert known.tolist() == [True, False]
    torch.testing.assert_close(found[0], vectors[1], atol=0.5, rtol=0.1)
