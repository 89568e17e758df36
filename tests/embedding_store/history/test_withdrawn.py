"""Versions that are taken back, and versions that are marked as unfit."""

from __future__ import annotations

import pytest
import torch

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    LiveTable,
    Series,
    VersionExpiredError,
    VersionNotFoundError,
    VersionRetractedError,
)
from tests.embedding_store.bare import numbers, publish_bare
from tests.embedding_store.helpers import publish

NEVER = 3600.0


def test_a_version_is_taken_back(store: EmbeddingStore, series: Series):
    publish(series, 10, [1])
    wrong = publish(series, 10**6, [2])
    table = wrong.load()
    series.retract(2)
    for handle in (series, store.series("user_ctr")):
        assert (handle.versions(), handle.latest().version) == ([1], 1)
        with pytest.raises(VersionRetractedError, match="version 2 of series 'user_ctr' was retracted at"):
            handle.version(2)
    with pytest.raises(VersionRetractedError):
        series.retract(2)
    assert [(t.manifest.version, t.retracted) for t in series.expired()] == [(2, True)]
    assert table.ids().tolist() == [2]
    assert publish(series, 11, [3]).version == 3  # an earlier time, and another number
    series.retract(3)
    series.retract(1)
    assert publish(series, 1, [4]).version == 4


def test_only_the_newest_that_no_tag_points_to(series: Series):
    for _ in range(3):
        publish_bare(series)
    series.tag("prod", 3)
    series.tag("canary", 3)
    with pytest.raises(InvalidArgumentError, match="version is 3, to which canary, prod points: move the tag first"):
        series.retract(3)
    with pytest.raises(InvalidArgumentError, match="version is 2, but version 3 is the newest"):
        series.retract(2)
    with pytest.raises(VersionNotFoundError, match="has no version 4; versions: 1-3"):
        series.retract(4)
    assert series.versions() == [1, 2, 3]


def test_a_delta_is_not_published_on_what_was_taken_back(series: Series):
    publish(series, 1, [1])
    publish(series, 2, [1])

    def write() -> None:
        with series.write(as_of=3, space="ctr-1", base=2) as writer:
            series.retract(2)
            writer.append(torch.tensor([2]), torch.ones(1, 3))

    with pytest.raises(VersionExpiredError, match="the delta's base, is gone"):
        write()
    assert series.versions() == [1]


def test_a_compaction_after_a_version_was_taken_back(series: Series):
    publish(series, 1, [1])
    with series.write(as_of=1, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor([2]), torch.ones(1, 3))
    publish(series, 2, [1])
    series.retract(3)
    assert series.compact().version == 4
    assert series.latest().load().ids().sort().values.tolist() == [1, 2]


def test_a_refused_version_is_left_out_of_times(series: Series):
    for version in (1, 2, 3):
        publish(series, version, [1], torch.full((1, 3), float(version)))
    series.tag("prod", 3)
    series.refuse(3, ["drift of 0.4"])
    series.refuse(3, ["something else"])  # the first reasons stay
    assert [snapshot.refused for snapshot in series.history()] == [None, None, ("drift of 0.4",)]
    assert numbers(series.history(refused=False)) == series.versions(refused=False) == [1, 2]
    assert (series.latest().version, series.latest(refused=False).version) == (3, 2)
    assert (series.as_of(9).version, series.as_of(9, refused=True).version) == (2, 3)
    assert series.tagged("prod").version == series.version(3).version == 3
    ids, late = torch.tensor([1]), torch.tensor([9])
    assert series.lookup_as_of(ids, late)[2].tolist() == [2]
    assert series.lookup_as_of(ids, late, refused=True)[2].tolist() == [3]
    for version in (1, 2):
        series.refuse(version, ["norms"])
    with pytest.raises(VersionNotFoundError, match="has no snapshot that was not refused"):
        series.latest(refused=False)
    assert publish(series, 3, [1]).version == 4


def test_reasons_are_given(series: Series):
    publish_bare(series)
    for reasons in ([], "norms", [""], [3]):
        with pytest.raises(InvalidArgumentError, match="reasons is"):
            series.refuse(1, reasons)  # type: ignore[arg-type]
    with pytest.raises(VersionNotFoundError):
        series.refuse(2, ["norms"])
    assert series.version(1).refused is None


def test_the_newest_that_was_not_refused_stays(series: Series):
    for _ in range(5):
        publish_bare(series)
    for version in (1, 4, 5):
        series.refuse(version, ["norms"])
    assert numbers(series.expire(keep_last=1, dry_run=False)) == [1, 2, 4]
    assert series.versions() == [3, 5]


def test_a_live_table_leaves_what_is_withdrawn(series: Series):
    for version in (1, 2):
        publish(series, version, [1], torch.full((1, 3), float(version)))
    with LiveTable(series, interval=NEVER) as live:
        publish(series, 3, [1])
        series.refuse(3, ["norms"])
        assert live.refresh().version == 2
        series.refuse(2, ["norms"])
        assert live.refresh().version == 1  # back
        publish(series, 4, [1])
        assert live.refresh().version == 4
        series.retract(4)
        assert live.lookup(torch.tensor([1]))[1].item()
        assert live.refresh().version == 1
        publish(series, 5, [1])
        assert live.refresh().version == 5
