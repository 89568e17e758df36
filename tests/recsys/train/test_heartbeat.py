"""What is a sign of life of a rank, and what is none."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from recsys.train import heartbeat
from recsys.train.heartbeat import Signs, beat, computing, giving

MIB = 2**20


def test_a_beat_is_one_and_waiting_is_none() -> None:
    signs = Signs()
    assert [signs.given() for _ in range(400)].count(True) == 0, "looking reads more than 1 MiB of /proc"
    beat()
    assert (signs.given(), signs.given()) == (True, False)


def work() -> None:
    """Keep a processor busy for longer than a look takes."""
    end = time.process_time() + 2 * heartbeat._BUSY
    while time.process_time() < end:
        pass


def test_to_compute_is_one_where_nobody_is_waited_for() -> None:
    signs = Signs()
    work()
    assert not signs.given(), "it may be waiting"
    with computing():
        work()
        assert (signs.given(), signs.given()) == (True, False), "who is frozen there gives none"
    work()
    assert not signs.given()


def test_files_that_are_written_and_read_are(tmp_path: Path) -> None:
    signs, path = Signs(), tmp_path / "some"
    path.write_bytes(bytes(MIB // 2))
    assert not signs.given()
    path.write_bytes(bytes(MIB))
    assert (signs.given(), signs.given()) == (True, False)
    path.read_bytes()
    assert (signs.given(), signs.given()) == (True, False)


def test_mapped_files_that_are_read_are(tmp_path: Path) -> None:
    path = tmp_path / "some"
    with path.open("wb") as file:
        file.write(bytes(8 * MIB))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    signs = Signs()
    before = heartbeat._numbers(heartbeat._MOVED)["read_bytes:"]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
    if heartbeat._numbers(heartbeat._MOVED)["read_bytes:"] < before + MIB:
        pytest.skip("this file system keeps what it was told to forget, or has it in memory")
    assert signs.given()


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, *states: str) -> None:
    """A machine that has written so many pages, and threads in these states."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text(f"nr_free_pages 7\nnr_written {pages}\n")
    monkeypatch.setattr(heartbeat, "_MACHINE", vmstat)
    for number, state in enumerate(states):
        folder = tmp_path / "task" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"{number} (a (thread) D) {state} 1 2 3")
    monkeypatch.setattr(heartbeat, "_THREADS", tmp_path / "task")


def test_a_long_fsync_is_one_while_the_disk_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, 10, "S", "D")
    signs = Signs()
    assert not signs.given(), "a disk that does nothing"
    machine(tmp_path, monkeypatch, 11, "S", "D")
    assert (signs.given(), signs.given()) == (True, False)
    machine(tmp_path, monkeypatch, 12, "S", "S")
    assert not signs.given(), "others write"
    machine(tmp_path, monkeypatch, 12, "S", "D")
    assert not signs.given()


def test_a_system_that_does_not_say_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_MOVED", tmp_path / "io")
    monkeypatch.setattr(heartbeat, "_MACHINE", tmp_path / "vmstat")
    signs = Signs()
    assert signs.given()
    assert signs.given()


class Gone:
    """A store whose machine lost its power: it says neither a number nor that it is gone."""

    def __init__(self) -> None:
        self.asked, self.ends = threading.Event(), threading.Event()

    def add(self, key: str, amount: int) -> int:
        self.asked.set()
        self.ends.wait()
        raise RuntimeError("the connection is closed")


def die(store: Gone) -> None:
    with giving(store):
        assert store.asked.wait(600)
        raise KeyError("what ends the rank is not lost")


def test_a_store_that_does_not_answer_keeps_no_rank_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Gone()
    monkeypatch.setattr(heartbeat, "_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "_END_SECONDS", 0.01)
    with pytest.raises(KeyError):
        die(store)
    (thread,) = (x for x in threading.enumerate() if x.name == "heartbeat")
    store.ends.set()
    thread.join()


def test_who_stops_giving_signs_leaves_no_thread() -> None:
    for _ in range(3):
        with giving(SimpleNamespace(add=lambda *_: 1)):
            assert [x.name for x in threading.enumerate()].count("heartbeat") == 1
        assert "heartbeat" not in [x.name for x in threading.enumerate()]
