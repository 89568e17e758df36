"""What must hold of the figures of benchmarks/gpu wherever they are measured; its rehearsal is in a file of its own."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.cells import Bench
from benchmarks.gpu.ids import Batch, draw, draw_bags, even_bags, ids_of, mixed_bags, scattered
from benchmarks.gpu.journal import RESULTS, Journal, append, read
from benchmarks.gpu.names import COPY, TABLES_VARIABLE, UNIFORM, ZIPF
from benchmarks.gpu.parts import PARTS, build, memcheck, ncu
from benchmarks.gpu.parts import tests as cuda_tests
from benchmarks.gpu.parts.training import differences
from benchmarks.gpu.roof import Form, lookup_bytes, pooled_bytes
from benchmarks.gpu.settings import Settings, settings_of
from benchmarks.gpu.summary import summary
from benchmarks.gpu.tables import snapshot
from benchmarks.gpu.tools import ROOT, stream
from benchmarks.gpu.trace import covered, own_times, shares
from benchmarks.gpu.variants import Variant, fbgemm, known_rows, pooled_store, store
from tests.benchmarks.gpu_records import records

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv(TABLES_VARIABLE, str(tmp_path / "tables"))
    (tmp_path / "tables").mkdir()
    return replace(settings_of(tmp_path, rehearse=True), rows=500, dim=6, most_batches=1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, "part")


def test_one_part_does_not_stop_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"build": 0, "first": 1, "tests": -11, "memcheck": None, "grid": 77, "pooled": 0}
    monkeypatch.setattr(command, "stream", lambda words, **_: ends[words[words.index("--inside") + 1]])
    append(tmp_path / RESULTS, {"part": "build", "kind": "old"})
    append(tmp_path / RESULTS, {"part": "swap", "kind": "kept"})
    assert command.main(["--rehearse", "--out", str(tmp_path), *ends]) == 1
    outcomes = [(record["part"], record["outcome"]) for record in records(tmp_path, "part")]
    assert outcomes == list(zip(ends, ["ok", "failed", "failed", "cut off", "skipped", "ok"], strict=True))
    assert next(record["kind"] for record in read(tmp_path / RESULTS)) == "kept"
    told = (tmp_path / "summary.txt").read_text()
    assert "it ended with status -11" in told
    assert command.main(["--rehearse", "--out", str(tmp_path), "build", "grid"]) == 0


def test_no_part_is_begun_without_time_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(command, "stream", lambda _, limit, **__: limits.append(limit) or 0)
    assert command.main(["--rehearse", "--out", str(tmp_path), "--seconds", "100", "grid"]) == 0
    assert 90 < limits[0] <= 100
    assert command.main(["--rehearse", "--out", str(tmp_path), "--seconds", "20", "grid"]) == 1
    assert records(tmp_path, "part")[-1]["outcome"] == "no time"
    assert len(limits) == 1


def test_a_part_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), "gird"])
    assert "no part gird; use build, first" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "needs a CUDA GPU" in capsys.readouterr().out


def test_a_program_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    nested = "from benchmarks.gpu.tools import end_by_exception, stream; import sys; end_by_exception()\n"
    nested += f"stream([sys.executable, '-c', {SLEEPER!r}], limit=600)"
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)

    assert stream([sys.executable, "-c", nested], limit=10.0, line=line) is None
    pid = int(lines[0])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    assert "Z" in Path(f"/proc/{pid}/stat").read_text().split()  # ended, whoever reaps it


SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def test_output_is_handed_on_with_the_status() -> None:
    lines: list[str] = []
    body = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert stream([sys.executable, "-c", body], limit=60.0, line=lines.append) == 3
    assert sorted(lines) == ["one", "two"]


@pytest.mark.parametrize("kind", [UNIFORM, ZIPF])
def test_ids_are_those_of_the_table(kind: str) -> None:
    first, second = draw(kind, 2, 5000, 1000, CPU, 1)
    (other,) = draw(kind, 1, 5000, 1000, CPU, 2)
    for batch in (first, second, other):
        assert 0 <= int(batch.rows.min()) <= int(batch.rows.max()) < 1000
        assert torch.equal(batch.ids, ids_of(batch.rows))
        assert torch.equal(batch.rows32.long(), batch.rows)
        assert torch.equal(batch.offsets, torch.arange(5001))
        assert torch.equal(batch.offsets32.long(), batch.offsets)
    assert not torch.equal(first.rows, second.rows)
    assert not torch.equal(first.rows, other.rows)
    counts = torch.bincount(first.rows, minlength=1000)
    assert counts.max() > 300 if kind == ZIPF else counts.max() < 30


def test_popular_rows_lie_all_over_the_table() -> None:
    for rows in (1, 2, 999, 1 << 12):
        assert scattered(torch.arange(rows), rows).sort().values.equal(torch.arange(rows))
    popular = scattered(torch.arange(100), 1 << 24).sort().values
    assert popular.diff().min() > 10_000


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_missing_ids_are_of_no_row(share: float) -> None:
    (batch,) = draw(UNIFORM, 1, 4000, 500, CPU, 0, missing=share)
    known = torch.isin(batch.ids, ids_of(torch.arange(500)))
    assert torch.equal(known, batch.rows < 500)
    assert float((~known).float().mean()) == pytest.approx(share, abs=0.04)


def test_bags() -> None:
    assert even_bags(100, 30).tolist() == [30, 30, 30, 10]
    assert even_bags(3, 1).tolist() == [1, 1, 1]
    for ids in (7, 200, 10_000):
        lengths = mixed_bags(ids, seed=1)
        assert int(lengths.sum()) == ids
        assert int(lengths.min()) >= 0
        assert ids // 4 in lengths
    (batch,) = draw_bags(lambda _: torch.tensor([2, 0, 3]), 1, 50, CPU, 0)
    assert (len(batch.ids), batch.offsets.tolist()) == (5, [0, 2, 2, 5])


def test_bytes_that_must_move() -> None:
    batch = Batch.of(torch.tensor([1, 1, 2, 9]))  # of 9 rows: the last one is missing
    form = Form("float32", 6, torch.float32)
    assert form.row_bytes == 32  # 24, in whole sectors
    assert Form("int8", 128, torch.float16).row_bytes == 160  # 128 + 8
    assert Form("int4", 128, torch.float16).row_bytes == 96  # 64 + 8
    assert lookup_bytes(batch, form, 9) == 4 * 8 + 3 * 64 + 2 * 32 + 4 * (24 + 1)
    pooled = Batch.of(batch.rows, torch.tensor([0, 3, 4]))
    assert pooled_bytes(pooled, form, 9) == 4 * 8 + 3 * 8 + 3 * 64 + 2 * 32 + 2 * (24 + 8)


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_wrong_answers_are_seen(settings: Settings, journal: Journal, dtype: str) -> None:
    table = snapshot(settings, journal, dtype, 6, 500).load()
    other = snapshot(settings, journal, dtype, 6, 400).load()  # the same vectors but for a hundred
    few = draw(UNIFORM, 1, 30, 100, CPU, 0, missing=0.2)[0]
    many = draw(UNIFORM, 1, 3000, 500, CPU, 0)[0]
    bags = draw_bags(lambda _: even_bags(300, 7), 1, 500, CPU, 0)[0]
    changed = table.storage.clone()
    assert store(table, table, torch.float16).check(few) is None
    assert store(table, other, torch.float16).check(many) == "other ids are found than on the CPU"
    assert pooled_store(table, table, torch.float16).check(bags) is None
    assert pooled_store(table, other, torch.float16).check(bags) == "other ids are found than on the CPU"
    changed[int(table.layout[8]) : int(table.layout[8]) + 1000] ^= 0x55
    broken = type(table)(table.manifest, changed, table.layout)
    assert "vectors are not the CPU's" in str(store(broken, table, torch.float32).check(many))
    assert "not what they should be" in str(pooled_store(broken, table, torch.float32).check(bags))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_others_are_checked_too(dtype: str, pooled: bool) -> None:
    form = Form(dtype, 8, torch.float16)
    bags = draw_bags(lambda _: even_bags(100, 7 if pooled else 1), 1, 50, CPU, 0)[0]
    other = draw_bags(lambda _: even_bags(100, 7 if pooled else 1), 1, 50, CPU, 1)[0]
    for variant in (known_rows(form, 50, CPU, pooled=pooled), fbgemm(form, 50, CPU, pooled=pooled)):
        assert variant.optional
        assert variant.check(bags) is None
        swapped = Batch(other.rows, other.ids, bags.offsets, bags.rows32, bags.offsets32)
        if variant.name.startswith("fbgemm"):  # answers for rows32, and is held against rows
            assert "not what they should be" in str(variant.check(swapped))


def test_what_is_wrong_is_not_timed(settings: Settings, journal: Journal, tmp_path: Path) -> None:
    def raising(_: Batch) -> str | None:
        raise RuntimeError("out of order\nsecond line")

    def of(name: str, check: Any, *, optional: bool = False) -> Variant:
        return Variant(name, lambda batch: batch.ids + 1, check, optional)

    bench = Bench(settings, journal)
    variants = [
        of("good", lambda _: None),
        of("wrong", lambda _: "3 of 4 vectors differ"),
        of("broken", raising),
        of("peer", raising, optional=True),
    ]
    seeds = []

    def drawn(seed: int) -> list[Batch]:
        seeds.append(seed)
        return draw(UNIFORM, 2, 10, 500, CPU, seed)

    bench.cell(variants, drawn, lambda _: 640, lambda _: {"bus": 1.0}, dtype="float32")
    assert seeds == [0, 1, 2, 3]  # each on ids of its own
    timings = records(tmp_path, "timing")
    assert [record["variant"] for record in timings] == ["good", COPY]
    for record in timings:
        assert record["of_roof"] == pytest.approx(640 / bench.rate * 1e6 / record["device_us"], abs=1e-4)
        assert record["device_p99_us"] >= record["device_us"] > 0
    assert [failure.split("}: ")[1] for failure in journal.failures] == [
        "3 of 4 vectors differ",
        "RuntimeError: out of order",
    ]
    assert [record["reason"] for record in records(tmp_path, "left out")] == ["RuntimeError: out of order"]


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
    absent = ["pytest", "tyro", "rich", "fbgemm_gpu", "torchrec", "tensordict", "tomli_w", "duckdb"]
    body = f"import sys, importlib\nfor name in {absent}: sys.modules[name] = None\n"
    names = [f"parts.{part.name}" for part in PARTS] + ["__main__", "odd", "profiled"]
    body += f"for name in {names}: importlib.import_module('benchmarks.gpu.' + name)"
    assert stream([sys.executable, "-c", body], limit=600.0) == 0


def test_files_of_tests_that_need_a_gpu() -> None:
    files = cuda_tests.cuda_files()
    assert files[0] == "tests/embedding_store/read/test_cuda.py"
    assert all((ROOT / file).exists() for file in files)
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
    assert cuda_tests._pytest([str(tmp_path / "test_lacking.py")], 60.0, journal) == {}
    assert not journal.failures
    assert "No module named 'not_to_be_had'" in records(tmp_path, "left out")[0]["reason"]


def test_errors_that_memcheck_finds(settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(words: list[str], *, limit: float, line: Any, environment: dict[str, str]) -> int:
        assert words[:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"]
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        line("========= Invalid __global__ read of size 16 bytes")
        line("========= ERROR SUMMARY: 1 error")
        return memcheck.FOUND_ERRORS

    monkeypatch.setattr(memcheck, "found", lambda name: f"/bin/{name}")
    monkeypatch.setattr(memcheck, "stream", stream)
    memcheck.run(replace(settings, rehearse=False), journal)
    assert journal.failures == ["compute-sanitizer found errors: see the log"]
    said = [record["said"] for record in records(settings.out, "memcheck")]
    assert said == ["Invalid __global__ read of size 16 bytes", "ERROR SUMMARY: 1 error"]


def test_counters_are_read_from_ncu() -> None:
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


def test_time_is_counted_once() -> None:
    def event(ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
        return {"pid": 1, "tid": tid, "ts": ts, "dur": dur, "name": f"{ts}"}

    events = [event(0, 10), event(1, 4), event(2, 1), event(6, 2), event(20, 5), event(3, 4, tid=2)]
    own = {x["name"]: time for x, time in own_times(events)}
    assert own == {"0": 4, "1": 3, "2": 1, "6": 2, "20": 5, "3": 4}
    assert covered(events, 0, 100) == 15
    assert covered(events, 4, 22) == 8


def test_a_step_is_divided_by_what_its_kernels_are_for(tmp_path: Path) -> None:
    def event(name: str, cat: str, ts: float, dur: float, tid: int = 7) -> dict[str, Any]:
        return {"ph": "X", "pid": 0, "tid": tid, "name": name, "cat": cat, "ts": ts, "dur": dur}

    events = [
        event("ProfilerStep#3", "user_annotation", 0, 1000, tid=1),
        event("ProfilerStep#4", "user_annotation", 1000, 1000, tid=1),
        event("ProfilerStep#3", "gpu_user_annotation", 0, 900),
        event("aten::mm", "cpu_op", 0, 500, tid=1),  # the host's time is not the device's
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 0, 100, tid=9),
        event("split_embedding_codegen_forward_unweighted_kernel", "kernel", 50, 300),
        event("void cub::DeviceRadixSortOnesweepKernel<...>", "kernel", 400, 100),
        event("ncclDevKernel_AllReduce_Sum_f32", "kernel", 500, 200, tid=8),
        event("nvjet_tst_128x64_64x8_2x1_v_bz_TNT", "kernel", 1200, 300),
        {"ph": "M", "name": "process_name"},
    ]
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert shares(tmp_path / "trace.json.gz") == {
        "communication": 0.2,
        "input": 0.1,
        "embedding": 0.4,
        "dense": 0.3,
        "step_ms": 1.0,
        "busy": 0.475,  # 0 .. 350, 400 .. 700 and 1200 .. 1500
    }


def test_losses_are_compared_by_step() -> None:
    found = differences({1: 9.0, 2: 1.0, 3: 1.02, 4: 2.0}, {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 3.0})
    assert found == {"last": 0.0, "greatest": 0.02}


def test_the_summary_holds_figures_beside_aims() -> None:
    cell = {"part": "grid", "kind": "timing", "dtype": "int8", "dim": 128, "ids": UNIFORM, "missing": 0.0}
    cell |= {"keys": 1_000_000, "device_p99_us": 300.0, "wait_us": 290.0, "of_roof": 0.87}
    found = [
        {**cell, "variant": "store", "device_us": 200.0},
        {**cell, "variant": COPY, "device_us": 180.0},
        {**cell, "variant": "fbgemm int8 -> float16, known rows", "device_us": 250.0},
        {"part": "grid", "kind": "failure", "reason": "store {...}: 3 of 4 vectors are not the CPU's"},
        {"part": "grid", "kind": "part", "outcome": "failed", "seconds": 71.2},
    ]
    told = summary(found)
    line = next(line for line in told.splitlines() if line.startswith("grid int8 128"))
    assert line.split()[4:] == ["1,000,000", "200.0", "300.0", "290.0", "0.87", "0.90", "1.25", "roof", "0.85"]
    assert "grid:  store {...}: 3 of 4 vectors are not the CPU's" in told


def test_make_gpu_runs_it() -> None:
    said = subprocess.run(
        ["make", "-n", "gpu", "PARTS=first grid"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "-m benchmarks.gpu first grid" in said
    assert "pip" not in said
