"""How a copy to a device is made: how fast, until when, and into what memory."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedding_store.errors import DeviceMemoryError
from embedding_store.native import gpu
from embedding_store.read.huge_pages import in_huge_pages

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """A copy that was broken off, as asked."""


@dataclass(frozen=True)
class Manner:
    """How a copy is made."""

    rate: float = 0.0
    """Bytes per second at most that are read, checked and copied, so that lookups meanwhile hardly notice; 0: as fast
    as can be."""
    progress: Callable[[int, int], bool | None] | None = None
    """Called with the bytes read and the bytes in all, now and then; False from it breaks the copy off."""
    memory: Callable[[int, torch.device], Tensor] | None = None
    """Gives uint8 [count] on a device, to copy to; None: new memory."""


AT_ONCE = Manner()

_kept: dict[int, tuple[torch.UntypedStorage, gpu.Readers]] = {}
"""By its address, host memory whose readers could not be waited for when it was to be given back."""


def host_memory(count: int, device: torch.device) -> tuple[Tensor, gpu.Readers | None]:
    """uint8 [count] that a GPU can read, and who waits for that before the memory is given back; None on the CPU.

    In huge pages; registered, because pinned memory of torch's is rounded up to a power of 2. What a GPU reads is no
    forked child's, which has no GPU. Raises DeviceMemoryError where the host has not as much, or may not pin it.
    """
    try:
        memory = in_huge_pages(count, inherited=device.type != "cuda")
    except OSError as error:
        raise DeviceMemoryError(
            f"{count} bytes of host memory for what {device} reads there cannot be had ({error.strerror}): free some, "
            "or give more gpu_bytes"
        ) from None
    if device.type != "cuda" or count == 0:
        return memory, None
    readers = gpu.Readers(device)
    gpu.pin(memory, device)
    weakref.finalize(memory, _release, memory.untyped_storage(), readers, os.getpid()).atexit = False
    return memory, readers


def _release(memory: torch.UntypedStorage, readers: gpu.Readers, process: int) -> None:
    """Give it back, and what was kept before, as far as the readers can be waited for."""
    if os.getpid() != process:  # a forked child has no GPU
        return
    readers.note()  # compiled programs note nothing; most of them run on the stream that is current here
    _kept[memory.data_ptr()] = memory, readers
    for address in list(_kept):
        one = _kept.get(address)  # None: other threads do the same, and so does a collection in the midst of this
        if one is not None and _waited(one[1]) and _kept.pop(address, None) is not None:
            gpu.unpin(one[0], one[1].device)


def _waited(readers: gpu.Readers) -> bool:
    """`wait`; False as well where it fails: of a stream that whoever made it has destroyed, nobody knows whether it is
    done. What is read there is kept, but the memory of others is not kept with it."""
    try:
        return readers.wait()
    except RuntimeError as error:
        _log.warning("host memory that %s reads is kept, since who reads it is gone: %s", readers.device, error)
        return False
