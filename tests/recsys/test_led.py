from pathlib import Path

import pytest

from recsys.jobs import JobError, run_ranks
from tests.recsys import led_example


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
