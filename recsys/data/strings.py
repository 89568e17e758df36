"""Columns as numbers: text becomes its 64-bit hash, and each distinct text is hashed once.

Files and writers have dictionaries of their texts already. These are hashed as they are, and no row is decoded.
"""

from __future__ import annotations

import pyarrow as pa

from embedding_store import hash_keys
from recsys.data.columns import INTEGER, STRING, cast_column


class ColumnReader:
    """Reads the pieces of a column; a dictionary that several of them have is hashed once.

    Args:
        wanted: the column's canonical type.
    """

    def __init__(self, wanted: pa.DataType) -> None:
        self._wanted = wanted
        self._texts = pa.array([], STRING)
        self._hashes: pa.Array | None = None
        """Of the texts, if all of them have been hashed."""

    def read(self, piece: pa.Array) -> pa.Array:
        """A piece in the column's canonical type, but with int64 hashes for strings; nulls stay null.

        A hash is the 8-byte BLAKE2b digest of the UTF-8 text, see `embedding_store.hash_keys`.
        """
        return self._hash(cast_column(piece, _as_stored(piece.type, self._wanted)))

    def _hash(self, array: pa.Array) -> pa.Array:
        if array.type == STRING:
            encoded = array.dictionary_encode()
            return _hash_texts(encoded.dictionary).take(encoded.indices)
        if pa.types.is_dictionary(array.type):
            return self._hash_dictionary(array)
        if pa.types.is_list(array.type) and _is_text(array.type.value_type):
            offsets = array.offsets.to_numpy()
            elements = array.values.slice(offsets[0], offsets[-1] - offsets[0])
            mask = array.is_null() if array.null_count else None
            return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), self._hash(elements), mask=mask)
        return array

    def _hash_dictionary(self, array: pa.DictionaryArray) -> pa.Array:
        texts, indices = array.dictionary.cast(STRING), array.indices
        if not texts.equals(self._texts):
            self._texts, self._hashes = texts, None
            if len(texts) > len(indices):  # it may be large for a few rows, and another one for the next
                used = indices.dictionary_encode()
                return _hash_texts(texts.take(used.dictionary)).take(used.indices)
        if self._hashes is None:
            self._hashes = _hash_texts(texts)
        return self._hashes.take(indices)


def read_column(column: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array:
    """A whole column, in one chunk or many, as `ColumnReader` reads its pieces."""
    reader = ColumnReader(wanted)
    if isinstance(column, pa.Array):
        return reader.read(column)
    chunks = [reader.read(chunk) for chunk in column.chunks or [pa.array([], column.type)]]
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _hash_texts(texts: pa.Array) -> pa.Array:
    """int64 for each of the strings; dictionaries may hold nulls too."""
    null = texts.is_null().to_numpy(zero_copy_only=False) if texts.null_count else None
    return pa.array(hash_keys(texts.fill_null("")).numpy(), INTEGER, mask=null)


def _as_stored(found: pa.DataType, wanted: pa.DataType) -> pa.DataType:
    """The canonical type, but with the dictionary that its strings are stored in."""
    if wanted == STRING and pa.types.is_dictionary(found):
        return found
    if pa.types.is_list(wanted) and wanted.value_type == STRING and not pa.types.is_null(found):
        return pa.list_(_as_stored(found.value_type, STRING))
    return wanted


def _is_text(kind: pa.DataType) -> bool:
    return kind == STRING or pa.types.is_dictionary(kind)
