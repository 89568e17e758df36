"""What must hold of the figures of benchmarks/gpu wherever they are measured; its rehearsal is in a file of its own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import folder, tables
from benchmarks.gpu.cells import Bench, if_possible
from benchmarks.gpu.ids import Batch, draw, draw_bags, even_bags, ids_of, mixed_bags, scattered
from benchmarks.gpu.journal import RESULTS, Journal, PeerError, SkippedError, append, read
from benchmarks.gpu.names import ALONE_VARIABLE, COPY, UNIFORM, ZIPF
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.parts.training import differences
from benchmarks.gpu.roof import Form, lookup_bytes, pooled_bytes
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.summary import summary
from benchmarks.gpu.tables import snapshot
from benchmarks.gpu.trace import covered, own_times, shares
from benchmarks.gpu.variants import Variant, fbgemm, known_rows, pooled_store, store
from tests.benchmarks.gpu_records import records

CPU = torch.device("cpu")


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


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: 0.0))


def test_no_part_is_begun_without_time_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_time_passes: None
) -> None:
    limits = []
    monkeypatch.setattr(command, "stream", lambda _, limit, **__: limits.append(limit) or 0)
    assert command.main(["--rehearse", "--out", str(tmp_path), "--seconds", "100", "grid"]) == 0
    assert limits == [100]
    assert command.main(["--rehearse", "--out", str(tmp_path), "--seconds", "20", "grid"]) == 1
    assert records(tmp_path, "part")[-1]["outcome"] == "no time"
    assert len(limits) == 1


def test_a_part_that_hangs_leaves_the_later_ones_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_time_passes: None
) -> None:
    limits = {}

    def stream(words: list[str], limit: float, **_: Any) -> None:
        limits[words[words.index("--inside") + 1]] = limit

    monkeypatch.setattr(command, "stream", stream)
    names = ["first", "tests", "memcheck"]
    assert command.main(["--rehearse", "--out", str(tmp_path), "--seconds", "300", *names]) == 1
    least = {part.name: part.least for part in PARTS}
    assert limits["first"] == next(part.limit for part in PARTS if part.name == "first")
    assert limits["tests"] + least["memcheck"] == 300
    assert limits["memcheck"] == 300
    assert all(part.least <= part.limit for part in PARTS)


def test_a_part_goes_on_without_the_others_where_one_has_broken_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_time_passes: None
) -> None:
    runs: list[tuple[float, dict[str, str]]] = []
    ends = [command.BROKEN, 0, -11, 0, command.BROKEN, command.BROKEN, -11]

    def stream(words: list[str], limit: float, environment: dict[str, str] | None = None, **_: Any) -> int:
        assert float(words[words.index("--limit") + 1]) == limit - command.SPARED
        runs.append((limit, environment or {}))
        return ends[len(runs) - 1]

    monkeypatch.setattr(command, "stream", stream)
    for number in (1, 2):
        assert command.main(["--rehearse", "--out", str(tmp_path), "grid"]) == 0
        assert runs == [(570, {}), (570, {ALONE_VARIABLE: "1"})] * number
    assert command.main(["--rehearse", "--out", str(tmp_path), "grid"]) == 1
    assert command.main(["--rehearse", "--out", str(tmp_path), "tests"]) == 1
    assert len(runs) == 7  # of tests there are no others


def test_tables_that_a_killed_run_has_left_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "IN_MEMORY", tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, mine = tmp_path / f"gpu-tables-{ended.pid}-abc", tmp_path / f"gpu-tables-{os.getpid()}-abc"
    for made in (left, mine):
        (made / "series").mkdir(parents=True)
    with folder.tables_folder(0) as tables:
        assert tables.parent == tmp_path
        assert {*tmp_path.iterdir()} == {mine, tables}
    assert {*tmp_path.iterdir()} == {mine}


def test_what_has_no_room_is_left_out(settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    forms = [("float32", 6, 500), ("float32", 6, 101), ("float32", 6, 100)]
    free = 600 * tables._needed("float32", 6, 1)
    assert tables.written(settings, journal, forms) == [forms[0], forms[2]]
    assert [record["what"] for record in records(settings.out, "left out")] == ["float32-6-101"]
    assert {record["rows"] for record in records(settings.out, "written")} == {500, 100}
    free = 0  # what is there needs none
    assert tables.written(settings, journal, forms) == [forms[0], forms[2]]
    with pytest.raises(SkippedError, match=r"101 rows of 6 float32 take .* set TMPDIR"):
        tables.written(settings, journal, forms[1:2])


def test_a_part_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), "gird"])
    assert "no part gird; use build, first" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "needs a CUDA GPU" in capsys.readouterr().out


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
@pytest.mark.parametrize("dim", [8, 100])  # FBGEMM pads rows of 100 but those of float32
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_others_are_checked_too(dtype: str, dim: int, pooled: bool) -> None:
    form = Form(dtype, dim, torch.float16)
    bags = draw_bags(lambda _: even_bags(100, 7 if pooled else 1), 1, 50, CPU, 0)[0]
    other = draw_bags(lambda _: even_bags(100, 7 if pooled else 1), 1, 50, CPU, 1)[0]
    for variant in (known_rows(form, 50, CPU, pooled=pooled), fbgemm(form, 50, CPU, pooled=pooled)):
        assert variant.optional
        assert variant.check(bags) is None
        swapped = Batch(other.rows, other.ids, bags.offsets, bags.rows32, bags.offsets32)
        if variant.name.startswith("fbgemm"):  # answers for rows32, and is held against rows
            assert "not what they should be" in str(variant.check(swapped))


def test_what_is_wrong_is_not_timed(settings: Settings, journal: Journal, tmp_path: Path) -> None:
    def raising(*_: Any) -> str | None:
        raise RuntimeError("out of order\nsecond line")

    def of(name: str, judge: Any, *, optional: bool = False) -> Variant:
        return Variant(name, lambda batch: batch.ids + 1, judge, optional)

    bench = Bench(settings, journal)
    variants = [
        of("good", lambda *_: None),
        of("wrong", lambda *_: "3 of 4 vectors differ"),
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


ILLEGAL = "CUDA error: an illegal memory access was encountered"


def test_a_device_that_is_broken(settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later call of the process fails then; after other errors of CUDA's it does not."""
    bench = Bench(settings, journal)

    def illegal(*_: Any) -> None:
        raise RuntimeError(ILLEGAL)

    def measure(name: str, *, optional: bool) -> None:
        bench.cell([Variant(name, illegal, illegal, optional)], partial(draw, UNIFORM, 1, 10, 500, CPU), lambda _: 64)

    measure("store", optional=False)
    measure("peer", optional=True)
    assert journal.failures == [f"store {{}}: RuntimeError: {ILLEGAL}"]
    assert [record["what"] for record in records(settings.out, "left out")] == ["peer {}"]
    monkeypatch.setattr(bench.clock, "wait", illegal)
    with pytest.raises(RuntimeError, match=ILLEGAL):
        measure("store", optional=False)
    with pytest.raises(PeerError, match=rf"peer {{}}: RuntimeError: {ILLEGAL}"):
        measure("peer", optional=True)


def test_the_others_are_left_out_where_one_has_broken_the_device(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Variant("peer", lambda batch: batch.ids, lambda *_: None)
    assert if_possible(journal, "peer", lambda: peer) == [peer]
    monkeypatch.setenv(ALONE_VARIABLE, "1")
    assert if_possible(journal, "peer", lambda: peer) == []


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
        event("split_embedding_codegen_forward_unweighted_kernel", "kernel", 50, 300.001),
        event("void cub::DeviceRadixSortOnesweepKernel<...>", "kernel", 350, 100),
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
        "busy": 0.475,  # 0 .. 450, 500 .. 700 and 1200 .. 1500
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
