"""A LiveTable with budgets: what was looked up most in one version is on the GPU in the next.

Here the CPU stands in for the GPU: both places are host memory, and everything else is as it is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embedding_store import (
    Accesses,
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    LiveTable,
    Series,
    Snapshot,
    TieredTable,
)
from tests.embedding_store.serve.following import IDS, NEVER, publish, version_of

ROWS, HOT = 4000, 400
DIM = 64


def publish_shuffled(series: Series, seed: int) -> Snapshot:
    """A version of all ids, whose rows lie in another order than in any other version."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
    with series.write(as_of=seed, space="s") as writer:
        writer.append(order * 1000 - 7, torch.full((ROWS, series.dim), float(seed)))
    return writer.snapshot


def budget(snapshot: Snapshot, hot_rows: int = HOT, counted: bool = True) -> int:
    """Bytes for index, counters and so many hot rows."""
    index = -(-int(snapshot.load().layout[2]) * 64 // 256) * 256
    return index + hot_rows * snapshot.dim * 4 + (4 * (snapshot.rows + 1) if counted else 0)


class Traffic:
    """Ids by Zipf's law, exponent 1.05; which are frequent has nothing to do with where they are stored."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(3)
        self._ids = torch.randperm(ROWS, generator=self._generator) * 1000 - 7
        self._chances = (1.0 / torch.arange(1, ROWS + 1) ** 1.05).to(torch.float64)

    def ids(self, count: int = 500) -> Tensor:
        return self._ids[torch.multinomial(self._chances, count, replacement=True, generator=self._generator)]

    def best(self) -> float:
        """The share of what is asked for that HOT rows could have at most."""
        return float(self._chances[:HOT].sum() / self._chances.sum())


def served(live: LiveTable, name: str = "user") -> TieredTable:
    table = live.tables()[name]
    assert isinstance(table, TieredTable)
    return table


def taken(table: TieredTable) -> int:
    """Bytes on the device that grow with the rows: of the index, the hot rows, the counters."""
    assert table._counts is not None
    return table._storage.nbytes + table._counts.nbytes


def hit_rate(live: LiveTable, traffic: Traffic) -> float:
    """Of 320 lookups, of which one in 16 is counted."""
    for _ in range(320):
        live.lookup(traffic.ids())
    return served(live).hits().rate


def test_the_hit_rate_rises_from_version_to_version_and_outlives_the_process(store: EmbeddingStore, tmp_path: Path):
    series, traffic = store.create("user", dim=DIM), Traffic()
    bytes = budget(publish_shuffled(series, 1))
    with LiveTable(series, interval=NEVER, device="cpu", gpu_bytes=bytes) as live:
        rates = [hit_rate(live, traffic)]
        for version in (2, 3):
            publish_shuffled(series, version)
            before = served(live)
            assert live.refresh().version == version
            assert [taken(before), taken(served(live))] == [bytes, bytes]  # while one is loaded, twice that
            rates.append(hit_rate(live, traffic))
            del before
        served(live).accesses().save(tmp_path / "hot.parquet")
    assert rates[0] < 0.3  # as many rows as any
    assert rates[1] > 0.9 * traffic.best()
    assert rates[2] > rates[1]  # twice as much is known
    hot_ids = Accesses.load(tmp_path / "hot.parquet").ids
    with LiveTable(series, interval=NEVER, device="cpu", gpu_bytes=bytes, hot_ids=hot_ids) as live:
        assert hit_rate(live, traffic) > 0.9 * traffic.best()


def test_a_version_that_nobody_asked_keeps_what_was_hot(store: EmbeddingStore):
    series, traffic = store.create("user", dim=DIM), Traffic()
    bytes = budget(publish_shuffled(series, 1))
    given = traffic.ids(100_000).unique_consecutive()
    with LiveTable(series, interval=NEVER, device="cpu", gpu_bytes=bytes, hot_ids=given) as live:
        first = hit_rate(live, traffic)
        for version in (2, 3, 4):  # 2 and 3 serve nobody
            publish_shuffled(series, version)
            live.refresh()
        assert hit_rate(live, traffic) > 0.95 * first


def test_without_samples_every_version_has_the_ids_that_were_given(store: EmbeddingStore):
    series, traffic = store.create("user", dim=DIM), Traffic()
    bytes = budget(publish_shuffled(series, 1), hot_rows=10, counted=False)
    given = torch.arange(10) * 1000 - 7
    with LiveTable(series, interval=NEVER, device="cpu", gpu_bytes=bytes, hot_ids=given, sample=0) as live:
        for version in (2, 3):
            live.lookup(traffic.ids())
            publish_shuffled(series, version)
            live.refresh()
            live.lookup(given)
            hits = served(live).hits()
            assert (hits.hot, hits.cold, hits.missing) == (10, 0, 0)
            with pytest.raises(InvalidArgumentError, match="no accesses are counted"):
                served(live).accesses()


def test_of_several_series_each_has_its_budget_or_none(store: EmbeddingStore):
    user, item = store.create("user", dim=DIM), store.create("item", dim=3)
    bytes = budget(publish_shuffled(user, 1))
    publish(item, space="s")
    with LiveTable({"user": user, "item": item}, interval=NEVER, device="cpu", gpu_bytes={"user": bytes}) as live:
        assert not isinstance(live.tables()["item"], TieredTable)
        assert version_of(lambda _: served(live).lookup(torch.arange(ROWS) * 1000 - 7)) == 1
        assert served(live).hits().hot == HOT
        assert version_of(live.tables()["item"].lookup) == 1
    with pytest.raises(InvalidArgumentError, match="gpu_bytes is one for 2 series"):
        LiveTable({"user": user, "item": item}, device="cpu", gpu_bytes=bytes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gpu_bytes": 2**20}, InvalidArgumentError, "gpu_bytes is given without a device: give device='cuda'"),
        ({"gpu_bytes": -1, "device": "cpu"}, InvalidArgumentError, "gpu_bytes is -1; use 0 or more"),
        ({"gpu_bytes": 2**20, "device": "cpu", "hot_ids": [1]}, InvalidIdsError, "hot_ids are a list: give int64"),
        ({"hot_ids": IDS}, InvalidArgumentError, "hot_ids are given without gpu_bytes"),
        ({"gpu_bytes": 2**20, "device": "cpu", "sample": -1}, InvalidArgumentError, "sample is -1; use 0 or more"),
        (
            {"gpu_bytes": 4000, "device": "cpu"},
            InvalidArgumentError,
            "gpu_bytes is 4000; the counters of the 1000 rows of user_ctr alone take 4004: give 4004 and room for rows",
        ),
    ],
)
def test_what_cannot_work_is_refused(series: Series, options: dict[str, Any], error: type[Exception], message: str):
    publish(series)
    with pytest.raises(error, match=message):
        LiveTable(series, **options)


def test_a_version_whose_counters_outgrow_the_budget_is_not_served(series: Series):
    publish(series)
    with LiveTable(series, interval=NEVER, device="cpu", gpu_bytes=4004 + 2**16) as live:
        assert version_of(live.lookup) == 1
        with series.write(as_of=2, space="ctr-1") as writer:
            writer.append(torch.arange(30_000), torch.full((30_000, 3), 2.0))
        status = live.refresh()
        assert status.version == 1
        assert isinstance(status.error, InvalidArgumentError)
        assert "the counters of the 30000 rows" in str(status.error)
