"""Catalogue, history and tags."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from embedding_store import (
    AsOfDecreasedError,
    EmbeddingStore,
    FileFormatError,
    InvalidArgumentError,
    InvalidTimeError,
    Series,
    SeriesExistsError,
    SeriesNotFoundError,
    StoreError,
    TagNotFoundError,
    VersionNotFoundError,
)
from embedding_store.times import to_milliseconds, to_text

from .helpers import folder, publish


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


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "ä", "x" * 129])
def test_names_that_no_disk_would_take_are_refused(store: EmbeddingStore, name: str):
    with pytest.raises(InvalidArgumentError, match="series name is"):
        store.create(name, dim=4)
    series = store.create("user_ctr", dim=3)
    publish(series, 1, [1])
    with pytest.raises(InvalidArgumentError, match="tag is"):
        series.tag(name, 1)


def test_wrong_settings_name_the_field(store: EmbeddingStore):
    with pytest.raises(InvalidArgumentError, match="dim is 0"):
        store.create("a", dim=0)
    with pytest.raises(InvalidArgumentError, match="dtype is 'float8'"):
        store.create("a", dim=1, dtype="float8")
    with pytest.raises(InvalidArgumentError, match="object stores are not supported yet"):
        EmbeddingStore("s3://bucket/store")
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
    series.tag("prod", 2)
    series.tag("canary", 3)
    for ask in (series.tagged, series.untag, series.rollback):
        with pytest.raises(TagNotFoundError, match=r"no tag 'prud'; tags: canary, prod"):
            ask("prud")
    with pytest.raises(VersionNotFoundError, match="versions: 1-3"):
        series.tag("prod", 4)
    (folder(series) / "manifests/00000002.json").unlink()
    with pytest.raises(VersionNotFoundError, match=r"versions: 1, 3"):
        series.version(2)


def test_as_of_never_decreases(series: Series):
    publish(series, 20, [1])
    with pytest.raises(AsOfDecreasedError, match=r"as_of is 19 \(1970.*version 1 of 'user_ctr' is as of 20"):
        series.write(as_of=19, space="ctr-1")
    with pytest.raises(AsOfDecreasedError), series.write(as_of=30, space="ctr-1"):
        publish(series, 40, [1])  # another writer is faster
    assert [s.as_of for s in series.history()] == [20, 40]
    assert len(list((folder(series) / "data").iterdir())) == 2


def test_tags_move_and_roll_back(series: Series):
    for as_of in range(1, 6):
        publish(series, as_of, [as_of])
    for version in (1, 4, 3, 5):
        series.tag("prod", version)
    series.tag("canary", 5)
    assert series.tags() == {"canary": 5, "prod": 5}
    assert series.latest().tags == ("canary", "prod")
    assert series.tagged("prod").version == 5
    assert [series.rollback("prod").version for _ in range(2)] == [3, 1]
    with pytest.raises(TagNotFoundError, match="at version 1 and has named no earlier one"):
        series.rollback("prod")
    assert series.rollback("canary", 2).version == 2
    with pytest.raises(InvalidArgumentError, match="version is 2, tag 'canary' is at 2"):
        series.rollback("canary", 2)
    with pytest.raises(VersionNotFoundError):
        series.rollback("canary", 0)
    series.untag("canary")
    assert series.tags() == {"prod": 1}
    assert series.version(1).tags == ("prod",)


def test_times():
    day = datetime(2022, 5, 1, tzinfo=UTC)
    assert to_milliseconds(day, "as_of") == 1_651_363_200_000
    assert to_milliseconds(day.astimezone(timezone(timedelta(hours=8))), "as_of") == 1_651_363_200_000
    assert to_milliseconds(day + timedelta(microseconds=1999), "as_of") == 1_651_363_200_001
    assert to_milliseconds(datetime(1969, 12, 31, 23, 59, 59, 999_500, tzinfo=UTC), "as_of") == -1
    assert to_text(1_651_363_200_001) == "2022-05-01 00:00:00.001 UTC"
    assert to_text(2**62) == f"{2**62} ms"


@pytest.mark.parametrize("value", [datetime(2022, 5, 1), 1.5, "2022-05-01", None, True, 2**63])
def test_times_that_could_be_misread_are_refused(series: Series, value):
    with pytest.raises(InvalidTimeError, match="as_of is"):
        series.write(as_of=value, space="ctr-1")
    with pytest.raises(InvalidTimeError, match="timestamp is"):
        series.as_of(value)


def test_a_renamed_series_is_refused(store: EmbeddingStore, series: Series):
    (store.path / "user_ctr").rename(store.path / "other")
    with pytest.raises(FileFormatError, match="name is 'user_ctr', its folder is 'other'"):
        store.series("other")


def test_every_error_is_a_store_error():
    import embedding_store

    errors = [getattr(embedding_store, name) for name in embedding_store.__all__ if name.endswith("Error")]
    assert len(errors) == 20
    assert all(issubclass(error, StoreError) for error in errors)
