"""The `embedding-store` command: what it prints and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedding_store import EmbeddingStore
from embedding_store.cli import main

from .helpers import folder, publish


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
    for text in ("ctr-1", "1,000", "vectors-00000.arrow", "index.arrow", "crc32:"):
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
    assert "checksum" in out
    assert run(capsys, "verify", path, "item_ctr")[0] == 0
    assert run(capsys, "verify", path, "user_ctr", "--version", "2")[0] == 0
    code, out, _ = run(capsys, "verify", path, "user_ctr", "--version", "1", "--json")
    assert code == 1
    assert str(file) in json.loads(out)[0]["error"]
    (folder(series) / "manifests/00000002.json").write_text("{")
    code, out, _ = run(capsys, "verify", path, "user_ctr", "--json")
    assert [bool(row["error"]) for row in json.loads(out)] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["history", "STORE", "nope"], "no series 'nope' in .*; series: item_ctr, item_cvr, user_ctr"),
        (["show", "STORE", "user_ctr", "--version", "9"], "no version 9; versions: 1-2"),
        (["show", "STORE", "user_ctr", "--version", "1", "--tag", "prod"], "give one of them"),
        (["show", "STORE", "item_cvr"], "has no snapshot yet"),
        (["tag", "STORE", "user_ctr", "prod", "3"], "no version 3"),
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
