"""benchmarks/gpu on the CPU: every part once, tiny, with the packages of a borrowed machine alone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.names import COPY
from benchmarks.gpu.parts import PARTS
from tests.benchmarks.gpu_records import records

BORROWED = Path(__file__).parent / "borrowed"


def test_a_borrowed_machine_lacks_what_was_not_brought_along() -> None:
    body = "import numpy, torch, pytest, tyro, torchrec\nimport tomli_w"
    environment = {**os.environ, "PYTHONPATH": str(BORROWED)}
    said = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True).stderr
    assert said.endswith("ModuleNotFoundError: No module named 'tomli_w' on a borrowed machine\n")


def test_every_part_is_rehearsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BORROWED))
    # A lent machine's time is counted; this one may be slow.
    monkeypatch.setattr(command, "PARTS", [replace(part, limit=3000) for part in PARTS])
    status = command.main(["--rehearse", "--out", str(tmp_path)])
    ended = records(tmp_path, "part")
    assert {record["part"]: record["outcome"] for record in ended} == {part.name: "ok" for part in PARTS}
    assert status == 0
    assert not records(tmp_path, "failure")
    assert {record["what"] for record in records(tmp_path, "left out")} == {"compute-sanitizer", "ncu"}
    timings = records(tmp_path, "timing")
    for part, variants in {
        "grid": {"store", COPY, "torch embedding, float16, known rows", "fbgemm int4 -> float16, known rows"},
        "pooled": {"store", COPY, "torch embedding_bag, float32, known rows", "fbgemm float32 -> float32, known rows"},
        "tiered": {"store, 10% hot", "fbgemm int8 -> float16, known rows, 10% cached"},
        "dims": {"store"},
        "graphs": {
            *("store, replayed", "store, called", "store's fixed table, replayed", COPY),
            *("torch embedding, replayed, known rows", "torch embedding, float32, known rows"),
        },
    }.items():
        assert variants <= {record["variant"] for record in timings if record["part"] == part}
    missing = [record for record in timings if record.get("missing")]
    assert {record["variant"] for record in missing} == {"store", COPY}  # the others know no missing id
    assert all(0 < record["rate"] < 1 for record in records(tmp_path, "hits"))
    swapped = [(record["version"], record["keys"], record["graphs"]) for record in records(tmp_path, "swapped")]
    assert swapped == [(2, 10, 3), (1, 100, 3)]
    assert {record["model"] for record in records(tmp_path, "training")} == {"derm", "dlrm"}
    assert [record["device"] for record in records(tmp_path, "machine")] == ["CPU"]
    assert all(record["embedding"] > 0 and record["dense"] > 0 for record in records(tmp_path, "shares"))
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"results.jsonl", "log.txt", "summary.txt", "derm.trace.json.gz", "dlrm.trace.json.gz"}
    told = (tmp_path / "summary.txt").read_text()
    assert told in capsys.readouterr().out
    assert "grid int4 16, zipf 1.05" in told
    assert "graphs, 100 ids: store, called: " in told
    assert "graphs, 10 ids: after a swap 3 graphs give version 2" in told
    assert "roof 0.75" not in told  # what is aimed at at sizes that a rehearsal has not
