"""One version of a series: immutable ids -> vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from embedding_store import arguments
from embedding_store.arguments import integer
from embedding_store.dtypes import DTYPES, decode
from embedding_store.errors import MissingFileError, PinMismatchError
from embedding_store.format.files import healed, mapped_file
from embedding_store.format.index import Header
from embedding_store.format.manifest import Manifest, Statistics
from embedding_store.history.refusals import reasons
from embedding_store.history.tags import pointed
from embedding_store.history.tombstones import gone
from embedding_store.history.versions import Versions
from embedding_store.native import gpu
from embedding_store.native.mapping import BACKGROUND_RATE, MappedFile, Mapping
from embedding_store.read.budget import Budget, budget_of
from embedding_store.read.copy_sizes import copied_bytes
from embedding_store.read.copying import AT_ONCE, Manner
from embedding_store.read.table import Table
from embedding_store.scan.index import read_headers
from embedding_store.scan.locations import index_layout
from embedding_store.scan.rows import live_rows, read_rows, row_format
from embedding_store.scan.verify import verify as check_all
from embedding_store.storage.base import Storage

FILES = 4  # fetched at once


class Batch(NamedTuple):
    """Some rows of a snapshot."""

    ids: Tensor  # int64 [N]
    vectors: Tensor  # float32 [N, D]
    keys: pa.StringArray | None  # [N], series of text only


class Snapshot:
    """A published snapshot, got from a Series. Its manifest is in memory; the vectors are read by `load`.

    A pickled one is its place and a digest of its content. Loading the pickle opens it there, and raises
    VersionExpiredError or VersionNotFoundError if it is gone, PinMismatchError if another has its number.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage = storage
        self.manifest = manifest

    @property
    def series(self) -> str:
        """Name of the series."""
        return self.manifest.series

    @property
    def version(self) -> int:
        """1, 2, 3, ..."""
        return self.manifest.version

    @property
    def schema(self) -> int:
        """Number of the series' schema that `dim` and `dtype` are of."""
        return self.manifest.schema

    @property
    def as_of(self) -> int:
        """Event time up to which the vectors know the world, ms since the epoch."""
        return self.manifest.as_of

    @property
    def space(self) -> str:
        """Vectors of two spaces must not be compared or averaged."""
        return self.manifest.space

    @property
    def rows(self) -> int:
        """Number of ids."""
        return self.manifest.rows

    @property
    def dim(self) -> int:
        """D."""
        return self.manifest.dim

    @property
    def dtype(self) -> str:
        """How vectors are stored."""
        return self.manifest.dtype

    @property
    def device_bytes(self) -> int:
        """What a copy on a device takes there, index and rows: see `load`."""
        return copied_bytes(self.manifest)

    @property
    def statistics(self) -> Statistics:
        """Mean norm, mean vector, least and greatest id."""
        return self.manifest.statistics

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags that point here now, read anew at each access."""
        return tuple(name for name, version in pointed(self._storage).items() if version == self.version)

    @property
    def refused(self) -> tuple[str, ...] | None:
        """Why it was refused, None if it was not; read anew at each access. See Series.refuse."""
        return reasons(self._storage, self.version)

    def load(
        self,
        device: torch.device | str = "cpu",
        *,
        verify: bool = False,
        gpu_bytes: int | None = None,
        hot_ids: Tensor | None = None,  # int64 [N]
        manner: Manner = AT_ONCE,
    ) -> Table:
        """A table for lookups: mapped from the files on the CPU, copied to another device.

        Nothing is read but the index's header and the checksums. On the CPU each block of 64 KiB is checked when a
        lookup first touches it: changed bytes are an error then, never a wrong vector. A copy to a device checks all.

        Of an object store the files come into the cache first, and are checked on their way. A copy whose bytes have
        changed since is deleted when that is noticed: by `load` and `verify`, which fetch another and go on, or by a
        lookup, which raises ChecksumError; a table loaded anew is sound then.

        Args:
            device: where lookups take place.
            verify: check everything now.
            gpu_bytes: keep only so many bytes of index and rows in the device's memory, the other rows in pinned host
                memory. If it does not hold the index, that lies there too, and a warning says what would.
            hot_ids: with `gpu_bytes`, ids whose rows should be in the device's memory, the most important one first,
                say `ids` of what an earlier table counted: see TieredTable.accesses.
            manner: how fast a copy is made, and into what memory.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
            VersionExpiredError: its files are gone because it was expired.
            InvalidArgumentError, NativeLibraryError: no such device, no lookup for its kind, or none that runs there;
                `gpu_bytes` is below 0.
            InvalidIdsError: `hot_ids` are not int64 [N].
            DeviceMemoryError: the device has too little memory, or the host for the rows that it should read there.
            StoppedError: `manner.progress` broke the copy off.
        """
        budget = budget_of(gpu_bytes, hot_ids)
        place = gpu.usable(given := arguments.device(device))
        # A table of tensors made in inference mode could not be used outside of it.
        with torch.inference_mode(False), gpu.beside_captures(place):
            table = healed(self._storage, lambda: self._load(place, verify, budget, manner))
        table.reload = partial(self.load, given, gpu_bytes=gpu_bytes, hot_ids=hot_ids)
        return table

    def load_checked(
        self,
        device: torch.device | str,
        progress: Callable[[int, int], bool | None] | None = None,
        *,
        background: bool = False,
        memory: Callable[[int, torch.device], Tensor] | None = None,
        gpu_bytes: int | None = None,
        hot_ids: Tensor | None = None,  # int64 [N]
    ) -> Table:
        """As `load`, with every block that has not been checked yet checked now: no lookup finds changed bytes later.

        Args:
            device, gpu_bytes, hot_ids: as `load`.
            progress, background: of `Mapping.check`, which may end early by them; a copy to a device is made in the
                same manner.
            memory: gives uint8 [count] on the device: make a copy there, on the CPU too.

        Raises:
            StoreError: as `load`.
            StoppedError: of read/copying.py: a copy to a device ended early.
        """
        manner = Manner(BACKGROUND_RATE if background else 0.0, progress, memory)

        def load() -> Table:
            table = self.load(device, gpu_bytes=gpu_bytes, hot_ids=hot_ids, manner=manner)
            if table.mapping is not None:
                table.mapping.check(progress, background=background)
            return table

        return healed(self._storage, load)

    def _load(self, device: torch.device, verify: bool, budget: Budget | None, manner: Manner) -> Table:
        mapping, headers = self._map(anew=verify)
        if verify:
            check_all(self._storage, self.manifest, mapping)
        layout = table_layout(self.manifest, mapping.starts, headers)
        if device.type == "cpu" and budget is None and manner.memory is None:
            return Table(self.manifest, mapping.storage, layout, mapping=mapping)
        from embedding_store.read.tiered import TieredTable
        from embedding_store.read.upload import upload, upload_tiered  # not needed where only the CPU serves

        dtype, index_path = DTYPES[self.dtype], self._storage.locate(self.manifest.index.path)
        if budget is None:
            copy = upload(
                mapping, layout, dim=self.dim, dtype=dtype, device=device, index_path=index_path, manner=manner
            )
            return Table(self.manifest, *copy)
        tiered = upload_tiered(
            mapping,
            layout,
            dim=self.dim,
            dtype=dtype,
            device=device,
            budget=budget,
            index_path=index_path,
            manner=manner,
        )
        return TieredTable(self.manifest, tiered)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything: checksums, that Arrow finds the columns where the manifest says, and that index and data
        files agree on every id. `progress` is called with the bytes read and the bytes in all.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
            VersionExpiredError: its files are gone because it was expired.
        """
        healed(self._storage, lambda: check_all(self._storage, self.manifest, self._map(anew=True)[0], progress))

    def batches(self, rows: int = 65_536, *, part: int = 0, of: int = 1) -> Iterator[Batch]:
        """All vectors, at most `rows` at a time, in stored order. Memory: one batch; what is read is checked.

        Args:
            rows: at most so many at once.
            part, of: every `of`-th batch, from number `part` on: the share of one of so many processes.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
        """
        rows, of = integer(rows, "rows", least=1), integer(of, "of", least=1)
        part = integer(part, "part", least=0)
        form = row_format(self.manifest)
        alive = live_rows(self._storage, self.manifest)
        for some in read_rows(self._storage, self.manifest.data, form, alive=alive, chunk=rows, part=part, of=of):
            keys = None if some.keys is None else some.keys.cast(pa.string())
            yield Batch(some.ids, decode(some.encoded, self.dim, form.dtype), keys)

    def _map(self, *, anew: bool) -> tuple[Mapping, list[Header]]:
        """The files side by side, the index first and the overlay last, to be checked `anew` or not; and the headers
        of these two."""
        try:
            files = self._mapped_files()
            headers = read_headers(self._storage, self.manifest)
            return Mapping.open(files, copies=self._storage.copies, anew=anew), headers
        except MissingFileError:
            tombstone = gone(self._storage, self.version)
            if tombstone is None:
                raise
            raise tombstone.error() from None

    def _mapped_files(self) -> list[MappedFile]:
        index, *overlay = self.manifest.indexes
        files = (*index.pieces, *self.manifest.data, *(piece for one in overlay for piece in one.pieces))
        if not self._storage.copies:  # threads would take longer to start than the files to open
            return [mapped_file(self._storage, file) for file in files]
        with ThreadPoolExecutor(FILES) as pool:
            return list(pool.map(partial(mapped_file, self._storage), files))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._storage, self.series, self.version, self.manifest.content)

    def __copy__(self) -> Snapshot:
        return self  # it never changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Snapshot:
        return self

    def __repr__(self) -> str:
        return f"Snapshot({self.series!r}, version={self.version}, as_of={self.as_of}, rows={self.rows})"


def _reopen(storage: Storage, series: str, version: int, content: str) -> Snapshot:
    """The snapshot that was pickled."""
    manifest = Versions(storage, series).find(version)
    if manifest.content != content:
        what = f"version {version} of series {series!r} in {storage.locate('')}"
        raise PinMismatchError(f"{what} is another snapshot than was pickled: open the one that is wanted, by version")
    return Snapshot(storage, manifest)


def table_layout(manifest: Manifest, starts: Sequence[int], headers: Sequence[Header]) -> Tensor:
    """Where a table's parts lie in its storage, int64 [8 + 4 * segments], and 4 more with an overlay, see
    native/ops.py; `starts`: of the files, the index first and the overlay last; `headers`: of these two."""
    index, *overlay = headers
    numbers = [*index_layout(starts[0], index), len(manifest.segments), 0, len(overlay), 0]
    data = starts[len(manifest.index.pieces) :]
    for file, start in zip(manifest.data, data, strict=False):
        for segment in file.segments:
            columns = (segment.vector, segment.scale, segment.offset)
            numbers += [*(-1 if column is None else start + column for column in columns), segment.rows]
    for header in overlay:
        numbers += index_layout(data[len(manifest.data)], header)
    return torch.tensor(numbers, dtype=torch.int64)
