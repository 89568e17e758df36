import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from recsys import stages
from recsys.stages import exclusive, is_done, read_stages, record, stage
from recsys.train.distributed import Environment, process_group


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    with process_group() as running:
        yield running


def test_a_stage_is_done_when_it_has_ended_without_an_error(tmp_path: Path, environment: Environment) -> None:
    assert not is_done(tmp_path, "upstream-ctr")
    assert read_stages(tmp_path) == {}
    with pytest.raises(RuntimeError), stage(tmp_path, "upstream-ctr", environment):
        raise RuntimeError
    assert not is_done(tmp_path, "upstream-ctr")
    with stage(tmp_path, "upstream-ctr", environment):
        time.sleep(0.01)
        assert not is_done(tmp_path, "upstream-ctr")
    assert is_done(tmp_path, "upstream-ctr")
    assert not is_done(tmp_path, "upstream-ct")
    assert read_stages(tmp_path)["upstream-ctr"]["seconds"] >= 0.01


def test_a_stage_in_parts_is_done_with_the_last_of_them(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter((1000, 300, 20, 7))
    monkeypatch.setattr(stages, "peak_memory", lambda: next(peaks))
    for part in (2, 0, 1):
        assert not is_done(tmp_path, "downstream")
        with stage(tmp_path, "downstream", environment, part=part, parts=3):
            time.sleep(0.02 if part == 0 else 0)
    assert is_done(tmp_path, "downstream")
    figures = read_stages(tmp_path)["downstream"]
    assert figures["seconds"] >= 0.02  # of the slowest, while the memory is that of all
    record(tmp_path, "prepare", 1.5)
    assert figures["peak_rss_bytes"] == 1320
    assert read_stages(tmp_path)["prepare"] == {"seconds": 1.5, "peak_rss_bytes": 7}
    assert list(read_stages(tmp_path)) == ["downstream", "prepare"]  # in the order in which they ended


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_of_a_stopped_run_of_other_ranks_do_not_count(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Two of three had ended; of the others first one, then all."""
    monkeypatch.setattr(stages, "peak_memory", lambda: 7)
    for part in (1, 2):
        with stage(tmp_path, "downstream", environment, part=part, parts=3):
            pass
    for part in range(parts):
        assert not is_done(tmp_path, "downstream")
        with stage(tmp_path, "downstream", environment, part=part, parts=parts):
            pass
    assert is_done(tmp_path, "downstream")
    assert read_stages(tmp_path)["downstream"]["peak_rss_bytes"] == 7 * parts


def test_two_jobs_do_not_work_in_one_folder(
    tmp_path: Path, environment: Environment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first, also where the first is killed."""
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
            "print('held', flush=True); time.sleep(3600)",
            str(tmp_path / "lock"),
        ],
        stdout=subprocess.PIPE,
    )
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    flock, waits = fcntl.flock, []

    def kill_while_waiting(file: TextIO, operation: int) -> None:
        if operation == fcntl.LOCK_EX:  # the call that blocks: the holder dies once the second job has come to it
            waits.append(held.poll())
            held.kill()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", kill_while_waiting)
    with exclusive(tmp_path, environment):
        assert waits == [None]
    assert f"waiting for another job that works in {tmp_path}" in capsys.readouterr().out
    held.wait()
    with exclusive(tmp_path, environment):
        pass
    assert "waiting" not in capsys.readouterr().out


def test_what_is_in_no_stage_is_the_rest_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_age", lambda: 100.0)
    assert stages.unaccounted(tmp_path) == 100
    record(tmp_path, "a", 30.0)
    record(tmp_path, "before", 50.0)
    before = time.time() - 200
    os.utime(tmp_path / "stages/before.0.json", (before, before))  # by a command that was stopped
    assert stages.unaccounted(tmp_path) == 70
