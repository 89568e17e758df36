"""Writing one snapshot, or a part of one: data files as rows come in, then the index, and the manifest last.

Nothing is visible before the manifest is put, and the manifest is put only if its version is still free. Of several
writers at once each gets a version of its own.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedding_store.arguments import cpu_tensor, integer
from embedding_store.dtypes import encode
from embedding_store.errors import (
    InvalidArgumentError,
    InvalidIdsError,
    InvalidVectorsError,
    WriterClosedError,
)
from embedding_store.format.files import RowFormat, Rows
from embedding_store.format.manifest import Manifest
from embedding_store.keys import hash_array, key_array
from embedding_store.read.snapshot import Snapshot
from embedding_store.storage.base import Storage
from embedding_store.write.commit import check_planned, commit, manifest_of
from embedding_store.write.draft import DUPLICATES, Draft
from embedding_store.write.fragments import Fragment, SharedDraft, part_of, write_fragment
from embedding_store.write.sums import row_sums, slab_rows


class RowWriter(ABC):
    """Takes rows and deletes inside a `with` block; what becomes of them is its subclasses' part."""

    def __init__(
        self,
        storage: Storage,
        form: RowFormat,
        *,
        duplicates: str,
        base: Manifest | None,
        rows_per_batch: int | None,
        prefix: str | None = None,
    ) -> None:
        if duplicates not in DUPLICATES:
            raise InvalidArgumentError(f"duplicates is {duplicates!r}; use one of {', '.join(DUPLICATES)}")
        if rows_per_batch is not None:
            rows_per_batch = integer(rows_per_batch, "rows_per_batch", least=1, why=", or None for some 32 MiB")
        self._storage, self._form, self._base = storage, form, base
        self._duplicates, self._rows_per_batch, self._prefix = duplicates, rows_per_batch, prefix
        self._draft: Draft | None = None
        self._state = "new"

    @property
    def rows(self) -> int:
        """Rows appended so far, duplicates included."""
        return 0 if self._draft is None else self._draft.rows

    def append(
        self,
        ids: Any,  # int64 [N], tensor or array; keys in a series of text: see hash_keys
        vectors: Tensor | np.ndarray,  # float [N, D]
    ) -> None:
        """Add rows; in a delta they replace those that the base has under these ids. Either all of them are taken or,
        with an error of the first two classes, none. Tensors may be on any device and need grad: they are copied.

        Raises:
            InvalidIdsError: not int64 [N], or keys that are not text.
            InvalidVectorsError: not float [N, D], or a value that the series' dtype cannot hold: NaN, infinity or too
                large; the message names the id. Both: sparse or nested, or without values: a meta or fake tensor.
            HashCollisionError: a key's hash is that of another key in the base.
            WriterClosedError: outside the `with` block.
        """
        draft = self._open_draft()
        numbers, keys = self._ids(ids)
        vectors = _checked(numbers, vectors, self._form)
        self._state = "broken"  # until all rows are taken: a full disk may cut them short
        as_it_is = self._form.dtype.torch_dtype == vectors.dtype  # nothing to convert piece by piece
        slab = max(1, len(numbers)) if as_it_is else slab_rows(self._form.dim)
        for start in range(0, len(numbers), slab):
            part = slice(start, start + slab)
            encoded = encode(vectors[part], self._form.dtype)
            draft.append(Rows(numbers[part], encoded, None if keys is None else keys[part]))
        self._state = "open"

    def delete(
        self,
        ids: Any,  # int64 [N], tensor or array; keys in a series of text: see hash_keys
    ) -> None:
        """Leave these ids out of a delta; those that its base lacks are fine.

        Raises:
            InvalidIdsError, HashCollisionError, WriterClosedError: as `append`.
            InvalidArgumentError: the writer has no base.
        """
        draft = self._open_draft()
        if self._base is None:
            raise InvalidArgumentError("a whole snapshot has nothing to delete: write with base=, or leave ids out")
        numbers, keys = self._ids(ids)
        self._state = "broken"
        draft.delete(numbers, keys)
        self._state = "open"

    def __enter__(self) -> Self:
        if self._state != "new":
            raise WriterClosedError(f"the writer is {self._state}: a writer writes once, get another one")
        self._draft = Draft(
            self._storage,
            self._form,
            base=self._base,
            duplicates=self._duplicates,
            rows_per_batch=self._rows_per_batch,
            prefix=self._prefix,
        )
        self._state = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._draft is not None
        state, self._state = self._state, "closed"
        if kind is not None:
            self._draft.discard()
            return
        try:
            if state == "broken":
                raise WriterClosedError("an append failed half-way: nothing is published, write the snapshot again")
            finished = self._finish(self._draft)
        except BaseException:
            self._draft.discard()
            raise
        finished()

    @abstractmethod
    def _finish(self, draft: Draft) -> Callable[[], None]:
        """Make what the rows are for. Returns what is to be done when they are not to be discarded any more."""

    def _open_draft(self) -> Draft:
        if self._draft is None or self._state != "open":
            raise WriterClosedError(f"the writer is {self._state}: use it inside `with series.write(...) as writer:`")
        return self._draft

    def _ids(self, ids: Any) -> tuple[Tensor, pa.LargeStringArray | None]:
        """Ids int64 [N] and, in a series of text, their keys."""
        if self._form.ids == "text":
            keys = key_array(ids)
            return hash_array(keys), keys
        numbers = cpu_tensor(ids, "ids", InvalidIdsError)
        if numbers.dtype != torch.int64 or numbers.dim() != 1:
            kind = f"{numbers.dtype} {list(numbers.shape)}"
            raise InvalidIdsError(f"ids are {kind}: give int64 [N], say ids.to(torch.int64)")
        return numbers, None


class SnapshotWriter(RowWriter):
    """Streams one snapshot, made by `Series.write`; use it in a `with` block.

    Memory: two record batches of 32 MiB and, at the end, some tens of MiB while the index is built, whatever the
    number of rows. While the caller prepares the next rows, a thread writes the last ones.
    """

    def __init__(
        self,
        storage: Storage,
        form: RowFormat,
        *,
        series: str,
        schema: int,
        as_of: int,
        space: str,
        duplicates: str = "error",
        base: Manifest | None = None,
        rows_per_batch: int | None = None,
    ) -> None:
        super().__init__(storage, form, duplicates=duplicates, base=base, rows_per_batch=rows_per_batch)
        check_planned(storage, series=series, schema=schema, as_of=as_of, space=space, base=base)
        self._series, self._schema, self._as_of, self._space = series, schema, as_of, space
        self._snapshot: Snapshot | None = None

    @property
    def snapshot(self) -> Snapshot:
        """What was published. Raises WriterClosedError before the block has ended cleanly."""
        if self._snapshot is None:
            raise WriterClosedError("nothing is published yet: the snapshot exists after the writer's `with` block")
        return self._snapshot

    def _finish(self, draft: Draft) -> Callable[[], None]:
        manifest = manifest_of(
            draft.finish(),
            self._form,
            series=self._series,
            schema=self._schema,
            as_of=self._as_of,
            space=self._space,
            base=self._base,
        )

        def publish() -> None:
            self._snapshot = commit(self._storage, manifest, draft.written, base=self._base)

        return publish


class FragmentWriter(RowWriter):
    """Streams one part of a snapshot that others write parts of too, made by `Series.fragment`; use it in a `with`
    block. At its clean end the part is on the disk, `fragment` says so, and nothing is visible: `Series.commit` is for
    that. Memory as of a SnapshotWriter.
    """

    def __init__(
        self, storage: Storage, draft: SharedDraft, part: int, *, base: Manifest | None, duplicates: str, **options: Any
    ) -> None:
        part = part_of(draft, part)
        prefix = f"{draft.folder}/{part:06d}-{uuid.uuid4().hex[:12]}-"
        super().__init__(storage, draft.form, duplicates=duplicates, base=base, prefix=prefix, **options)
        self._shared, self._part = draft, part
        self._fragment: Fragment | None = None

    @property
    def fragment(self) -> Fragment:
        """What `Series.commit` wants. Raises WriterClosedError before the block has ended cleanly."""
        if self._fragment is None:
            raise WriterClosedError("nothing is written yet: the fragment exists after the writer's `with` block")
        return self._fragment

    def _finish(self, draft: Draft) -> Callable[[], None]:
        assert self._prefix is not None
        fragment = write_fragment(self._storage, self._shared, self._part, self._prefix, draft)

        def keep() -> None:
            self._fragment = fragment

        return keep


def _checked(ids: Tensor, vectors: Tensor | np.ndarray, form: RowFormat) -> Tensor:
    """Vectors float [N, D] as a tensor, known to fit."""
    vectors, dtype = cpu_tensor(vectors, "vectors", InvalidVectorsError), form.dtype
    if not vectors.is_floating_point() or tuple(vectors.shape) != (len(ids), form.dim):
        wanted = f"float [{len(ids)}, {form.dim}]"
        raise InvalidVectorsError(f"vectors are {vectors.dtype} {list(vectors.shape)}: give {wanted}, one row an id")
    if vectors.dtype == torch.float32 and row_sums(vectors)[0] <= dtype.limit:  # bounds every value, and is quicker
        return vectors
    slab = slab_rows(form.dim)
    for start in range(0, len(ids), slab):
        part = vectors[start : start + slab]
        least, greatest = (float(x) for x in torch.aminmax(part))
        if not (-dtype.limit <= least and greatest <= dtype.limit):  # NaN is neither
            wrong = ~(part.abs() <= dtype.limit)
            row = int(wrong.any(1).nonzero()[0])
            value, reason = float(part[row][wrong[row]][0]), f"{dtype.name} holds finite values up to {dtype.limit:.6g}"
            where = f"the vector of id {int(ids[start + row])} (row {start + row})"
            raise InvalidVectorsError(f"{where} holds {value}: {reason}")
    return vectors
