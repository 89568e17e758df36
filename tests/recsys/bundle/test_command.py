"""What the README and docs/serving.md say of rankers that are deployed, done as it is written there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from recsys import cli
from recsys.bundle import Bundle, command
from recsys.bundle.write import train_bundle
from recsys.config import Config, RankerConfig
from tests.recsys.downstream.example import SPLIT
from tests.recsys.test_rank import SMALL, publish
from tests.test_readme import toml_blocks, write_days

ROOT = Path(__file__).parents[3]
README, SERVING = (ROOT / "README.md").read_text(), (ROOT / "docs/serving.md").read_text()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's ranker, days of events after its words and a store; jobs run in this process."""
    schema, *_, config, _ = toml_blocks()
    (tmp_path / "DIR/mine").mkdir(parents=True)
    (tmp_path / "DIR/mine/schema.toml").write_text(schema)
    (tmp_path / "cart.toml").write_text(config)
    write_days(tmp_path / "DIR/mine/events", datetime(2026, 2, 1, tzinfo=UTC), days=13, rows=40)
    publish(tmp_path / "runs/mine/store")
    monkeypatch.chdir(tmp_path)

    def start_job(name: str, stage: str, config: Config, data: Path, out: Path, ranks: int, *options: str) -> None:
        assert (name, stage, ranks) == ("ranker", "bundle-cart-ctr_user_item", 2)
        assert isinstance(config, RankerConfig)
        assert options == ("--arm", "ctr_user_item", "--store", "runs/mine/store")
        train_bundle(config, "ctr_user_item", data, out, "runs/mine/store")

    monkeypatch.setattr(command, "start_job", start_job)
    monkeypatch.setattr("recsys.jobs.warm_up", lambda: None)
    return tmp_path


@pytest.fixture
def recsys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["recsys", *arguments])
        cli.run_command()

    return call


def test_the_readme_from_a_ranker_to_scores_and_newer_vectors(
    mine: Path, recsys: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```\n(recsys bundle.*?)```", README, re.DOTALL)
    made, scored, moved = (line.split("#")[0].split()[1:] for line in block.strip().splitlines())
    recsys(*made, *(f"--set={assignment}" for assignment in (*SMALL, "tasks.cart=click")))
    said = capsys.readouterr().out
    assert "task buy (label click): validation ne" in said
    assert "reads item_ctr version 1 (space ctr-1" in said
    recsys(*(word.strip("'") for word in scored))
    scores = pa.concat_tables(pq.read_table(path) for path in sorted((mine / "runs/scores").rglob("*.parquet")))
    assert len(scores) == 40 * 4
    assert {"buy", "cart"} <= set(scores.column_names)
    publish(mine / "runs/mine/store")
    recsys(*moved)
    assert "item_ctr: version 1 to 2" in capsys.readouterr().out
    (python,) = re.findall(r"```python\n(from recsys.bundle.*?)```", README, re.DOTALL)
    rows = pq.ParquetFile(next((mine / "DIR").glob("mine/events/2026-02-13/*.parquet"))).read()
    names = {"rows": rows}
    exec(python, names)
    assert len(names["scores"]["buy"]) == len(rows)


def test_a_bundle_that_is_there_stays(
    mine: Path, recsys: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", "DIR", "--store", "runs/mine/store", "--out", "o", *(f"--set={x}" for x in SMALL))
    recsys("bundle", "cart.toml", "--arm", "ctr_user_item", *options)
    before = (mine / "o/bundle/bundle.json").read_bytes()
    capsys.readouterr()
    recsys("bundle", "cart.toml", "--arm", "ctr_user_item", *options)
    assert "made before" in capsys.readouterr().out
    assert (mine / "o/bundle/bundle.json").read_bytes() == before
    with pytest.raises(SystemExit):
        recsys("bundle", "cart.toml", "--arm", "ctr_user", *options)
    assert "is of another ranker, other files or another store: choose another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recsys("bundle", "cart.toml", "--arm", "ctr_usr", *options)
    assert "did you mean 'ctr_user'" in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", ["score", "repin"])
def test_what_is_no_bundle_is_one_line(
    tmp_path: Path, data: Path, recsys: Callable[..., None], capsys: pytest.CaptureFixture[str], subcommand: str
) -> None:
    options = ("--data", str(data), "--out", str(tmp_path / "o")) if subcommand == "score" else ()
    with pytest.raises(SystemExit, match="2"):
        recsys(subcommand, str(tmp_path), *options)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is no bundle: it has no bundle.json")


def test_the_service_of_the_docs(made: Path, bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", SERVING, re.DOTALL)
    assert len(code.splitlines()) <= 32
    monkeypatch.setenv("BUNDLE", str(made))
    module = ModuleType("service")
    monkeypatch.setitem(sys.modules, "service", module)
    exec(code, module.__dict__)
    client = TestClient(module.app)
    names = client.get("/columns").json()
    assert client.get("/health").json() == {"user_ctr": 1, "item_ctr": 1}
    rows = pq.ParquetFile(next(iter(sorted(data.glob(SPLIT.test[0]))))).read(names).slice(0, 7)
    answer = client.post("/score", json=rows.to_pylist()).json()
    for task, wanted in bundle.predict(rows).items():
        assert answer[task] == pytest.approx(wanted.tolist(), rel=1e-5)
    lacking = client.post("/score", json=[{**rows.to_pylist()[0], "item_id": None}])
    assert lacking.status_code == 422
    assert "item_id" in lacking.json()["detail"]


def test_the_docs_name_what_a_bundle_holds(made: Path) -> None:
    assert {path.name for path in made.iterdir()} <= set(re.findall(r"`([\w.-]+)`", SERVING))
