"""The README's way from a raw log to a report: its configs as they stand, its commands one after another."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from recsys import cli, pipeline
from recsys.checks import check_daily, check_run
from recsys.config import StudyConfig
from recsys.data.files import find_files
from recsys.data.scan import Part, scan
from recsys.data.schema import Schema
from recsys.study.daily_report import load_daily
from recsys.study.report import load_report

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README[README.index("## From a raw log") : README.index("## Your own data")]
DESKDROP, SHOP = re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^recsys .*$", SECTION, re.MULTILINE)]
REAL = Path(__file__).parents[1] / "../shared/data/deskdrop"
DAY = 86_400


class EnoughError(Exception):
    """Ends a command when its first job would start: every row has been read by then, and jobs have their own tests."""


@pytest.fixture
def recsys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the jobs that commands would have started; commands are run in a folder of their own."""
    started: list[str] = []

    def run_job(name: str, *_: object) -> None:
        started.append(name)
        raise EnoughError

    monkeypatch.setattr(pipeline, "run_job", run_job)
    monkeypatch.chdir(tmp_path)
    return started


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recsys", *arguments])
    cli.main()


def views(folder: Path, rows: int = 1200, days: int = 8) -> None:
    """A log as Deskdrop's: views, half of them followed by a like, and what is ignored."""
    rng = np.random.default_rng(0)
    user, time = rng.integers(0, 60, rows), np.sort(rng.integers(0, days * DAY, rows)) + 1_460_000_000
    item, kind = rng.integers(0, 120, rows), rng.choice(["VIEW", "LIKE", "FOLLOW"], rows, p=[0.4, 0.5, 0.1])
    log = pa.table(
        {
            "timestamp": np.concatenate([time, time + 5]),
            "eventType": ["VIEW"] * rows + kind.tolist(),
            "contentId": np.tile(item, 2),
            "personId": np.tile(user, 2),
            "sessionId": np.tile(time // DAY, 2),
            "userCountry": ["BR", "US"] * rows,
        }
    )
    folder.mkdir()
    pq.write_table(log, folder / "events.parquet")


QUICK = [
    *("--set", "ranks=1", "--set", "rankers.seeds=[0]", "--set", "rankers.training.epochs=1"),
    *(
        argument
        for upstream in ("view", "like")
        for key, value in (("epochs", 1), ("batch_size", 512))
        for argument in ("--set", f"upstreams.{upstream}.training.{key}={value}")
    ),
]
"""The least that is a run of everything."""


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.long)])
def test_every_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture, number: int
) -> None:
    """To its end, with what `prepare` has made."""
    monkeypatch.chdir(tmp_path)
    views(Path("DIR"))
    Path("LOG.toml").write_text(DESKDROP)
    assert [arguments[0] for arguments in COMMANDS] == ["prepare", "run", "daily"]
    command(monkeypatch, *COMMANDS[0])
    told = capfd.readouterr().out
    assert "times as seconds" in told
    assert "had before" not in told, "`once`"
    assert "a row of 4 asked for, as others chose them" in told
    found = scan(Part(files=find_files(Path("mine"), ["events/*/*.parquet"]), schema=Schema.load("mine/schema.toml")))
    assert not found.bad
    command(monkeypatch, *COMMANDS[number], *QUICK)
    out, load, page = (("mine", load_report, "report.html"), ("mine-daily", load_daily, "daily.html"))[number - 1]
    report = load(Path("runs", out))
    assert list(report["tasks"]) == ["view", "like"]
    assert number == 2 or report["config"]["upstreams"][1]["name"] == "like"
    assert Path("runs", out, page).is_file()
    assert f"runs/{out}/{page}" in capfd.readouterr().out


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no Deskdrop in {REAL}")
def test_every_command_with_deskdrop_itself(recsys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as their first jobs."""
    Path("DIR").symlink_to(REAL.resolve())
    Path("LOG.toml").write_text(DESKDROP)
    command(monkeypatch, *COMMANDS[0])
    for arguments in COMMANDS[1:]:
        with pytest.raises(EnoughError):
            command(monkeypatch, *arguments)
    assert recsys == ["refresh-view", "upstream-view"]


def test_a_shop(recsys: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(1)
    for name in "ab":
        times = np.datetime64("2024-03-01T08:00:00") + rng.integers(0, 20 * DAY, 700).astype("m8[s]")
        columns = {"customer": [f"c{x}" for x in rng.integers(0, 50, 700)], "sku": rng.integers(0, 30, 700)}
        pyarrow.csv.write_csv(pa.table({**columns, "bought_at": times.astype(str)}), f"purchases-{name}.csv")
    products = {"sku": range(30), "department": ["tea", "jam", "oil"] * 10, "weight": np.arange(30) / 7}
    pyarrow.csv.write_csv(pa.table(products), "products.csv")
    Path("shop.toml").write_text(SHOP)
    command(monkeypatch, "prepare", "log", "shop.toml", "--out", "shop")
    assert "action are of an item that the user had before; actions.action.once = true" in capsys.readouterr().out
    study = StudyConfig.load("shop/study.toml")
    check_run(study, Path("shop"))
    assert check_daily(study, Path("shop")) == []
    schema = Schema.load("shop/schema.toml")
    drawn = json.loads(Path("shop/prepared.json").read_text())["negatives"]
    assert 0 < schema.label("action").kept_negatives == drawn["odds_factor"] < 1
    features = {feature.name: (feature.owner, feature.kind) for feature in schema.features}
    assert features["department"] == ("item", "id")
    assert features["weight"] == ("item", "dense")
    assert features["user_category_action"] == ("interaction", "dense")
