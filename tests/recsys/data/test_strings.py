from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import strings
from recsys.data.columns import STRING
from recsys.data.schema import Feature, Schema
from recsys.data.stream import EventStream
from recsys.data.strings import ColumnReader, read_column

TEXTS = st.lists(st.none() | st.text(max_size=2) | st.sampled_from(["a", "b"]), max_size=8)
"""Dictionaries: empty, with nulls, with the same text twice."""
INDEX_TYPES = st.sampled_from([pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64()])
TEXT_TYPES = st.sampled_from([pa.string(), pa.large_string(), pa.string_view()])
LISTS: dict[str, Callable[[pa.Array, list[int]], pa.Array]] = {
    "list": lambda values, offsets: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
    "large_list": lambda values, offsets: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values),
}


@st.composite
def dictionary_arrays(draw: st.DrawFn, most: int = 12) -> pa.DictionaryArray:
    """Rows of a dictionary, some of them null, some of its entries unused; perhaps a slice of more rows."""
    texts = draw(TEXTS)
    index = st.none() | st.integers(0, len(texts) - 1) if texts else st.none()
    rows = draw(st.lists(index, max_size=most))
    array = pa.DictionaryArray.from_arrays(pa.array(rows, draw(INDEX_TYPES)), pa.array(texts, draw(TEXT_TYPES)))
    first = draw(st.integers(0, len(rows)))
    return array.slice(first, draw(st.integers(0, len(rows) - first)))


def _plain(array: pa.Array) -> pa.Array:
    """The hashes of the same texts without a dictionary."""
    return read_column(pa.array(array.to_pylist(), STRING), STRING)


@settings(max_examples=200, deadline=None)
@given(array=dictionary_arrays())
def test_a_dictionary_hashes_as_its_texts(array: pa.DictionaryArray) -> None:
    found = read_column(array, STRING)
    assert found.type == pa.int64()
    assert found.equals(_plain(array))


@settings(max_examples=100, deadline=None)
@given(chunks=st.lists(dictionary_arrays(), max_size=3))
def test_each_chunk_may_have_its_own_dictionary(chunks: list[pa.DictionaryArray]) -> None:
    chunks = [chunk.cast(pa.dictionary(pa.int32(), pa.string())) for chunk in chunks]
    column = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))
    assert read_column(column, STRING).to_pylist() == _plain(column).to_pylist()


@settings(max_examples=100, deadline=None)
@given(array=dictionary_arrays(), kind=st.sampled_from(list(LISTS)), data=st.data())
def test_lists_of_dictionary_texts(array: pa.DictionaryArray, kind: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(array)), min_size=1, max_size=5)))
    lists = LISTS[kind](array, ends)
    lists = lists.slice(data.draw(st.integers(0, len(lists))))
    plain = read_column(pa.array(lists.to_pylist(), pa.list_(STRING)), pa.list_(STRING))
    assert read_column(lists, pa.list_(STRING)).to_pylist() == plain.to_pylist()


@settings(max_examples=100, deadline=None)
@given(array=dictionary_arrays(), other=dictionary_arrays(), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_pieces_of_one_dictionary_and_of_another(
    array: pa.DictionaryArray, other: pa.DictionaryArray, cuts: list[int]
) -> None:
    reader = ColumnReader(STRING)
    ends = sorted({min(cut, len(array)) for cut in cuts})
    pieces = [array.slice(low, high - low) for low, high in zip([0, *ends], [*ends, len(array)], strict=True)]
    for piece in (*pieces, other, *pieces):
        assert reader.read(piece).equals(_plain(piece))


def test_a_dictionary_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([f"text-{number}" for number in range(100)])
    hashed: list[int] = []
    hash_keys = strings.hash_keys
    monkeypatch.setattr(strings, "hash_keys", lambda keys: hashed.append(len(keys)) or hash_keys(keys))

    def read(pieces: int, rows: int) -> list[int]:
        hashed.clear()
        reader = ColumnReader(STRING)
        for _ in range(pieces):  # of a file, each with its own copy of the dictionary
            copy = pa.array(texts.to_pylist())
            reader.read(pa.DictionaryArray.from_arrays(pa.array(np.arange(rows) % 7, pa.int32()), copy))
        return hashed

    assert read(3, 1000) == [100]
    assert read(1, 20) == [7], "of a large one only what the rows use"
    assert read(4, 20) == [7, 100], "unless it comes again"


@pytest.mark.parametrize("row_group", [7, 1000])
def test_the_stream_reads_a_dictionary_as_the_same_texts(tmp_path: Path, row_group: int) -> None:
    texts = pa.array([None if row % 5 == 0 else f"w{row * row % 13}" for row in range(300)], STRING)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(301) // 3, pa.int32()), texts.slice(0, 100).fill_null("none"))
    columns = {"timestamp": np.arange(300), "user_id": np.arange(300), "item_id": texts.fill_null("gone")}
    columns |= {"word": texts, "words": lists}
    pq.write_table(pa.table(columns), tmp_path / "plain.parquet", row_group_size=row_group)
    encoded = pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())
    columns |= {name: columns[name].dictionary_encode() for name in ("item_id", "word")} | {"words": encoded}
    pq.write_table(pa.table(columns), tmp_path / "encoded.parquet", row_group_size=row_group)
    schema = Schema(
        features=(
            Feature(name="word", owner="item", kind="id", rows=100),
            Feature(name="words", owner="item", kind="ids", rows=100),
        )
    )
    plain, found = (
        list(EventStream([tmp_path / name], schema, batch_size=32, shuffle_batches=3, drop_last=False))
        for name in ("plain.parquet", "encoded.parquet")
    )
    assert [batch.item_ids.tolist() for batch in found] == [batch.item_ids.tolist() for batch in plain]
    for left, right in zip(found, plain, strict=True):
        assert left.sparse.values().tolist() == right.sparse.values().tolist()
        assert left.sparse.lengths().tolist() == right.sparse.lengths().tolist()
