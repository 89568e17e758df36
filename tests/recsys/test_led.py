import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.jobs import JobError, run_ranks
from tests.recsys import led_example

ROOT = Path(__file__).parents[2]


def test_all_ranks_run_each_job_and_rank_0_goes_on_when_all_are_done(tmp_path: Path) -> None:
    run_ranks("stages", led_example.stages, (tmp_path,), 2, tmp_path.parent / "logs")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {
        "first-0": "3",
        "first-1": "3",
        "alone-0": "4",
        "alone-1": "4",
        "after 4-0": "3",
        "after 4-1": "3",
    }


def test_a_mistake_in_a_job_ends_all_ranks_and_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError) as caught:
        run_ranks("run", led_example.mistake, (tmp_path,), 2, tmp_path / "logs")
    assert str(caught.value).count("none.toml: No such file or directory") == 1
    assert "Traceback" not in str(caught.value)


def test_a_rank_that_is_killed_starts_all_anew_and_the_run_goes_on(tmp_path: Path) -> None:
    """As the components start it: how often is said by the environment, as torchx has no argument for it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", "-m", "tests.recsys.led_example", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PET_MAX_RESTARTS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in tmp_path.glob("*-*")}
    assert found == {"first-0": "0", "first-1": "0", "second-0": "1", "second-1": "1"}
