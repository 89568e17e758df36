"""`recsys index` and `recsys retrieve`, as the README has them and as they go wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import hash_keys
from recsys.retrieval import files
from tests.recsys.conftest import Run
from tests.recsys.retrieval.conftest import DIM, ITEMS, USERS, publish, publish_prior, vectors

README = (Path(__file__).parents[3] / "README.md").read_text()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and a file of users, in the folder that is worked in."""
    publish(tmp_path / "runs/mine/store")
    write_users(tmp_path / "users.parquet", [*range(USERS), USERS + 5, 3])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_users(path: Path, ids: list, column: str = "user_id") -> None:
    kind = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
    pq.write_table(pa.table({"country": ["no"] * len(ids), column: pa.array(ids, kind)}), path, row_group_size=7)


RETRIEVE = ("retrieve", "--store", "runs/mine/store", "--upstream", "ctr", "--users", "users.parquet")


def test_the_readme(mine: Path, recsys: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```\n(recsys index.*?)```", README, re.DOTALL)
    for line in block.strip().splitlines():
        assert recsys(*line.split("#")[0].split()[1:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"hnsw of {ITEMS + 1} items of item_ctr version 1 (space ctr-1, as of 1000 ms)" in said
    assert f"{USERS + 2} users, {USERS + 1} of them with a vector of user_ctr version 1, hnsw, in" in said
    table, exact = pq.read_table(mine / "top.parquet"), pq.read_table(mine / "exact.parquet")
    assert table.schema.names == ["user_id", "item_id", "score", "found"]
    assert table["user_id"].to_pylist() == [*range(USERS), USERS + 5, 3]
    assert table["found"].to_pylist() == [True] * USERS + [False, True]
    assert {len(items) for items in table["item_id"].to_pylist()} == {100}
    assert all(scores == sorted(scores, reverse=True) for scores in table["score"].to_pylist())
    assert table["item_id"].to_pylist()[3] == table["item_id"].to_pylist()[-1]
    assert table["item_id"].to_pylist()[USERS] == [-item - 1 for item in range(100)]  # of the greatest prior
    pairs = zip(table["item_id"].to_pylist(), exact["item_id"].to_pylist(), strict=True)
    assert min(len({*found} & {*wanted}) for found, wanted in pairs) >= 99
    (python,) = re.findall(r"```python\n(from recsys.retrieval.*?)```", README, re.DOTALL)
    names = {"user_ids": torch.arange(USERS)}
    exec(python, names)
    assert names["items"].tolist() == table["item_id"].to_pylist()[:USERS]


def test_any_number_of_users_at_once_is_the_same(mine: Path, recsys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recsys(*RETRIEVE, "--k", 9, "--out", "whole.parquet") == 0
    monkeypatch.setattr(files, "_PLACES", 40)
    assert recsys(*RETRIEVE, "--k", 9, "--out", "parts.parquet") == 0
    whole, parts = pq.read_table("whole.parquet"), pq.read_table("parts.parquet")
    assert whole["item_id"].to_pylist() == parts["item_id"].to_pylist()
    write_users(mine / "users.parquet", [])
    assert recsys(*RETRIEVE, "--k", 9, "--out", "nobody.parquet") == 0
    assert pq.read_table("nobody.parquet").schema == whole.schema


def test_who_has_no_vector_gets_nothing_without_a_prior(mine: Path, recsys: Run) -> None:
    assert recsys(*RETRIEVE, "--k", 9, "--out", "o.parquet", "--weight", 0) == 0
    lengths = [len(items) for items in pq.read_table("o.parquet")["item_id"].to_pylist()]
    assert lengths == [9] * USERS + [0, 9]


@pytest.mark.parametrize("dictionary", [False, True])
def test_text_is_hashed_as_in_events(tmp_path: Path, recsys: Run, dictionary: bool) -> None:
    from embedding_store import EmbeddingStore

    publish(tmp_path / "store", users=0)
    series = EmbeddingStore(tmp_path / "store").series("user_ctr")
    with EmbeddingStore(tmp_path / "store").series("item_ctr").write(as_of=2000, space="ctr-1") as writer:
        writer.append(torch.arange(ITEMS), vectors(2, ITEMS))
    with series.write(as_of=2000, space="ctr-1") as writer:
        writer.append(hash_keys(["anna"]), torch.ones(1, DIM))
    names = pa.array(["björn", "anna"])
    names = names.dictionary_encode() if dictionary else names
    pq.write_table(pa.table({"member": names}), tmp_path / "u.parquet")
    options = ("--store", tmp_path / "store", "--upstream", "ctr", "--users", tmp_path / "u.parquet")
    assert recsys("retrieve", *options, "--user-id", "member", "--k", 3, "--out", tmp_path / "o.parquet") == 0
    table = pq.read_table(tmp_path / "o.parquet")
    assert table["member"].to_pylist() == ["björn", "anna"]
    assert table["found"].to_pylist() == [False, True]


def test_exact_of_an_index_is_of_its_versions(mine: Path, recsys: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys("index", *RETRIEVE[1:5], "--out", "i", "--kind", "flat", "--temperature", 0.5, "--weight", 0.7) == 0
    publish(mine / "runs/mine/store", as_of=2000)
    publish_prior(mine / "runs/mine/store", as_of=2000)
    assert recsys(*RETRIEVE, "--k", 20, "--out", "a.parquet", "--index", "i") == 0
    assert recsys(*RETRIEVE, "--k", 20, "--out", "b.parquet", "--index", "i", "--exact") == 0
    assert "ctr has version 2, these answers are of 1: `recsys index` builds one of" in capsys.readouterr().out
    left, right = pq.read_table("a.parquet"), pq.read_table("b.parquet")
    assert left["item_id"].to_pylist() == right["item_id"].to_pylist()


def test_mistakes_are_one_line_before_any_work(mine: Path, recsys: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert recsys("index", *RETRIEVE[1:5], "--out", "i", "--kind", "flat") == 0
    write_users(mine / "null.parquet", [1] * 9 + [None])
    write_users(mine / "named.parquet", [1], "item_id")
    pq.write_table(pa.table({"user_id": [0.5]}), mine / "float.parquet")
    (mine / "text.parquet").write_text("no Parquet")
    (mine / "folder").mkdir()
    cases = {
        ("--k", 302): "k is 302, and 301 items of 'item_ctr' can be retrieved: use 1 to 301",
        ("--k", 0): "k is 0, and 301 items",
        ("--upstream", "crt"): "--upstream is 'crt', but",
        ("--index", "i", "--upstream", "cvr"): "i is an index of upstream 'ctr', not of 'cvr'",
        ("--index", "i", "--version", 2): "i is an index of version 1, not of 2",
        ("--index", "i", "--weight", 1): "--temperature and --weight are those that the index i was built with",
        ("--index", "nowhere"): "nowhere is no index: it has no index.json; make one by `recsys index`",
        ("--version", 7): "version 7 is asked for",
        ("--users", "nowhere.parquet"): "--users is nowhere.parquet, which does not exist",
        ("--users", "text.parquet"): "--users is text.parquet, which is no readable Parquet file",
        ("--users", "float.parquet"): "column 'user_id' is double: ids are integers or strings",
        ("--users", "null.parquet"): "null.parquet: column 'user_id', row 9 is null: leave out rows without an id",
        ("--users", "named.parquet", "--user-id", "item_id"): "--user-id is 'item_id', which a column of the answer",
        (
            "--user-id",
            "usr_id",
        ): "users.parquet has no column 'usr_id' (did you mean 'user_id'?); it has: country",
        ("--out", "folder"): "--out is folder, which is a folder: give the path of a Parquet file",
    }
    for options, words in cases.items():
        capsys.readouterr()
        defaults = {"--k": 5, "--out": "o.parquet", "--users": "users.parquet", "--upstream": "ctr"}
        given = defaults | dict(zip(options[::2], options[1::2], strict=True))
        code = recsys("retrieve", "--store", "runs/mine/store", *(part for each in given.items() for part in each))
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), said
        assert words in said
    assert not (mine / "o.parquet").exists()


def test_a_write_that_fails_leaves_what_was_there(mine: Path, recsys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recsys(*RETRIEVE, "--k", 5, "--out", "o.parquet") == 0
    before = (mine / "o.parquet").read_bytes()
    monkeypatch.setattr(files, "_lists", lambda retrieved: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert recsys(*RETRIEVE, "--k", 6, "--out", "o.parquet") == 2
    assert (mine / "o.parquet").read_bytes() == before
    assert not list(mine.glob(".o.parquet*"))
