"""A loaded snapshot: ids -> vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from embedding_store.errors import InvalidArgumentError, InvalidIdsError
from embedding_store.format.manifest import Manifest
from embedding_store.keys import hash_keys
from embedding_store.native import gpu, ops
from embedding_store.native.layout import ABSENT, BUCKET_BYTES, EMPTY, index_numbers
from embedding_store.native.library import translated_errors
from embedding_store.native.mapping import BLOCK, Mapping, check_now
from embedding_store.read.kinds import as_ids

OUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What lookups can give."""


class Table:
    """The vectors of one snapshot on one device, made by `Snapshot.load`. It never changes, whatever is published.

    A copy is the table itself. A pickled one, say for the workers of a DataLoader, is where its snapshot is and how it
    was loaded, with no vectors: loading the pickle maps the same files, and raises what Snapshot's does.
    """

    def __init__(
        self,
        manifest: Manifest,
        storage: Tensor,  # uint8 [bytes]
        layout: Tensor,  # int64 [8 + 4 * S], on the CPU or where `storage` is
        *,
        host_layout: Tensor | None = None,  # int64 [8 + 4 * S]: what lookups take; None: the same numbers on the CPU
        mapping: Mapping | None = None,
    ) -> None:
        self.manifest = manifest
        """Of the snapshot: its series, version, `as_of`, space, statistics."""
        self._storage = storage
        self.layout = gpu.copied(layout, storage.device)
        """Where they lie in `storage`, int64 [8 + 4 * S] there; see native/ops.py."""
        self.host_layout = layout.cpu() if host_layout is None else host_layout
        """The same numbers on the CPU, which ops take as well, and faster: a kernel need not read them."""
        self.mapping = mapping
        """The mapped files that `storage` is; None unless on the CPU."""
        self.reload: Callable[[], Table] | None = None
        """Loads it again where a pickle is opened; None if it was not made by `Snapshot.load`."""

    @overload
    def lookup(self, ids: Tensor, out_dtype: torch.dtype = ...) -> tuple[Tensor, Tensor]: ...
    @overload
    def lookup(self, ids: Any, out_dtype: torch.dtype = ...) -> tuple[Any, Any]: ...
    def lookup(
        self,
        ids: Any,  # int64 tensor [...], any values, on the table's device; or another column of integers [...]
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Any, Any]:
        """The vectors of `ids`; `out_dtype` is float32, float16 or bfloat16.

        An int64 tensor is looked up as it is. Other integers, NumPy arrays, pandas and Polars Series and Arrow arrays
        are converted; Series are answered with NumPy arrays, Arrow with a fixed-size list array
        and a boolean one, all in the host's memory.

        Returns:
            vectors `out_dtype` [..., D] and found bool [...]. A missing id has zeros and False; repeated ids are fine.

        Raises:
            InvalidIdsError: ids are no integers (text: see `lookup_keys`), have nulls, or are a tensor on another
                device than the table.
            ChecksumError: bytes that this lookup needs are not those that were written; names the file.
        """
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            converted, answer = as_ids(ids)
            given = converted if isinstance(ids, Tensor) else converted.to(self.device)
            vectors, found = self.lookup(given, out_dtype)
            return answer(vectors), answer(found)
        self._check(ids, out_dtype)
        with translated_errors():
            return self._lookup(ids, out_dtype)

    def lookup_pooled(
        self,
        ids: Tensor,  # int64 [N]
        offsets: Tensor,  # int64 [B + 1]: bag b holds ids[offsets[b] : offsets[b + 1]]
        weights: Tensor | None = None,  # float32 [N]
        mode: str = "sum",
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """The sum or, with `mode="mean"`, the mean of each bag's vectors. Differentiable with respect to `weights`.

        Returns:
            pooled `out_dtype` [B, D], accumulated in float32, and found int64 [B], how many ids of each bag are in the
            table. Missing ids do not count: a mean is over the found ones (also with weights), zeros if there are none.
            Nothing waits for a GPU to see `offsets`: where they do not rise from 0 to N, every value is NaN there, and
            every number of found ids -1.

        Raises:
            InvalidIdsError: ids are not an int64 tensor [N] on the table's device.
            InvalidArgumentError: offsets (what they say only on the CPU), weights or mode do not fit.
            ChecksumError: bytes that this lookup needs are not those that were written; names the file.
        """
        self._check(ids, out_dtype)
        if ids.dim() != 1:
            raise InvalidIdsError(f"ids have shape {tuple(ids.shape)}: give [N], the ids of all bags in a row")
        if mode not in ("sum", "mean"):
            raise InvalidArgumentError(f"mode is {mode!r}; use 'sum' or 'mean'")
        _check_offsets(offsets, len(ids), self.device)
        if weights is not None:
            _check_weights(weights, ids)
        with translated_errors():
            return self._lookup_pooled(ids, offsets, weights, mode, out_dtype)

    def lookup_keys(
        self,
        keys: Any,  # [N] strings or UUIDs: a sequence, a NumPy array or an Arrow string array
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """As `lookup`, by the text that the rows of a series of `ids="text"` were written under: [N, D] and [N].

        Raises:
            InvalidArgumentError: the series has int64 ids.
            InvalidIdsError: an element that is neither text nor a UUID.
        """
        if self.manifest.ids != "text":
            raise InvalidArgumentError(f"ids of series {self.manifest.series!r} are int64, not text: use lookup(ids)")
        return self.lookup(hash_keys(keys).to(self.device), out_dtype)

    def ids(self) -> Tensor:
        """A copy of all ids, int64 [R], ascending. Raises ChecksumError if the index has changed."""
        index, *overlay = (self._entries(numbers) for numbers in index_numbers(self.host_layout))
        ids = index[:, 0]
        for above in overlay:
            alive = above[:, 1] != ABSENT - 2**64
            ids = torch.cat((ids[~torch.isin(ids, above[:, 0])], above[alive, 0]))
        return ids.sort().values

    def _entries(self, numbers: Tensor) -> Tensor:
        """The entries of an index, int64 [N, 2], by its four numbers in the layout."""
        start, _, total, _ = numbers.tolist()
        if self.mapping is not None:
            first, last = start // BLOCK, -(-(start + total * BUCKET_BYTES) // BLOCK)
            with translated_errors():
                torch.ops.embedding_store.check_blocks(self._storage, first, last - first, 0.0)
        slots = self._index_storage[start : start + total * BUCKET_BYTES].view(torch.int64).view(-1, 2)
        return slots[slots[:, 1] != EMPTY - 2**64]

    @property
    def storage(self) -> Tensor:
        """Index and rows, uint8 [bytes]; with `layout` what the ops in native/ops.py take.

        All of it is checked first, because a copy, of which an exported program is one, never is. Lookups check what
        they read, and need not wait for that. Raises ChecksumError, naming the file.
        """
        if self.mapping is not None:
            check_now(self.mapping)
        return self._storage

    @property
    def dim(self) -> int:
        """D."""
        return self.manifest.dim

    @property
    def dtype(self) -> str:
        """How vectors are stored: float32, float16, bfloat16, int8 or int4."""
        return self.manifest.dtype

    @property
    def device(self) -> torch.device:
        """Where ids must be, and vectors will be."""
        return self._storage.device

    @property
    def _index_storage(self) -> Tensor:
        """What the places of the index and the overlay count from."""
        return self._storage

    def _lookup_storage(self) -> Tensor:
        """`storage` as a lookup takes it; the program that `torch.export` makes of the lookup takes a copy along."""
        exporting = torch.compiler._is_exporting_flag  # torch 2.11's compile takes is_exporting() for True
        return self.storage if exporting else self._storage

    def _lookup_layout(self) -> Tensor:
        """`layout` as a lookup takes it; programs keep to tensors of one device."""
        return self.layout if torch.compiler.is_compiling() else self.host_layout

    def _lookup(self, ids: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return ops.lookup(ids, self._lookup_storage(), self._lookup_layout(), self.dim, self.dtype, out_dtype)

    def _lookup_pooled(
        self, ids: Tensor, offsets: Tensor, weights: Tensor | None, mode: str, out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        return ops.lookup_pooled(
            ids, offsets, weights, self._lookup_storage(), self._lookup_layout(), self.dim, self.dtype, mode, out_dtype
        )

    def _check(self, ids: Any, out_dtype: torch.dtype) -> None:
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise InvalidIdsError(f"ids are {kind}: give an int64 tensor, say ids.to(torch.int64)")
        if ids.device != self.device:
            raise InvalidIdsError(f"ids are on {ids.device}, the table is on {self.device}: move one of them")
        if out_dtype not in OUT_DTYPES:
            raise InvalidArgumentError(f"out_dtype is {out_dtype}; use one of {', '.join(map(str, OUT_DTYPES))}")

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reload is None:
            raise InvalidArgumentError(f"{self!r} was not made by Snapshot.load: pickle a table that was, or its parts")
        return self.reload, ()

    def __copy__(self) -> Table:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        return self

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        m = self.manifest
        return f"Table({m.series!r}, version={m.version}, rows={m.rows}, device={str(self.device)!r})"


def pooled(
    vectors: Tensor,  # float32 [N, D]
    found: Tensor,  # bool [N]
    offsets: Tensor,  # int64 [B + 1]
    weights: Tensor | None,  # float32 [N]
    mode: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """What `lookup_pooled` gives, from what `lookup` gives of its ids."""
    if weights is not None:
        vectors = torch.where(found[:, None], vectors * weights[:, None], 0.0)
    sums = torch.segment_reduce(vectors, "sum", offsets=offsets, axis=0, initial=0.0)
    counts = torch.nn.functional.pad(found.cumsum(0), (1, 0))[offsets].diff()
    if mode == "mean":
        sums = sums / counts.clamp(min=1)[:, None]
    return sums.to(out_dtype), counts


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_weights(weights: Any, ids: Tensor) -> None:
    if not isinstance(weights, Tensor) or (weights.dtype, weights.shape) != (torch.float32, ids.shape):
        wanted = f"float32 {tuple(ids.shape)}, one for each id"
        raise InvalidArgumentError(f"weights are {_kind(weights)}: give {wanted}")
    if weights.device != ids.device:  # by which torch would choose other native code than by that of the ids
        raise InvalidArgumentError(f"weights are on {weights.device}, the ids on {ids.device}: move one of them")


def _check_offsets(offsets: Any, ids: int, device: torch.device) -> None:
    if not isinstance(offsets, Tensor) or offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 1:
        raise InvalidArgumentError(f"offsets are {_kind(offsets)}: give int64 [bags + 1]")
    if offsets.device != device:
        raise InvalidArgumentError(f"offsets are on {offsets.device}, the table is on {device}: move one of them")
    if device.type != "cpu":  # looking at them would wait for the device
        return
    falls = offsets.diff() < 0
    if offsets[0] != 0 or offsets[-1] != ids or bool(falls.any()):
        at = 0 if offsets[0] != 0 else int(falls.nonzero()[0]) + 1 if bool(falls.any()) else len(offsets) - 1
        raise InvalidArgumentError(
            f"offsets[{at}] is {int(offsets[at])}: offsets must rise from 0 to the number of ids, {ids}: say cat([0, "
            "lengths.cumsum(0)])"
        )
