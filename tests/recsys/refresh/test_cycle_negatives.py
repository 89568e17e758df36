"""Cycles whose training draws negatives uniformly."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recsys.config import LossConfig, RefreshConfig
from recsys.data.batch import Batch
from recsys.models.derm import DermOutput
from recsys.models.losses import DermLoss
from tests.recsys.refresh.catalogue_example import FLAGGED, config, deliver, item_rows, noon, offered
from tests.recsys.refresh.daily_example import DAYS, contents, refresh, write_day
from tests.recsys.refresh.example import LAST

PLAIN = config()
pytestmark = pytest.mark.usefixtures("no_pages")


def drawing(count: int) -> RefreshConfig:
    return replace(PLAIN, upstream=replace(PLAIN.upstream, loss=LossConfig(uniform_negatives=count)))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Of each step, how many items there are to draw from, and those that were drawn."""
    steps, forward = list[tuple[int, list[int]]](), DermLoss.forward

    def spy(self: DermLoss, output: DermOutput, batch: Batch) -> Any:
        if batch.negatives is not None:
            steps.append((self.items, batch.negatives.tolist()))
        return forward(self, output, batch)

    monkeypatch.setattr(DermLoss, "forward", spy)
    return steps


def items_of(data: Path, day: str) -> set[int]:
    return set(pq.read_table(data / "days" / day)["item_id"].to_pylist())


def test_they_are_the_days_items_without_the_withdrawn(
    run: tuple[Path, Path], drawn: list[tuple[int, list[int]]], tmp_path: Path
) -> None:
    data, out = run
    FLAGGED.save(data / "schema.toml")
    for day in DAYS[2:4]:
        write_day(data, day)
    deliver(data, DAYS[2], item_rows([0, 555], noon(DAYS[2]), gone=[1, 0]))
    refresh(drawing(32), data, out)
    assert {item for _, items in drawn for item in items} == items_of(data, DAYS[2])
    drawn.clear()
    without = Path(shutil.copytree(out, tmp_path / "without"))
    refresh(drawing(32), data, out)
    alive = items_of(data, DAYS[3]) - {0}
    assert len(alive) < len(items_of(data, DAYS[3]))
    assert {item for _, items in drawn for item in items} == alive
    assert [(count, len(items)) for count, items in drawn] == [(len(alive), 32)] * 3
    assert offered(out, [0, 555]) == [False, True]
    refresh(PLAIN, data, without)
    (vectors, others) = (contents(folder) for folder in (out, without))
    assert vectors.keys() == others.keys()
    assert vectors != others, "they teach the model something"


def test_a_cold_retrain_draws_the_sources_rows_too(run: tuple[Path, Path], drawn: list[tuple[int, list[int]]]) -> None:
    data, out = run
    (data / "items").mkdir()
    pq.write_table(item_rows([777], LAST), data / "items/part-0.parquet")
    write_day(data, DAYS[2])
    start = drawing(16)
    source = replace(start.upstream.source, items=("items/*.parquet",))
    refresh(replace(start, upstream=replace(start.upstream, source=source)), data, out, cold=True)
    assert 777 in {item for _, items in drawn for item in items}
    assert len({count for count, _ in drawn}) == 1
