"""The benchmarks of training at sizes at which they say nothing but that they work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contrastive_training, graph_training
from benchmarks.ranks import Figures, in_rounds, on_ranks, total
from recsys.train.distributed import Environment, process_group
from tests.benchmarks.test_fb15k import planted, write


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are this process: what a process of its own is good for is the figures."""

    def on_one(measure: Callable[..., Figures], ranks: int, *arguments: Any, threads: int) -> Figures:
        assert ranks == threads == 1
        with process_group(alone=True) as environment:
            return measure(environment, *arguments)

    for script in (graph_training, contrastive_training):
        monkeypatch.setattr(script, "on_ranks", on_one)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_triples_are_those_of_the_data(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = graph_training.Options(
        data=write(tmp_path / "data", planted()),
        dims=(8, 12),
        negatives=(4,),
        batch_size=128,
        steps=3,
        ranks=(1,),
        cores=1,
        rounds=1,
    )
    graph_training.main(options)
    found = lines(capsys)
    assert [line["dim"] for line in found] == [8, 12]
    train = len(planted()[0])
    for line in found:
        assert line["negatives_a_triple"] == 8
        assert line["pairs_per_second"] == pytest.approx(8 * line["triples_per_second"], rel=0.01)
        assert train / (train + 2 * 128) < line["filled"] <= 1  # the last groups of two relations have free places


def test_tables_of_a_graph(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = graph_training.Options(
        rows=(1_000, 60_000), dims=(16,), negatives=(4,), batch_size=128, steps=3, ranks=(1,), cores=1, rounds=1
    )
    graph_training.main(options)
    few, many = lines(capsys)
    assert (few["rows"], many["rows"]) == (1_000, 60_000)
    assert many["of_a_row"] == 68
    assert many["without_row"] < 0.05
    assert "bytes_a_row" not in few
    assert isinstance(many["bytes_a_row"], float)


def test_contrastive_tables(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = contrastive_training.Options(
        rows=(1_000, 2_000), dim=32, batch_size=32, uniform_negatives=8, steps=3, ranks=(1,), cores=1, rounds=1
    )
    contrastive_training.main(options)
    found = lines(capsys)
    assert [(line["ids"], line["rows"]) for line in found] == [
        (ids, rows) for ids in ("own", "hashed", "managed") for rows in (1_000, 2_000)
    ]
    assert [line["of_a_row"] for line in found[::2]] == [132, 160, 132]
    for line in found:
        assert line["pairs_per_second"] > 0
        assert line["contrastive"] > 0


def test_every_rank_takes_part() -> None:
    assert on_ranks(_sum, 2, 10) == {"sum": 21, "ranks": 2}


def test_median_of_the_rounds() -> None:
    speeds = {"a": iter([3.0, 1.0, 2.0]), "b": iter([6.0, 5.0, 4.0])}
    found = in_rounds({name: lambda x=x: {"rows_per_second": next(x), "at": "cpu"} for name, x in speeds.items()}, 3)
    assert found == {
        "a": {"rows_per_second": 2.0, "at": "cpu", "runs": [3.0, 1.0, 2.0]},
        "b": {"rows_per_second": 5.0, "at": "cpu", "runs": [6.0, 5.0, 4.0]},
    }


def _sum(environment: Environment, base: int) -> Figures:
    return {"sum": total(base + environment.rank), "ranks": environment.world_size}
