"""`recsys rank`, with the README's own config: a store that is there, another ranker, a report."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import torch

from embedding_store import EmbeddingStore
from recsys import rank
from recsys.config import Config, RankerConfig
from recsys.downstream.ranking import train_rankers
from recsys.study.report import build_report, load_report
from tests.recsys.conftest import Run
from tests.test_readme import toml_blocks, write_days

SMALL = (
    "tasks.buy=click",
    "network={embedding_dim=4, projection_dim=4, hidden=[4]}",
    "training={batch_size=100, epochs=1}",
    "seeds=[0]",
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The jobs that were started; they run in this process."""
    jobs = list[Config]()

    def job(command: str, name: str, config: RankerConfig, data: Path, out: Path, ranks: int, *options: str) -> None:
        assert (command, name, ranks, options[0]) == ("downstream", f"downstream-{config.name}", 2, "--store")
        jobs.append(config)
        train_rankers(config, data, out, options[1])

    monkeypatch.setattr(rank, "job", job)
    monkeypatch.setattr(rank, "build_report", partial(build_report, samples=5))
    return jobs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The README's schema and ranker, and days of events after its words."""
    schema, *_, config, _ = toml_blocks()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/schema.toml").write_text(schema)
    (tmp_path / "cart.toml").write_text(config)
    write_days(tmp_path / "mine/events", datetime(2026, 2, 1, tzinfo=UTC), days=13, rows=40)
    return tmp_path


def publish(store: Path) -> None:
    for owner, ids in (("user", torch.arange(40)), ("item", -torch.arange(40) - 1)):
        series = EmbeddingStore(store).create(f"{owner}_ctr", dim=4, exist_ok=True)
        with series.write(as_of=datetime(2026, 1, 31, tzinfo=UTC), space="ctr-1") as writer:
            writer.append(ids, torch.eye(4)[ids % 4])


def test_a_second_ranker_reads_a_store_that_is_there(
    recsys: Run, data: Path, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = data / "run/store", data / "run"
    publish(store)
    (out / "config.toml").write_text("name = 'of another run'")
    options = ("--data", data, "--store", store, "--out", out, *(x for each in SMALL for x in ("--set", each)))
    assert recsys("rank", data / "cart.toml", *options, "--set", "arms=[{name='x', series=['user_crt']}]") == 2
    assert "arms.x.series names 'user_crt', which" in capsys.readouterr().err
    assert not started
    assert recsys("rank", data / "cart.toml", *options) == 0
    folder = out / "downstream/cart"
    report = load_report(folder)
    assert list(report["tasks"]["buy"]) == ["none", "ctr_user", "ctr_user_item"]
    assert "auc_lift_ci95" in report["tasks"]["buy"]["ctr_user"]
    assert {name: entry["coverage"] for name, entry in report["store"].items()} == {"user_ctr": 1.0, "item_ctr": 1.0}
    assert "ctr_user_item" in (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert recsys("report", "--out", folder) == 0
    assert "ctr_user_item" in capsys.readouterr().out

    first = sorted(folder.rglob("*.npz"))
    assert len(first) == 3
    written = [path.stat().st_mtime_ns for path in first]
    assert recsys("rank", data / "cart.toml", *options) == 0  # nothing to do
    assert [path.stat().st_mtime_ns for path in first] == written
    publish(store)  # a second version: another result
    assert recsys("rank", data / "cart.toml", *options) == 0
    assert all(path.stat().st_mtime_ns > before for path, before in zip(first, written, strict=True))

    (out / "downstream/tasks").mkdir()
    assert recsys("rank", data / "cart.toml", *options, "--set", "name=tasks") == 2
    assert "holds the rankers of a study: give the config another name than 'tasks'" in capsys.readouterr().err
