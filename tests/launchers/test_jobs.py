import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torchx.specs as specs
from torchx.components import dist

from recsys.jobs import JobError, run_app, run_job

ROOT = Path(__file__).parents[2]
WAIT = """
import sys
from pathlib import Path
from recsys.jobs import run_app
from tests.launchers.test_jobs import tiny
run_app("wait", tiny("wait", sys.argv[1]), Path("logs"))
"""


def tiny(what: str, *marks: str) -> specs.AppDef:
    """Two ranks; the marks are in their command lines."""
    return dist.ddp(what, *marks, m="tests.launchers.tiny", name=f"tiny-{what}", j="1x2")


def test_several_jobs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)  # neither the working folder nor an activated environment leads to the code
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with ThreadPoolExecutor(4) as pool:
        kinds = ("ok", "fail", "mend", "kill")
        jobs = {what: pool.submit(run_app, what, tiny(what), Path("logs") / what) for what in kinds}
    assert jobs["ok"].exception() is None
    assert str(jobs["kill"].exception()).startswith("job kill failed on rank 1 (killed by signal 9):")
    assert isinstance(jobs["fail"].exception(), JobError)
    message = str(jobs["fail"].exception())
    assert message.startswith("job fail failed on rank 1:\nTraceback (most recent call last)")
    assert "ValueError: rank 1 has a reason" in message
    log = Path(message.rpartition("its whole output: ")[2].rstrip(")"))
    assert "a warning of rank 1" in (log / "stderr.log").read_text()
    shown = capsys.readouterr()
    assert str(jobs["mend"].exception()).count("error: a name is wrong") == 1
    assert "error: " not in shown.err, "an error of rank 0 is shown once, by JobError"
    for what in ("ok", "fail"):
        assert f"{what}: a line of rank 0 ä\n" in shown.out
        assert f"{what}: a warning of rank 0\n" in shown.err
    assert "rank 1" not in shown.out
    assert "[" not in shown.out  # torchrun's prefixes


def test_stopping_the_job_stops_its_ranks(tmp_path: Path):
    mark, environment = uuid.uuid4().hex, os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WAIT, mark]
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("logs/**/attempt_0/1/stderr.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    while "rank 0" not in _text(tmp_path, "0/stdout.log") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert f"tests.launchers.tiny wait {mark}" in _command_lines()
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=600)
    assert job.returncode == 128 + signal.SIGTERM
    assert "wait: a line of rank 0" in out.decode()
    assert mark not in _command_lines()


def test_unknown_subcommand_is_not_a_job(tmp_path: Path):
    with pytest.raises(ModuleNotFoundError, match="launchers"):
        run_job("x", ["nothing"], 1, tmp_path)


def _command_lines() -> str:
    """Of every process of this machine."""
    return subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout


def _text(folder: Path, name: str) -> str:
    return "".join(path.read_text() for path in folder.glob(f"logs/**/attempt_0/{name}"))
