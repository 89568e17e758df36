"""The `embedding-store` command: what it prints and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore, Snapshot
from embedding_store.cli.main import main
from tests.embedding_store.helpers import folder, publish


@pytest.fixture
def path(store: EmbeddingStore) -> str:
    for name in ("user_ctr", "item_ctr"):
        series = store.create(name, dim=3, dtype="int8")
        for version in (1, 2):
            publish(series, 1_650_000_000_000 + version, list(range(1000 * version)))
        series.tag("prod", 1)
    store.create("item_cvr", dim=3)
    return str(store.path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_ls(capsys, path: str):
    code, out, _ = run(capsys, "ls", path)
    assert code == 0
    for text in ("user_ctr", "int8", "2,000", "prod -> 1", "2022-04-15 05:20:00.002 UTC"):
        assert text in out
    rows = {row["series"]: row for row in run_json(capsys, "ls", path)}
    assert list(rows) == ["item_ctr", "item_cvr", "user_ctr"]
    assert {key: rows["user_ctr"][key] for key in ("dim", "snapshots", "version", "rows", "tags")} == {
        "dim": 3,
        "snapshots": 2,
        "version": 2,
        "rows": 2000,
        "tags": {"prod": 1},
    }
    assert rows["item_cvr"]["version"] is None


def test_history_and_show(capsys, path: str):
    code, out, _ = run(capsys, "history", path, "user_ctr")
    assert code == 0
    assert "prod" in out
    assert [(row["version"], row["tags"]) for row in run_json(capsys, "history", path, "user_ctr")] == [
        (1, ["prod"]),
        (2, []),
    ]
    code, out, _ = run(capsys, "show", path, "user_ctr", "--tag", "prod")
    assert code == 0
    for text in ("ctr-1", "1,000", "vectors-00000.arrow", "index.hash", "crc32c:"):
        assert text in out
    assert run_json(capsys, "show", path, "user_ctr")["version"] == 2
    assert run_json(capsys, "show", path, "user_ctr", "--version", "1")["tags"] == ["prod"]


def test_an_empty_store_and_series(capsys, path: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert run(capsys, "ls", str(tmp_path / "empty"))[:2] == (0, f"{tmp_path / 'empty'}: nothing there\n")
    assert run(capsys, "history", path, "item_cvr")[:2] == (0, f"{path}: item_cvr: nothing there\n")


def test_tag(capsys, path: str, store: EmbeddingStore):
    assert run(capsys, "tag", path, "user_ctr", "prod", "2")[:2] == (0, "user_ctr: prod -> version 2 (was 1)\n")
    assert store.series("user_ctr").tags() == {"prod": 2}
    assert run_json(capsys, "tag", path, "user_ctr", "canary", "1") == {"tag": "canary", "version": 1, "before": None}


def test_rollback(capsys, path: str, store: EmbeddingStore):
    store.series("user_ctr").tag("prod", 2)
    assert run(capsys, "rollback", path, "user_ctr", "prod")[:2] == (0, "user_ctr: prod -> version 1 (was 2)\n")
    assert store.series("user_ctr").tags() == {"prod": 1}
    store.series("user_ctr").tag("prod", 2)
    moved = run_json(capsys, "rollback", path, "user_ctr", "prod", "--to", "1")
    assert moved == {"tag": "prod", "version": 1, "before": 2}


def test_diff(capsys, path: str):
    found = run_json(capsys, "diff", path, "user_ctr", "1", "2")
    assert (found["added"], found["removed"], found["kept"], found["moved"]) == (1000, 0, 1000, 0)
    assert found["cosine"]["0.5"] == pytest.approx(1, abs=1e-6)
    code, out, _ = run(capsys, "diff", path, "user_ctr", "1", "2")
    assert code == 0
    assert "1,000" in out
    assert "50%" in out


def test_expire_says_first_and_does_when_told(capsys, path: str, store: EmbeddingStore):
    series = store.series("user_ctr")
    publish(series, 1_650_000_000_003, [1])
    code, out, _ = run(capsys, "expire", path, "user_ctr", "--keep-last", "1")
    assert code == 0
    assert "nothing is done without --delete" in out
    assert series.versions() == [1, 2, 3]
    gone = run_json(capsys, "expire", path, "user_ctr", "--keep-last", "1", "--delete")
    assert [row["version"] for row in gone["snapshots"]] == [2]  # 1 is tagged, 3 the newest
    assert (gone["deleted"], gone["freed_bytes"] > 2000 * 8) == (True, True)
    assert series.versions() == [1, 3]
    assert run_json(capsys, "clean", path) == []  # not within the hour


def test_retract_and_what_was_refused(capsys, path: str, store: EmbeddingStore):
    series = store.series("user_ctr")
    series.refuse(1, ["norms", "drift"])
    assert [row["refused"] for row in run_json(capsys, "history", path, "user_ctr")] == [["norms", "drift"], None]
    assert run_json(capsys, "retract", path, "user_ctr", "2") == [{"retracted": 2, "versions": [1]}]
    assert series.versions() == [1]
    code, _, err = run(capsys, "retract", path, "user_ctr", "1")  # which is tagged
    assert (code, "to which prod points" in err) == (1, True)


def test_compact(capsys, path: str, store: EmbeddingStore):
    series = store.series("user_ctr")
    with series.write(as_of=1_650_000_000_003, space="ctr-1", base=2) as writer:
        writer.delete(torch.tensor([0, 1]))
    (row,) = run_json(capsys, "compact", path, "user_ctr")
    assert (row["version"], row["rows"]) == (4, 1998)
    assert series.latest().manifest.stored_rows == 1998


def test_import_makes_the_series_and_export_gives_the_rows_back(capsys, tmp_path: Path):
    ids, vectors = [5, -7, 2**62], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    pq.write_table(pa.table({"member": ids, "emb": vectors}), tmp_path / "a.parquet")
    columns = ("--id-column", "member", "--vector-column", "emb")
    time = ("--as-of", "2026-01-31T00:00:00Z", "--space", "mine-1")
    store = str(tmp_path / "store")
    (row,) = run_json(capsys, "import", store, "user_mine", str(tmp_path / "a.parquet"), *time, *columns)
    assert (row["version"], row["rows"], row["as_of"]) == (1, 3, 1_769_817_600_000)
    (row,) = run_json(capsys, "export", store, "user_mine", str(tmp_path / "b.parquet"))
    assert row["rows"] == 3
    found = pq.read_table(tmp_path / "b.parquet")
    assert dict(zip(found["id"].to_pylist(), found["vector"].to_pylist(), strict=True)) == dict(
        zip(ids, vectors, strict=True)
    )


def test_bench_measures_all_kinds_of_ids(capsys, path: str):
    found = run_json(capsys, "bench", path, "user_ctr", "--batches", "64", "4096", "--seconds", "0.01")
    assert [(row["ids"], row["batch"]) for row in found["lookups"]] == [
        (kind, batch) for kind in ("uniform", "zipf", "missing") for batch in (64, 4096)
    ]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in found["lookups"])


def test_verify(capsys, path: str, store: EmbeddingStore):
    assert len(run_json(capsys, "verify", path)) == 4
    series = store.series("user_ctr")
    file = folder(series) / series.version(1).manifest.data[0].path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    code, out, _ = run(capsys, "verify", path)
    assert code == 1
    assert out.count("ok") == 3
    assert run(capsys, "verify", path, "item_ctr")[0] == 0
    assert run(capsys, "verify", path, "user_ctr", "--version", "2")[0] == 0
    code, out, _ = run(capsys, "verify", path, "user_ctr", "--version", "1", "--json")
    assert code == 1
    error = json.loads(out)[0]["error"]
    assert str(file) in error
    assert "are not those that were written" in error
    (folder(series) / "manifests/00000002.json").write_text("{")
    code, out, _ = run(capsys, "verify", path, "user_ctr", "--json")
    assert [bool(row["error"]) for row in json.loads(out)] == [True, True]


def test_verify_goes_on_after_a_file_that_the_disk_refuses(capsys, path: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Snapshot) -> None:
        if self.series == "user_ctr":
            raise OSError(5, "Input/output error", "/a/b")

    monkeypatch.setattr(Snapshot, "verify", refuse)
    code, out, _ = run(capsys, "verify", path, "--json")
    assert code == 1
    assert [bool(row["error"]) for row in json.loads(out)] == [row["series"] == "user_ctr" for row in json.loads(out)]
    assert "Input/output error: '/a/b'" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["history", "STORE", "nope"], "no series 'nope' in .*; series: item_ctr, item_cvr, user_ctr"),
        (["show", "STORE", "user_ctr", "--version", "9"], "no version 9; versions: 1-2"),
        (["show", "STORE", "user_ctr", "--version", "1", "--tag", "prod"], "give one of them"),
        (["show", "STORE", "item_cvr"], "has no snapshot yet"),
        (["tag", "STORE", "user_ctr", "prod", "3"], "no version 3"),
        (["rollback", "STORE", "user_ctr", "prod"], "has named no earlier one"),
        (["diff", "STORE", "user_ctr", "1", "9"], "no version 9"),
        (["import", "STORE", "x", "no.parquet", "--as-of", "1", "--space", "s"], "no.parquet is not a file"),
        (["export", "STORE", "user_ctr", "STORE"], "exists: choose another name"),
        (["bench", "STORE", "user_ctr", "--batches", "0"], "batches is 0; use 1 or more"),
        (["bench", "STORE", "user_ctr", "--batches"], "batches is empty"),
        (["bench", "STORE", "user_ctr", "--threads", "0"], "threads is 0; use 1 .. 4096"),
        (["bench", "STORE", "user_ctr", "--device", "foo"], "device is 'foo'; use cpu or cuda"),
        (["bench", "STORE", "user_ctr", "--seconds", "nan"], "seconds is nan"),
        (["expire", "STORE", "user_ctr", "--older-than-days", "nan"], "older_than_days is nan; use 0 to 36,500 days"),
        (["expire", "STORE", "user_ctr", "--older-than-days", "inf"], "older_than_days is inf"),
        (["expire", "STORE", "user_ctr", "--older-than-days", "1e12"], "older_than_days is 1000000000000.0"),
        (["expire", "STORE", "user_ctr", "--older-than-days", "-1"], "older_than_days is -1.0"),
        (["ls", "STORE/nowhere"], "nowhere', which is not a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(capsys, path: str, arguments: list[str], message: str):
    code, out, err = run(capsys, *(argument.replace("STORE", path) for argument in arguments))
    assert (code, out, err.count("\n")) == (1, "", 1)
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["history"], ["tag", "a", "b", "c", "d"], ["ls", "a", "--nope"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_failed_import_leaves_no_series(capsys, tmp_path: Path):
    rows = pa.table({"id": [1, 1], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(rows, tmp_path / "twice.parquet")
    command = ["import", str(tmp_path / "store"), "x", str(tmp_path / "twice.parquet"), "--as-of", "1", "--space", "s"]
    code, _, err = run(capsys, *command)
    assert (code, err.count("\n")) == (1, 1)
    assert "1 ids were appended more than once" in err
    assert EmbeddingStore(tmp_path / "store").list() == []
    assert list((tmp_path / "store").iterdir()) == []
    assert run(capsys, *command, "--duplicates", "last")[0] == 0
    assert run(capsys, *command)[0] == 1
    assert EmbeddingStore(tmp_path / "store").series("x").versions() == [1], "a series that was there stays"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "/a/b"), PermissionError(13, "denied", "/a/b")]
)
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch: pytest.MonkeyPatch, path: str, error: OSError):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("embedding_store.storage.local.LocalStorage.put_new", refuse)
    code, out, err = run(capsys, "tag", path, "user_ctr", "prod", "2")
    assert (code, out, err) == (1, "", f"embedding-store: /a/b: {error.strerror}\n")


def test_a_closed_pipe_ends_the_command(path: str):
    command = f"{sys.executable} -m embedding_store.cli.main ls {path} --json | true; exit ${{PIPESTATUS[0]}}"
    child = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)
    assert child.returncode in (0, 1)  # what it prints may fit into the pipe
    assert child.stderr == ""
