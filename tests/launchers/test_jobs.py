import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.launcher import api

from recsys.jobs import JobError, run_job, run_ranks
from recsys.stopping import RESUME
from tests.launchers import tiny

ROOT = Path(__file__).parents[2]
WAIT = """
from pathlib import Path
from recsys.jobs import run_ranks
from tests.launchers import tiny
run_ranks("wait", tiny.main, ("wait",), 2, Path("logs"))
"""


def test_jobs_end_well_or_tell_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    found: dict[str, str] = {}
    for what in ("ok", "fail", "mend", "kill"):
        try:
            run_ranks(what, tiny.main, (what,), 2, tmp_path / what)
        except JobError as error:
            found[what] = str(error)
    assert set(found) == {"fail", "mend", "kill"}
    assert found["kill"].startswith("job kill failed on rank 1 (killed by signal 9):")
    message = found["fail"]
    assert message.startswith("job fail failed on rank 1:\nTraceback (most recent call last)")
    assert "ValueError: rank 1 has a reason" in message
    log = Path(message.rpartition("its whole output: ")[2].rstrip(")"))
    assert "a warning of rank 1" in (log / "stderr.log").read_text()
    assert found["mend"].count("error: a name is wrong") == 1
    shown = capfd.readouterr()
    assert "error: " not in shown.err, "an error of rank 0 is shown once, by JobError"
    assert "Traceback" not in shown.err
    assert "ok: a line of rank 0 ä\n" in shown.out
    assert "ok: a warning of rank 0\n" in shown.err
    assert "rank 1" not in shown.out + shown.err


def test_stopping_the_job_stops_its_ranks(tmp_path: Path):
    command, environment = [sys.executable, "-c", WAIT], os.environ | {"PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while len(pids := re.findall(r"process (\d+)", _text(tmp_path))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(_alive(int(pid)) for pid in pids)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=600)
    assert job.returncode == RESUME
    assert "wait: a line of rank 0" in out.decode()
    assert not any(_alive(int(pid)) for pid in pids)


def test_ranks_that_elastic_does_not_know_yet_are_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal may come between their start and what elastic notes of it."""

    def start(*_: object) -> Callable[..., None]:
        def stopped(*_: object) -> None:
            multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,)).start()
            raise SignalException("stopped", signal.SIGTERM)

        return stopped

    monkeypatch.setattr(api, "elastic_launch", start)
    with pytest.raises(SystemExit) as stop:
        run_ranks("wait", tiny.main, ("wait",), 2, tmp_path)
    assert stop.value.code == RESUME
    assert not multiprocessing.active_children()


def test_a_mistake_in_a_command_is_a_job_that_failed(tmp_path: Path):
    with pytest.raises(JobError, match=r"job x failed on rank 0:\nerror: none.toml: No such file or directory"):
        run_job("x", ["upstream", "--config", "none.toml", "--data", ".", "--out", "o"], 1, tmp_path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _text(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("logs/**/attempt_0/*/stdout.log"))


def test_torchrun_that_is_stopped_asks_to_be_started_again(tmp_path: Path):
    """Its ranks too: as where a machine is taken away, the signal comes to the agent."""
    command = [sys.executable, "-m", "recsys.elastic", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", "-m", "tests.launchers.tiny", "resume"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "output.txt").open("w") as file:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600
    while len(re.findall(r"process \d+", (tmp_path / "output.txt").read_text())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(600) == RESUME
    assert (tmp_path / "output.txt").read_text().count("goes on next time") == 2
