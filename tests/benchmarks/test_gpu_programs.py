"""The programs that benchmarks/gpu starts: compilers, tests, compute-sanitizer, ncu; and what it needs of a machine."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import odd, tools
from benchmarks.gpu.ids import ids_of, scattered
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.parts import PARTS, build, memcheck, ncu, tiered
from benchmarks.gpu.parts import tests as cuda_tests
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import snapshot
from benchmarks.gpu.tools import ROOT, stream
from embedding_store import TieredTable
from embedding_store.dtypes import DTYPES
from tests.benchmarks.gpu_records import records

COLLECTED = """
import pytest

class Marked:
    def pytest_collection_finish(self, session):
        for item in session.items:
            if any(mark.kwargs["reason"] == "needs a GPU" for mark in item.iter_markers("skipif")):
                print("MARKED", item.nodeid)

pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *{}], plugins=[Marked()])
"""
"""Says of which tests it is that a GPU is needed, whatever they are called."""
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
"""As one that waits for a GPU may be."""


def test_the_compilers_build_what_cmake_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_need", lambda name: f"/usr/local/cuda/bin/{name}")
    listed = (ROOT / "CMakeLists.txt").read_text()
    for commands in (build.cpu_commands(), build.cuda_commands(90)):
        sources = {Path(words[words.index("-c") + 1]) for words in commands}
        names = {f"{path.parent.name}/{path.name}" for path in sources}
        assert all(f"${{CSRC}}/{name}" in listed for name in names)
        assert len({words[-1] for words in commands}) == len(commands)  # each its own object
    everything = {Path(words[words.index("-c") + 1]) for words in build.cpu_commands() + build.cuda_commands(90)}
    assert {f"{path.parent.name}/{path.name}" for path in everything} == {
        word.removeprefix("${CSRC}/").rstrip(")") for word in listed.split() if word.startswith("${CSRC}/")
    }
    for flags in build.LEVELS.values():
        assert all(flag in listed for flag in flags)


def test_libraries_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    assert build.unusable([build.CPU]) == "libembedding_store.so is not there"
    (tmp_path / build.CPU).write_bytes(b"no library")
    assert str(build.unusable([build.CPU])).startswith("they cannot be loaded: ")


def test_what_is_optional_is_imported_where_it_is_needed() -> None:
    absent = ["pytest", "tyro", "rich", "fbgemm_gpu", "torchrec", "tensordict", "tensorboard"]
    body = f"import sys, importlib\nfor name in {absent}: sys.modules[name] = None\n"
    names = [f"parts.{part.name}" for part in PARTS] + ["__main__", "odd", "profiled"]
    body += f"for name in {names}: importlib.import_module('benchmarks.gpu.' + name)"
    assert stream([sys.executable, "-c", body], limit=600.0) == 0


def test_files_of_tests_that_need_a_gpu() -> None:
    files = cuda_tests.cuda_files()
    assert files[0] == "tests/embedding_store/read/test_cuda.py"
    speaking = [x for x in (ROOT / "tests").rglob("test_*.py") if re.search("cuda", x.read_text(), re.IGNORECASE)]
    body = COLLECTED.format([str(path) for path in speaking if path.parent.name != "benchmarks"])
    said = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True).stdout
    marked = [line.removeprefix("MARKED ") for line in said.splitlines() if line.startswith("MARKED ")]
    assert {name.partition("::")[0] for name in marked} == set(files), said
    assert [name for name in marked if cuda_tests.ON_GPU not in name] == []


def test_the_line_of_a_test_that_ended() -> None:
    match = cuda_tests.RESULT.match("tests/a/test_b.py::test_c[1.0-int8 x] FAILED      [ 50%]")
    assert match is not None
    assert match.groups() == ("tests/a/test_b.py::test_c[1.0-int8 x]", "FAILED")


def test_what_fails_is_tried_by_itself(settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    together = {"a::one": "PASSED", "a::two": "FAILED", "a::three": "ERROR"}
    alone = {"a::two": {"a::two": "FAILED"}, "a::three": {"a::three": "PASSED"}}

    def tried(names: list[str], limit: float, _: Journal) -> dict[str, str]:
        assert limit > 0
        return together if names == ["a"] else alone[names[0]]

    monkeypatch.setattr(cuda_tests, "cuda_files", lambda: ["a"])
    monkeypatch.setattr(cuda_tests, "_pytest", tried)
    cuda_tests.run(settings, journal)
    assert journal.failures == ["a::two fails", "a::three fails after others, and passes alone"]


def test_a_file_of_tests_without_what_it_imports(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "test_lacking.py").write_text("import not_to_be_had\n")
    assert cuda_tests._pytest([str(tmp_path / "test_lacking.py")], 600.0, journal) == {}
    assert not journal.failures
    assert "No module named 'not_to_be_had'" in records(tmp_path, "left out")[0]["reason"]


def test_errors_that_memcheck_finds(settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(words: list[str], *, limit: float, line: Any, environment: dict[str, str]) -> int:
        assert words[:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"]
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        assert float(words[words.index("--until") + 1]) <= time.time() + settings.limit - memcheck.LAST_TABLE
        line("========= Invalid __global__ read of size 16 bytes")
        line("no time for 1 of 2 tables: int4 5")
        line("========= ERROR SUMMARY: 1 error")
        return memcheck.FOUND_ERRORS

    monkeypatch.setattr(memcheck, "found", lambda name: f"/bin/{name}")
    monkeypatch.setattr(memcheck, "stream", stream)
    memcheck.run(replace(settings, rehearse=False), journal)
    assert journal.failures == ["compute-sanitizer found errors: see the log"]
    assert [record["reason"] for record in records(settings.out, "left out")] == ["no time for 1 of 2 tables: int4 5"]
    said = [record["said"] for record in records(settings.out, "memcheck")]
    assert said == ["Invalid __global__ read of size 16 bytes", "ERROR SUMMARY: 1 error"]


def test_what_memcheck_has_no_time_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert odd.main(rehearse=True, until=0.0) == 0
    assert capsys.readouterr().out.startswith("no time for 15 of 15 tables: float32 7, float16 7, ")


@pytest.mark.parametrize("dim", [1, 7, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_memcheck_watches_has_rows_in_both_places(tmp_path: Path, dtype: str, dim: int) -> None:
    made = odd._published(str(tmp_path), dtype, dim)
    table = odd._tiered(made, torch.device("cpu"))
    assert isinstance(table, TieredTable)
    assert table.lookup(made.load().ids())[1].all()
    assert (table.hits().hot, table.hits().cold) == (odd.HOT_ROWS, made.rows - odd.HOT_ROWS)


@pytest.mark.parametrize("dtype", tiered.DTYPES)
def test_as_many_rows_are_hot_as_is_said(settings: Settings, journal: Journal, dtype: str) -> None:
    made, hot = snapshot(settings, journal, dtype, settings.dim, settings.rows), scattered(torch.arange(50), 500)
    table = tiered._load(made, settings, hot)
    table.lookup(ids_of(torch.arange(settings.rows)))
    assert (table.hits().hot, table.hits().cold) == (50, settings.rows - 50)


def test_a_device_that_memcheck_cannot_watch(
    settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = {"/bin/compute-sanitizer": memcheck.FOUND_ERRORS, sys.executable: 0}

    def stream(words: list[str], *, limit: float, line: Any = None, **_: Any) -> int:
        if line is not None:
            line("========= Error: Device not supported. Please refer to the documentation")
            line("========= ERROR SUMMARY: 1 error")
        return ended[words[0]]

    monkeypatch.setattr(memcheck, "found", lambda name: f"/bin/{name}")
    monkeypatch.setattr(memcheck, "stream", stream)
    memcheck.run(replace(settings, rehearse=False), journal)
    assert not journal.failures
    assert "ended with status 86 before a lookup" in records(settings.out, "left out")[0]["reason"]
    assert [record["said"] for record in records(settings.out, "memcheck")] == ["all answers are the CPU's"]
    ended[sys.executable] = 1
    memcheck.run(replace(settings, rehearse=False), journal)
    assert journal.failures == ["the lookups ended with status 1: see the log"]


def test_counters_that_ncu_may_not_read(settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["==ERROR== ERR_NVGPUCTRPERM - no permission", "==ERROR== The application returned an error code (1)."]

    def stream(words: list[str], *, limit: float, line: Any) -> int:
        for text in said:
            line(text)
        return 1

    monkeypatch.setattr(ncu, "found", lambda name: f"/bin/{name}")
    monkeypatch.setattr(ncu, "stream", stream)
    ncu.run(replace(settings, rehearse=False), journal)
    assert not journal.failures
    assert records(settings.out, "left out")[0]["reason"].startswith("ERR_NVGPUCTRPERM")
    del said[0]  # the lookups' own failure
    ncu.run(replace(settings, rehearse=False), journal)
    assert journal.failures == ["it ended with status 1: see the log"]


def test_counters_are_read_from_ncu() -> None:
    assert ncu.kernels("==PROF== Disconnected") == []
    raw = "\n".join(
        [
            "==PROF== Disconnected",
            '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","other"',
            '"","","ns","Mbyte",""',
            '"0","void lookup<float, 4>(Arguments)","4,160","1.5","7"',
            '"1","void pool()","99","","7"',
        ]
    )
    assert ncu.kernels(raw) == [
        {
            "name": "void lookup<float, 4>(Arguments)",
            "gpu__time_duration.sum": "4,160 ns",
            "dram__bytes_read.sum": "1.5 Mbyte",
        },
        {"name": "void pool()", "gpu__time_duration.sum": "99 ns"},
    ]


def test_make_gpu_runs_it() -> None:
    said = subprocess.run(
        ["make", "-n", "gpu", "PARTS=first grid"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "-m benchmarks.gpu first grid" in said
    assert "pip" not in said


@pytest.mark.parametrize("innermost", [SLEEPER, STUBBORN])
def test_a_program_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch, innermost: str) -> None:
    nested = "from benchmarks.gpu import tools; import sys; tools.end_by_exception(); tools.GRACE_SECONDS = 0.2\n"
    nested += f"tools.stream([sys.executable, '-c', {innermost!r}], limit=600)"
    timers: list[threading.Timer] = []

    def timer(seconds: float, end: Callable[[], None]) -> threading.Timer:
        """The limit, which is reached when the innermost program says that it runs."""
        timers.append(threading.Timer(seconds, end))
        return timers[0]

    pids: list[int] = []

    def line(text: str) -> None:
        pids.append(int(text))
        timers[0].function()

    monkeypatch.setattr(tools, "Timer", timer)
    monkeypatch.setattr(tools, "GRACE_SECONDS", 600.0)
    assert stream([sys.executable, "-c", nested], limit=600.0, line=line) is None
    (pid,) = pids
    deadline = time.monotonic() + 600
    while not _has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _has_ended(pid: int) -> bool:
    """Whoever reaps it."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_part_says_how_it_ended_whatever_its_last_objects_do(tmp_path: Path) -> None:
    """Memory of a device that is broken cannot be given back: libraries abort."""
    body = "import atexit, os; atexit.register(os.abort)\n"
    body += "from benchmarks.gpu import __main__ as command; command._inside = lambda _: print('told') or 78\n"
    body += f"command.main(['--inside', 'first', '--out', {str(tmp_path)!r}])"
    lines: list[str] = []
    assert stream([sys.executable, "-c", body], limit=600.0, line=lines.append) == 78
    assert lines == ["told"]


def test_output_is_handed_on_with_the_status() -> None:
    lines: list[str] = []
    body = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert stream([sys.executable, "-c", body], limit=600.0, line=lines.append) == 3
    assert sorted(lines) == ["one", "two"]
