"""A snapshot's files as one tensor: mapped side by side into one range of addresses, nothing copied, nothing parsed.

Each block of 64 KiB is checked against its CRC-32C before a lookup first uses it, so that opening a snapshot costs
next to nothing and no changed byte is ever served. `Mapping.check` checks all of it at once.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from embedding_store.errors import FileSizeError, MissingFileError
from embedding_store.native.library import library, translated_errors

BLOCK = 65_536
"""Bytes that share a checksum; files begin at multiples of it."""

BACKGROUND_RATE = 5e8
"""Bytes per second of a check in the background: a small part of what memory gives."""

_BLOCKS_A_STEP = 1024  # between two calls of `progress`: 64 MiB


@dataclass(frozen=True)
class MappedFile:
    """A file to map, with what its bytes must be."""

    path: str
    """On a local disk."""
    bytes: int
    """Its size."""
    crcs: np.ndarray
    """uint32 [blocks]: CRC-32C of each block, the last one shorter."""


class Mapping:
    """Files mapped by `Mapping.open`. They stay mapped, even if deleted, until the last tensor over them is gone."""

    def __init__(self, files: tuple[MappedFile, ...], storage: Tensor, starts: tuple[int, ...]) -> None:
        self.files = files
        """As given, the index first."""
        self.storage = storage
        """uint8 [bytes]: the whole range. Writing to it ends the process."""
        self.starts = starts
        """Where each file begins in it, multiples of BLOCK."""

    @staticmethod
    def open(files: Sequence[MappedFile], *, copies: bool = False, anew: bool = False) -> Mapping:
        """Map files, the index first. No file descriptor stays open.

        Args:
            copies: they can be fetched anew: one whose bytes turn out to have changed is deleted.
            anew: check every block anew. Otherwise those count as checked that another mapping in this process, of the
                very same file (inode, size, times) with the same checksum, has checked.

        Raises:
            MissingFileError, FileSizeError: a file is not there or not as long as it should be.
        """
        for file in files:
            _check_size(file)
        crcs = np.concatenate([np.asarray(file.crcs, dtype=np.uint32) for file in files])
        paths, sizes = [file.path for file in files], [file.bytes for file in files]
        library()
        with translated_errors():
            storage = torch.ops.embedding_store.map_files(paths, sizes, torch.from_numpy(crcs), copies, anew)
        return Mapping(tuple(files), storage, tuple(torch.ops.embedding_store.mapped_starts(storage)))

    def check(self, progress: Callable[[int, int], bool | None] | None = None, *, background: bool = False) -> None:
        """Check every block that was not checked yet; later lookups need not. The GIL is not held meanwhile.

        Args:
            progress: called with the bytes done and the bytes in all, now and then; False from it ends the check early.
            background: in one thread of the lowest priority, at BACKGROUND_RATE, so that lookups in other tables keep
                their latency. Otherwise as fast as torch's threads can.

        Raises:
            ChecksumError: a file's bytes are not those that were written; names the file.
        """
        size = len(self.storage)
        blocks = -(-size // BLOCK)
        for first in range(0, blocks, _BLOCKS_A_STEP):
            last = min(first + _BLOCKS_A_STEP, blocks)
            self.check_blocks(first, last - first, BACKGROUND_RATE if background else 0.0)
            if progress and progress(min(last * BLOCK, size), size) is False:
                return

    @property
    def unchecked_blocks(self) -> int:
        """How many blocks neither a lookup nor `check` has checked yet."""
        return torch.ops.embedding_store.unchecked_blocks(self.storage)

    def check_blocks(self, first: int, count: int, rate: float = 0.0) -> None:
        """Check those of `count` blocks that were not checked yet; `rate`: bytes per second at most, 0: no limit.

        Raises:
            ChecksumError: as `check`.
        """
        with translated_errors():
            torch.ops.embedding_store.check_blocks(self.storage, first, count, rate)

    def release_pages(self) -> None:
        """Empty the page table for the range; what is read later is mapped again.

        Unmapping a large range takes milliseconds, with the GIL held if a tensor's end is the cause. After this call,
        which does not hold the GIL, it takes next to nothing.
        """
        torch.ops.embedding_store.release_pages(self.storage)


def check_now(mapping: Mapping) -> bool:
    """`Mapping.check`, of the true bytes, also while a program is traced: the program itself has none of it."""
    with _disable_current_modes():
        mapping.check()
    return True


# What torch.compiler.assume_constant_result does, which imports torch._dynamo and with it sympy: 70 MB and 900 modules.
vars(check_now)["_dynamo_marked_constant"] = True


def crc32c(
    data: Any,  # bytes-like
    value: int = 0,
) -> int:
    """The CRC-32C of `data` after bytes whose checksum is `value`."""
    array = _as_bytes(data)
    function = library().embedding_store_crc32c
    function.restype = ctypes.c_uint32
    return function(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.size), ctypes.c_uint32(value))


def crc32c_blocks(
    data: Any,  # uint8 tensor, or bytes-like
) -> np.ndarray:
    """The CRC-32C of each block of BLOCK bytes, the last one shorter: uint32 [ceil(bytes / BLOCK)]."""
    array = _as_bytes(data)
    crcs = np.empty(-(-array.size // BLOCK), dtype=np.uint32)
    library().embedding_store_crc32c_blocks(
        ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.size), ctypes.c_void_p(crcs.ctypes.data)
    )
    return crcs


def _as_bytes(data: Any) -> np.ndarray:
    if isinstance(data, Tensor):
        return data.contiguous().flatten().view(torch.uint8).numpy()
    return np.frombuffer(data, dtype=np.uint8)


def _check_size(file: MappedFile) -> None:
    """Before native code does: a file of no bytes has no mapping and no block."""
    try:
        size = Path(file.path).stat().st_size
    except FileNotFoundError:
        raise MissingFileError(file.path, "does not exist: restore it from a copy") from None
    if size != file.bytes or size == 0:
        message = f"has {size} bytes, its manifest says {file.bytes}: restore it from a copy"
        raise FileSizeError(os.fspath(file.path), message)
