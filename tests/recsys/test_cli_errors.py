"""Mistakes and faults: what the command says of them, when, and how it ends."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tomli_w

from embedding_store import SeriesNotFoundError
from recsys import cli, pipeline
from recsys.config import to_dict
from recsys.data.errors import DataError
from recsys.data.schema import SchemaError
from recsys.jobs import JobError
from recsys.study import report
from recsys.study.ablation import ablation_jobs
from tests.recsys.conftest import Run
from tests.recsys.refresh.example import CONFIG, REFRESH
from tests.recsys.test_cli import toml

BLIND = {"rankers": to_dict(CONFIG)["rankers"] | {"validation": []}}
"""A config without validation files."""


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        (("run", "{}", "--data", "."), {"upstreams": [{"name": "ctr", "model": {"heads": 3}}]}, "source is missing"),
        (("daily", "{}", "--data", "."), {"downstream": {}}, "unknown key downstream (it is [rankers] now"),
        (("daily", "{}", "--data", "."), {}, "refresh.days or spans is missing"),
        (("tune", "{}", "--trials", "0", "--data", "."), {}, "--trials is 0; use 1 or more"),
        (("tune", "{}", "--trials", "1", "--data", "."), BLIND, "rankers.validation is empty; give at least one glob"),
        (("upstream", "--config", "{}", "--data", "."), {}, "upstreams (this is a study's, for `recsys run`"),
        (("refresh", "--config", "{}", "--data", "."), {}, "upstreams (this is a study's, for `recsys run`"),
        (("downstream", "--config", "{}", "--data", "."), {}, "upstreams (this is a study's, for `recsys run`"),
        (("report",), {}, "there is no folder"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(
    tmp_path: Path, command: tuple[str, ...], change: dict[str, object], message: str
) -> None:
    (tmp_path / "bad.toml").write_text(tomli_w.dumps(to_dict(CONFIG) | change))
    code = "import atexit, sys, recsys.cli; atexit.register(lambda: print('torch' in sys.modules)); recsys.cli.main()"
    arguments = [*(part.format(tmp_path / "bad.toml") for part in command), "--out", str(tmp_path / "o")]
    process, folder = [sys.executable, "-c", code, *arguments], Path(cli.__file__).parents[1]
    done = subprocess.run(process, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout.rstrip().endswith("False")


def test_errors_that_a_user_can_mend_are_one_line(recsys: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ")
    (tmp_path / "file").write_text("")
    jobs = {"upstream": CONFIG.upstreams[0], "refresh": REFRESH, "downstream": ablation_jobs(CONFIG)["tasks"]}

    def job(name: str) -> Path:
        jobs[name].save(tmp_path / f"{name}.toml")
        return tmp_path / f"{name}.toml"

    rank = ("--data", tmp_path, "--out", tmp_path / "o")
    cases = {
        ("prepare", "kuairand", "--out", tmp_path): "the folder of the raw files is missing: give it with --source",
        ("prepare", "kuairand", "--source", tmp_path, "--out", tmp_path / "o"): "no such file. KuaiRand-Pure needs",
        ("prepare", "movielens-1m", "--source", tmp_path, "--out", tmp_path / "o"): "users.dat",
        (
            "run",
            "nope",
            "--out",
            tmp_path / "o",
        ): "recipe 'nope' is unknown; use kuairand, kuairand-tables, deskdrop",
        ("config", "rankers"): "config 'rankers' is unknown (did you mean 'ranker'?); use one of study, upstream",
        ("check", "nope"): "recipe 'nope' is unknown; use kuairand",
        ("run", toml(tmp_path), "--out", tmp_path / "o"): "--data is missing: give the folder that the paths in",
        ("run", bad, "--data", tmp_path, "--out", tmp_path / "o"): "bad.toml: ",
        ("run", "kuairand", "--out", tmp_path / "o"): "the folder of the raw files is missing",
        ("run", "synthetic", "--out", tmp_path / "o", "--set", "ranks=0"): "ranks is 0; use 1 or more",
        ("demo", "--out", tmp_path / "o", "--set", "rank=1"): "unknown key rank (did you mean 'ranks'?)",
        (
            "tune",
            "nope",
            "--trials",
            1,
            "--out",
            tmp_path / "o",
        ): "recipe 'nope' is unknown; use kuairand, kuairand-tables",
        ("tune", toml(tmp_path), "--trials", 1, *rank, "--set", "rankers.training.dense_lr=[]"): "is an empty list",
        ("upstream", "--config", tmp_path / "none.toml", *rank): "none.toml: No such file or directory; give",
        ("upstream", "--config", bad, *rank): "bad.toml: ",
        ("upstream", "--config", toml(tmp_path), *rank): "upstreams (this is a study's, for `recsys run`",
        ("upstream", "--config", job("upstream"), *rank): "; correct source.schema in the config, or --data",
        ("refresh", "--config", job("refresh"), *rank): "; correct source.schema in the config, or --data",
        ("downstream", "--config", job("downstream"), *rank): "schema.toml: no such schema",
        (
            "report",
            "--out",
            tmp_path / "none",
        ): f"there is no folder {tmp_path / 'none'}: give the --out of a run",
        ("report", "--out", tmp_path): f"{tmp_path} holds neither report.json nor daily.json: give the",
        ("run", toml(tmp_path), "--data", tmp_path, "--out", tmp_path / "file/o"): "file is a file): choose another",
        ("run", toml(tmp_path), "--data", tmp_path, "--out", tmp_path / "file"): "file is a file): choose another",
        ("prepare", "synthetic", "--out", "/proc/o"): "--out is /proc/o, which cannot be written into (",
    }
    for arguments, message in cases.items():
        assert recsys(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (DataError("a.parquet: bad"), "error: a.parquet: bad\n"),
        (SchemaError("unknown feature"), "error: unknown feature\n"),
        (SeriesNotFoundError("no series 'x'; series: none"), "error: no series 'x'; series: none\n"),
        (JobError("job x failed on rank 1:\nValueError: y"), "error: job x failed on rank 1:\nValueError: y\n"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied\n"),
    ],
)
def test_our_errors_end_with_code_2(
    recsys: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    error: Exception,
    shown: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run_study", fail)
    assert recsys("demo", "--out", tmp_path) == 2
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), KeyError("x"), ValueError("x"), AssertionError("x")])
def test_faults_of_the_program_keep_their_traceback(
    recsys: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run_study", fail)
    with pytest.raises(type(error)) as caught:
        recsys("demo", "--out", tmp_path)
    assert caught.value is error


def test_ranks_tell_an_error_once(tmp_path: Path) -> None:
    """Those of one job; another job tells it again."""
    command = [sys.executable, "-m", "recsys.cli", "upstream", "--config", "none.toml", "--data", ".", "--out", "o"]
    root = {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "TMPDIR": str(tmp_path)}

    def start(job: dict[str, str]) -> subprocess.Popen:
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | root | job, stderr=subprocess.PIPE, text=True)

    jobs = [{"TORCHELASTIC_RUN_ID": name} for name in "aab"]
    ranks = [start(job) for job in jobs]
    told = [rank.communicate(timeout=600)[1].count("error: none.toml: No such file") for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2, 2]
    assert (told[0] + told[1], told[2]) == (1, 1)


def test_a_restart_does_not_come_to_the_same_mistake_again(
    recsys: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Whatever the command: here one that would have succeeded, so that nobody takes a refused day for a good one."""

    def away(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "report.json")

    monkeypatch.setattr(report, "load_report", away)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in (("RUN_ID", "a"), ("MAX_RESTARTS", "3"), ("RESTART_COUNT", "0")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    assert recsys("report", "--out", tmp_path) == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert recsys("config") == 0, "a file system may be back"
    assert recsys("config", "kitchen") == 2
    assert recsys("config") == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    assert recsys("config") == 0
    capsys.readouterr()


def test_ctrl_c_says_how_to_go_on(
    recsys: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_study", stop)
    assert recsys("demo", "--out", tmp_path) == 130
    assert capsys.readouterr().err == "stopped; give the same command again to go on\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("fly",), ("demo",), ("prepare", "criteo", "--out", "x"), ("run", "--out", "x"), ("demo", "--big")],
)
def test_what_is_no_command_line(recsys: Run, arguments: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    assert recsys(*arguments) == 2
    capsys.readouterr()
