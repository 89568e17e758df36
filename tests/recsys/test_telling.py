"""What ranks of a job tell each other by notes in the temporary folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from recsys import telling
from recsys.telling import end_of_all_attempts, ended_before, first_to_tell


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is a rank of a job that torchrun has named by default."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    return monkeypatch


def test_an_error_is_told_once_an_attempt(job: pytest.MonkeyPatch) -> None:
    assert [first_to_tell("a"), first_to_tell("a"), first_to_tell("b")] == [True, False, True]
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [first_to_tell("a"), first_to_tell("a")] == [True, False]
    job.delenv("TORCHELASTIC_RUN_ID")
    assert [first_to_tell("a"), first_to_tell("a")] == [True, True]


def test_what_would_end_the_same_way_is_not_tried_again(job: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end_of_all_attempts(3)
    assert ended_before() is None, "it is the first attempt"
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ended_before() == 3
    (note,) = tmp_path.iterdir()
    note.write_text("")
    assert ended_before() is None, "the disk was full"


@pytest.mark.parametrize("later", [("2", "boot 1"), ("1", "boot 2")])
def test_notes_are_not_of_the_process_that_had_the_number_before(
    job: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, later: tuple[str, str]
) -> None:
    proc = tmp_path_factory.mktemp("proc")
    (proc / str(os.getppid())).mkdir()
    (proc / "sys/kernel/random").mkdir(parents=True)

    def launched(began: str, boot: str) -> None:
        stat = f"{os.getppid()} (a ) b) " + " ".join(["0"] * 19) + f" {began} 0 0"
        (proc / str(os.getppid()) / "stat").write_text(stat)
        (proc / "sys/kernel/random/boot_id").write_text(boot)

    job.setattr(telling, "_PROC", proc, raising=False)
    launched("1", "boot 1")
    assert first_to_tell("a")
    end_of_all_attempts(2)
    launched(*later)
    assert first_to_tell("a")
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ended_before() is None
    launched("1", "boot 1")
    assert ended_before() == 2
