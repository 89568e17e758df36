"""Series of text: strings and UUIDs by a 64-bit hash, and what happens when two of them share one."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import (
    DuplicateIdsError,
    EmbeddingStore,
    HashCollisionError,
    InvalidIdsError,
    Series,
    Snapshot,
    hash_keys,
    keys,
)
from embedding_store.native.hashing import hash_texts
from tests.embedding_store.helpers import files, named_files

UUIDS = [UUID("12345678-1234-5678-1234-56789ABCDEF0"), UUID(int=0)]


@pytest.fixture
def series(store: EmbeddingStore) -> Series:
    return store.create("user_text", dim=2, ids="text")


def write(series: Series, *operations: list[str], base: Snapshot | None = None, **options) -> Snapshot:
    """Append lists of keys, each with its place in the call as value; those that start with "-" are deleted."""
    with series.write(as_of=1, space="s", base=base, **options) as writer:
        for value, names in enumerate(operations):
            if str(names[0]).startswith("-"):
                writer.delete([name[1:] for name in names])
            else:
                writer.append(names, torch.full((len(names), 2), float(value)))
    return writer.snapshot


def content(snapshot: Snapshot) -> dict[str, float]:
    snapshot.verify()
    return {
        key: value
        for part in snapshot.batches(2)
        for key, value in zip(part.keys.to_pylist(), part.vectors[:, 0].tolist(), strict=True)
    }


def test_the_hash_is_the_documented_one():
    texts = ["", "a", "film-1", "é", "\U0001f3ac", "a" * 5000]
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    assert hash_keys(texts).tolist() == [int.from_bytes(digest, "little", signed=True) for digest in digests]
    assert hash_keys([]).tolist() == []


def by_definition(texts: list[str]) -> list[int]:
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


def test_texts_of_every_length_and_in_several_threads():
    texts = [f"{i:04d}" * 80 for i in range(20_000)]
    texts = [text[: i % 301] for i, text in enumerate(texts)]
    assert hash_keys(texts).tolist() == by_definition(texts)


@settings(deadline=None)
@given(st.lists(st.text(max_size=400)), st.integers(0, 3))
def test_the_hash_of_any_text(texts: list[str], skipped: int):
    array = pa.array(["x"] * skipped + texts, pa.large_string()).slice(skipped)
    assert hash_keys(array).tolist() == by_definition(texts)
    assert hash_keys(pa.array(texts, pa.string())).tolist() == by_definition(texts)


@pytest.mark.parametrize("offsets", [[-1, 2], [0, 2, 1], [0, 4], [2, 2, 4], [2**62, 2**62 + 1]])
def test_offsets_outside_of_the_text_are_refused(offsets: list[int]):
    with pytest.raises(ValueError, match="expected ascending offsets of 0"):
        hash_texts(np.array(offsets), np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        pa.array,
        lambda texts: np.array(texts, object),
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(["x", *texts]).slice(1),
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
    ],
)
def test_every_form_of_keys_gives_the_same_ids(series: Series, form: Callable):
    texts = ["u1", "u22", "ü"]
    assert torch.equal(hash_keys(form(texts)), hash_keys(texts))
    assert content(write(series, form(texts))) == dict.fromkeys(texts, 0.0)


def test_uuids_are_their_canonical_text(series: Series):
    texts = ["12345678-1234-5678-1234-56789abcdef0", "00000000-0000-0000-0000-000000000000"]
    assert torch.equal(hash_keys(UUIDS), hash_keys(texts))
    assert list(content(write(series, UUIDS))) == texts


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("abc", "keys are str: give a list or an array of strings or UUIDs"),
        (torch.tensor([1]), "keys are Tensor: give a list"),
        (["a", 1], "key 1 is 1, a int: give a string or a UUID"),
        (["a", None], "key 1 is None"),
        (pa.array(["a", None]), "keys have 1 nulls"),
        (pa.array([1, 2]), "key 0 is 1, a int"),
        (["\ud800"], "text that is not Unicode"),
    ],
)
def test_what_is_no_key(series: Series, wrong: object, message: str):
    with pytest.raises(InvalidIdsError, match=message):
        hash_keys(wrong)
    with series.write(as_of=1, space="s") as writer, pytest.raises(InvalidIdsError, match=message):
        writer.append(wrong, torch.ones(2, 2))


@pytest.mark.parametrize("rows_per_batch", [None, 2])
def test_keys_come_back_from_snapshots_deltas_and_compactions(series: Series, rows_per_batch: int | None):
    base = write(series, ["a", "b", "", "ü" * 300], ["c"], rows_per_batch=rows_per_batch)
    assert content(base) == {"a": 0.0, "b": 0.0, "": 0.0, "ü" * 300: 0.0, "c": 1.0}
    delta = write(series, ["-b", "-x"], ["a", "d"], base=base, rows_per_batch=rows_per_batch)
    expected = {"a": 1.0, "": 0.0, "ü" * 300: 0.0, "c": 1.0, "d": 1.0}
    assert content(delta) == expected
    assert content(series.compact()) == expected
    vectors, found = series.latest().load().lookup_keys(["d", "b", "c"])
    assert (vectors[:, 0].tolist(), found.tolist()) == ([1.0, 0.0, 1.0], [True, False, True])
    assert files(series) == named_files(series)


def test_duplicate_keys(series: Series):
    with pytest.raises(DuplicateIdsError):
        write(series, ["a", "b"], ["a"])
    assert content(write(series, ["a", "b"], ["a"], duplicates="last", rows_per_batch=1)) == {"a": 1.0, "b": 0.0}


def test_long_keys_end_a_batch(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("embedding_store.write.batches.BATCH_BYTES", 1000)
    names = [f"{i}" * 300 for i in range(9)]
    snapshot = write(series, *([name] for name in names), rows_per_batch=100)
    assert list(content(snapshot)) == names
    assert len(snapshot.manifest.segments) >= 3


@pytest.fixture
def first_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash that knows nothing but the first letter."""
    monkeypatch.setattr(keys, "hash_texts", lambda offsets, text: text[offsets[:-1]].astype(np.int64))


@pytest.mark.usefixtures("first_letters")
@pytest.mark.parametrize("duplicates", ["error", "last"])
@pytest.mark.parametrize(
    ("base", "operations"),
    [
        (None, [["a1", "b1", "a2"]]),
        (None, [["a1", "b1"], ["c1", "a2"]]),
        (None, [["a1"], ["a1"], ["a2"]]),
        (["a1", "b1"], [["b1", "a2"]]),
        (["a1", "b1"], [["-a2"]]),
        (["b1"], [["a1"], ["-a2"]]),
        (["b1"], [["-a1"], ["a2"]]),
        (["b1"], [["-a1"], ["-a2"], ["a1"]]),
        (["a1"], [["-a1"], ["a2"]]),
    ],
)
def test_two_keys_of_one_hash_are_an_error_that_names_both(
    series: Series, base: list[str] | None, operations: list[list[str]], duplicates: str
):
    on = None if base is None else write(series, base)
    before = files(series)
    for rows_per_batch in (None, 1):
        with pytest.raises(HashCollisionError, match=r"keys 'a\d' and 'a\d' have the same 64-bit hash, 97: rename"):
            write(series, *operations, base=on, duplicates=duplicates, rows_per_batch=rows_per_batch)
    assert files(series) == before


@pytest.mark.usefixtures("first_letters")
def test_the_same_key_again_is_no_collision(series: Series):
    base = write(series, ["a1", "b1", "c1"], rows_per_batch=1)
    delta = write(series, ["a1"], ["-a1", "-b1"], ["a1", "d1"], base=base, duplicates="last", rows_per_batch=1)
    assert content(delta) == {"a1": 2.0, "c1": 0.0, "d1": 2.0}
