"""What is retrieved is what sorting every score gives; an index that is not sound, or of something else, is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedding_store import EmbeddingStore
from recsys.downstream.retrieval import VersionSkewError
from recsys.retrieval import RetrievalError, Retriever, build_index, open_exact, open_index
from recsys.retrieval.manifest import Kind, Manifest
from tests.recsys.retrieval.conftest import ITEMS, TEMPERATURE, USERS, publish, publish_prior, reference

EVERYBODY = [*range(USERS), USERS + 5]
"""The last has no vector."""


def built(store: Path, kind: Kind = "flat", **options: float) -> Path:
    folder = store.parent / "index"
    build_index(store, "ctr", folder, kind=kind, temperature=TEMPERATURE, **options)
    return folder


def check(retriever: Retriever, k: int, *, weight: float = 1.0) -> None:
    items, scores, found = retriever.search(torch.tensor(EVERYBODY), k)
    wanted, values = reference(EVERYBODY, k, weight=weight)
    known = len(EVERYBODY) if weight else USERS
    assert found.tolist() == [True] * USERS + [False]
    np.testing.assert_allclose(scores[:known].numpy(), values[:known], atol=1e-4)
    assert (items[:known].numpy() == wanted[:known]).mean() > 0.999  # two that are alike may change places
    assert (scores[known:] == float("-inf")).all()


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw"])
def test_it_is_what_sorting_every_score_gives(store: Path, kind: str, weight: float) -> None:
    """HNSW finds all of so few items."""
    if kind == "exact":
        retriever = open_exact(store, "ctr", temperature=TEMPERATURE, weight=weight)
    else:
        retriever = open_index(built(store, kind, weight=weight))
    assert retriever.items == ITEMS + (weight > 0)
    check(retriever, 20, weight=weight)
    check(retriever, ITEMS if kind != "hnsw" else 100, weight=weight)


def test_without_a_prior_in_the_store_nobody_else_gets_anything(tmp_path: Path) -> None:
    publish(tmp_path / "store", prior=False)
    retriever = open_exact(tmp_path / "store", "ctr", temperature=TEMPERATURE)
    assert (retriever.pair.weight, retriever.items) == (0, ITEMS)
    check(retriever, 7, weight=0)
    check(open_index(built(tmp_path / "store")), 7, weight=0)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Retriever, Retriever]:
    store = tmp_path_factory.mktemp("retrieval") / "store"
    publish(store)
    return open_exact(store, "ctr", temperature=TEMPERATURE), open_index(built(store))


@pytest.fixture(autouse=True)
def _both(both: tuple[Retriever, Retriever]) -> None:
    """For the test below: Hypothesis wants no fixtures."""
    global _BOTH
    _BOTH = both


@given(users=st.lists(st.integers(0, USERS + 3), max_size=9), k=st.integers(1, ITEMS + 1))
def test_every_user_is_answered_by_itself(users: list[int], k: int) -> None:
    ids, scores = reference(users, k) if users else (np.empty((0, k)), np.empty((0, k)))
    for retriever in _BOTH:
        found = retriever.search(torch.tensor(users, dtype=torch.int64), k)
        assert found.items.shape == ids.shape
        np.testing.assert_allclose(found.scores.numpy(), scores, atol=1e-4)
        assert found.found.tolist() == [user < USERS for user in users]


def test_an_index_answers_for_its_own_version(store: Path) -> None:
    folder = built(store)
    publish(store, users=USERS, items=5, as_of=2000)
    check(open_index(folder, store, upstream="ctr", version=1), 9)
    check(open_index(folder, exact=True), 9)
    with pytest.raises(RetrievalError, match="is an index of version 1, not of 2: build another one"):
        open_index(folder, store, version=2)
    with pytest.raises(RetrievalError, match="is an index of upstream 'ctr', not of 'cvr'"):
        open_index(folder, store, upstream="cvr")


def test_what_is_withdrawn_later_is_not_found(store: Path) -> None:
    folder = built(store)
    best = open_index(folder).search(torch.tensor([3]), 5).items[0].tolist()
    publish_prior(store, withdrawn=(best[0], best[2]), as_of=1001)
    for retriever in (open_index(folder), open_index(folder, exact=True)):
        assert retriever.items == ITEMS - 1
        assert retriever.search(torch.tensor([3]), 3).items[0].tolist() == [best[1], *best[3:]]
    shutil.rmtree(folder)
    assert open_index(built(store, "hnsw")).search(torch.tensor([3]), 3).items[0].tolist() == [best[1], *best[3:]]


@pytest.fixture
def refusal(store: Path) -> Callable[[], str]:
    """With what words the index is not opened."""

    def words() -> str:
        with pytest.raises(RetrievalError) as caught:
            open_index(store.parent / "index", store)
        return str(caught.value)

    return words


@pytest.mark.parametrize("name", ["index.faiss", "ids.npy"])
def test_a_changed_byte_and_a_missing_file_are_refused_by_name(
    store: Path, refusal: Callable[[], str], name: str
) -> None:
    path = built(store) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert re.search(
        f"{name} is changed .other bytes than were written.*copy the index again, or build it anew", refusal()
    )
    path.write_bytes(whole[:-1])
    assert re.search(f"{name} is changed .*bytes instead of", refusal())
    path.unlink()
    assert re.search(f"{name} is missing", refusal())


def test_a_folder_without_a_sound_manifest_is_no_index(store: Path, refusal: Callable[[], str]) -> None:
    assert re.search("is no index: it has no index.json; make one by `recsys index`", refusal())
    path = built(store) / "index.json"
    document = json.loads(path.read_text())
    assert document["series"] == "item_ctr"
    assert (document["version"], document["as_of"], document["space"], document["dim"]) == (1, 1000, "ctr-1", 8)
    path.write_text(json.dumps({**document, "format": 7}))
    assert re.search("has format 7, this version reads 1", refusal())
    path.write_text("{")
    assert re.search("is damaged", refusal())


def test_a_store_that_was_made_anew_and_a_version_that_is_gone(store: Path, refusal: Callable[[], str]) -> None:
    built(store)
    publish(store, as_of=2000)
    EmbeddingStore(store).series("user_ctr").expire(keep_last=1, dry_run=False)
    assert re.search(
        "version 1 is asked for: .*expired.*Versions of 'user_ctr' that are there: 2; .*build an index anew", refusal()
    )
    shutil.rmtree(store)
    publish(store, space="ctr-2")
    assert re.search(
        "version 1 of user_ctr in .* has space 'ctr-2', the index was built of space 'ctr-1': build", refusal()
    )


@pytest.mark.parametrize("change", [{"space": "ctr-2"}, {"as_of": 3000}])
def test_users_and_items_of_different_versions_are_refused(store: Path, change: dict[str, object]) -> None:
    """The newest version that both have is taken; one of two spaces or times is none."""
    series = EmbeddingStore(store).series("user_ctr")
    with series.write(as_of=2000, space="ctr-1") as writer:
        writer.append(torch.tensor([1]), torch.ones(1, 8))
    assert open_exact(store, "ctr").pair.users.version == 1
    options = {"as_of": 2000, "space": "ctr-1", **change}
    with EmbeddingStore(store).series("item_ctr").write(**options) as writer:
        writer.append(torch.tensor([-1]), torch.ones(1, 8))
    with pytest.raises(VersionSkewError, match=f"user and item snapshots differ in {next(iter(change))}"):
        open_exact(store, "ctr")
    with pytest.raises(VersionSkewError, match="differ in"):
        built(store)
    assert open_exact(store, "ctr", version=1).pair.users.version == 1


def test_what_cannot_be_is_told_before_anything_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, dict[str, object]] = {
        r"--upstream is 'crt', but .* has no series 'user_crt' \(did you mean 'ctr'\?\); its upstreams: ctr": {
            "upstream": "crt"
        },
        r"version 9 is asked for: .* Versions of 'user_ctr' that are there: 1; use one": {"version": 9},
        r"temperature is 0; use more than 0": {"temperature": 0},
        r"weight is -1; use 0 or more": {"weight": -1},
    }
    for words, options in cases.items():
        with pytest.raises(RetrievalError, match=words):
            open_exact(store, **{"upstream": "ctr", **options})
    with pytest.raises(RetrievalError, match=r"kind is 'ivfpq', which needs 9,984 items, and there are 301: use flat"):
        built(store, "ivfpq")
    assert [path.name for path in store.parent.iterdir()] == ["store"]
    retriever = open_exact(store, "ctr")
    for k in (0, ITEMS + 2):
        with pytest.raises(RetrievalError, match=rf"k is {k}, and 301 items of 'item_ctr' can be retrieved: use 1 to"):
            retriever.search(torch.tensor([1]), k)
    monkeypatch.setattr("recsys.retrieval.approximate.find_spec", lambda name: None)
    with pytest.raises(RetrievalError, match=r"needs faiss, .*pip install 'recsys-derm\[retrieval\]'"):
        built(store)


def test_an_index_that_is_there_stays_and_another_is_refused(store: Path) -> None:
    folder = built(store)
    before = (folder / "index.json").read_bytes()
    built(store)
    assert (folder / "index.json").read_bytes() == before
    with pytest.raises(RetrievalError, match=r"an index of kind 'flat', and 'hnsw' is asked for: choose another --out"):
        built(store, "hnsw")
    (store.parent / "mine").mkdir()
    (store.parent / "mine/thesis.tex").touch()
    with pytest.raises(RetrievalError, match="is no index"):
        build_index(store, "ctr", store.parent / "mine")
    assert Manifest.load(folder).items == ITEMS + 1


def test_no_items_are_no_index(tmp_path: Path) -> None:
    publish(tmp_path / "store", items=0, prior=False)
    with pytest.raises(RetrievalError, match="there is no item to retrieve"):
        built(tmp_path / "store")
    with pytest.raises(RetrievalError, match="k is 1, and 0 items"):
        open_exact(tmp_path / "store", "ctr").search(torch.tensor([1]), 1)


@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_faiss_and_torch_live_in_one_process(order: str) -> None:
    """Whichever comes first, with threads of both."""
    code = f"""
import {order}
import numpy as np
torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
index, vectors = faiss.IndexFlatIP(16), torch.randn(3000, 16)
index.add(vectors.numpy())
for _ in range(3):
    scores, rows = index.search(vectors[:200].numpy(), 5)
    wanted = (vectors[:200] @ vectors.T).topk(5).values
    assert np.allclose(scores, wanted, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], timeout=600, check=True)
