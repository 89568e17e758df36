"""Rows into data files: one buffer is filled while a thread writes the other one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pyarrow as pa
import torch

from embedding_store.dtypes import Encoded
from embedding_store.errors import InvalidArgumentError
from embedding_store.format.arrow import DataWriter
from embedding_store.format.files import NewFile, RowFormat, Rows, create_checked
from embedding_store.format.manifest import MAX_SEGMENTS, ROW_BITS, DataFile
from embedding_store.storage.base import Storage
from embedding_store.write.sums import Sums

BATCH_BYTES = 32 << 20  # of a record batch, and of each of two buffers
FILE_BYTES = 1 << 30  # after so many a new file is begun
FILE_SECONDS = 600.0  # a slow writer finishes a file at least this often, to show that it lives: see Series.clean


class _Buffer:
    """Room for a record batch."""

    def __init__(self, form: RowFormat, rows: int) -> None:
        self._ids = torch.empty(rows, dtype=torch.int64)
        self._encoded = Encoded.empty(rows, form.dim, form.dtype)
        self._keys: list[pa.LargeStringArray] = []
        self._text = form.ids == "text"
        self.rows = self.key_bytes = 0

    def take(self, rows: Rows) -> None:
        """Copy rows behind those taken before."""
        self._ids[self.rows : self.rows + len(rows.ids)].copy_(rows.ids)
        self._encoded.copy_(self.rows, rows.encoded)
        if rows.keys is not None:
            self._keys.append(rows.keys)
            self.key_bytes += rows.keys.nbytes
        self.rows += len(rows.ids)

    def content(self) -> Rows:
        """The rows taken; they share the buffer's memory."""
        keys = pa.concat_arrays(self._keys) if self._text else None
        return Rows(self._ids[: self.rows], self._encoded.slice(0, self.rows), keys)

    def clear(self) -> None:
        """Make room."""
        self._keys, self.rows, self.key_bytes = [], 0, 0


class BatchWriter:
    """Writes rows as record batches into files. End it with `finish` or `abort`.

    Errors of the thread that writes come out of the next `append`, or of `finish`.
    """

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        form: RowFormat,
        *,
        rows_per_batch: int | None,
        first_segment: int,
        first_file: int,
        on_batch: Callable[[Rows, int], None],
    ) -> None:
        """
        Args:
            prefix: what the paths of its files begin with, a folder at least.
            on_batch: called with every record batch, whose rows are a view, and its location, by the caller's thread.
        """
        self._storage, self._prefix, self._form = storage, prefix, form
        self._rows_per_batch = rows_per_batch or max(1, BATCH_BYTES // form.dtype.row_bytes(form.dim))
        self._on_batch = on_batch
        self._segment, self._first_file = first_segment, first_file
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        self._free.put(_Buffer(form, self._rows_per_batch))
        self._buffer = _Buffer(form, self._rows_per_batch)
        self._file_bytes, self._file_begun = 0, time.monotonic()
        self._jobs: queue.SimpleQueue[tuple[_Buffer, bool] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._aborted = False
        self._open: tuple[ExitStack, NewFile, DataWriter] | None = None
        self._files: list[DataFile] = []
        self.rows = 0
        """Rows taken."""
        self.sums = Sums(form)
        """Over the rows taken."""
        self._thread = threading.Thread(target=self._run, name="embedding_store.writer", daemon=True)
        self._thread.start()

    @property
    def next_location(self) -> int:
        """Where the next row will lie."""
        return self._segment << ROW_BITS | self._buffer.rows

    @property
    def next_file(self) -> int:
        """The number of the first file name that is not used."""
        return self._first_file + len(self._files)

    def append(self, rows: Rows) -> None:
        """Take rows; they are copied."""
        self.sums.add(rows.encoded)
        start = 0
        while start < len(rows.ids):
            if self._error is not None:
                raise self._error
            stop = min(len(rows.ids), start + self._rows_per_batch - self._buffer.rows)
            keys = None if rows.keys is None else rows.keys.slice(start, stop - start)
            self._buffer.take(Rows(rows.ids[start:stop], rows.encoded.slice(start, stop), keys))
            self.rows += stop - start
            start = stop
            late = time.monotonic() - self._file_begun > FILE_SECONDS
            if late or self._buffer.rows == self._rows_per_batch or self._buffer.key_bytes >= BATCH_BYTES:
                self._seal(end_file=late)

    def close(self) -> None:
        """No more rows: let the thread write what is left."""
        if self._buffer.rows:
            self._seal(end_file=False)
        self._jobs.put(None)

    def finish(self) -> list[DataFile]:
        """After `close`: wait until all files are durable."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._files

    def abort(self) -> None:
        """Stop as soon as possible; the files are not whole."""
        self._aborted = True
        self._jobs.put(None)
        self._thread.join()

    def _seal(self, end_file: bool) -> None:
        """Hand the buffer to the thread and wait for the other one."""
        if self._segment == MAX_SEGMENTS:
            raise InvalidArgumentError(
                f"a snapshot has at most {MAX_SEGMENTS} record batches: set rows_per_batch higher"
            )
        buffer = self._buffer
        self._on_batch(buffer.content(), self._segment << ROW_BITS)
        self._segment += 1
        self._file_bytes += buffer.rows * self._form.dtype.row_bytes(self._form.dim) + buffer.key_bytes
        end_file = end_file or self._file_bytes >= FILE_BYTES
        if end_file:
            self._file_bytes, self._file_begun = 0, time.monotonic()
        self._jobs.put((buffer, end_file))
        self._buffer = self._free.get()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            buffer, end_file = job
            if self._error is None and not self._aborted:
                try:
                    self._write(buffer, end_file)
                except BaseException as error:  # for the caller's thread
                    self._error = error
            buffer.clear()
            self._free.put(buffer)
        if self._open is not None:
            self._end()

    def _write(self, buffer: _Buffer, end_file: bool) -> None:
        if self._open is None:
            stack = ExitStack()
            path = f"{self._prefix}vectors-{self.next_file:05d}.arrow"
            new = stack.enter_context(create_checked(self._storage, path))
            self._open = stack, new, DataWriter(new.sink, self._form)
        _, new, data = self._open
        data.write(buffer.content())
        new.sink.flush()
        if end_file:
            self._end_file()

    def _end(self) -> None:
        """End the file that is open; after an error or `abort` the storage gives it up."""
        if self._error is None and not self._aborted:
            try:
                self._end_file()
            except BaseException as error:  # for the caller's thread
                self._error = error
        elif self._open is not None:
            cause = self._error or InterruptedError("the writer was aborted")
            with suppress(BaseException):
                self._open[0].__exit__(type(cause), cause, cause.__traceback__)

    def _end_file(self) -> None:
        assert self._open is not None
        stack, new, data = self._open
        data.close()
        self._open = None
        stack.close()
        self._files.append(DataFile(**vars(new.stored), segments=tuple(data.segments)))
