"""A GPU's memory on the CPU, counted: what native/gpu.py asks of CUDA and of torch, without either."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedding_store.native import gpu

DEVICE = torch.device("cuda", 0)


class FakeStream:
    """What is waited for there is noted, and what waits."""

    def __init__(self, handle: int, log: list[str]) -> None:
        self.handle = handle
        self.log = log

    def wait_stream(self, other: Any) -> None:
        self.log.append(f"{self.handle} after {other.handle}")

    def synchronize(self) -> None:
        self.log.append(f"wait {self.handle}")


class FakeGpu:
    """So many bytes; a byte that is given back is overwritten."""

    def __init__(self, patch: pytest.MonkeyPatch, capacity: int = 2**40) -> None:
        self.capacity = capacity
        self.cached = 0
        """Bytes that torch's allocator keeps for later."""
        self.live = 0
        self.peak = 0
        self.mode = 0
        """How captures of other threads bind this one: 0 is CUDA's default, 2 relaxed."""
        self.log: list[str] = []
        """What was pinned and no more, what was waited for, and what a test adds."""
        self.may_pin = True
        self.current = FakeStream(0, self.log)
        """The stream that is."""
        self.streams = 0
        """How many were made, besides torch's."""
        self._blocks: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        self._thread = threading.local()
        library = SimpleNamespace(
            embedding_store_cuda_allocate=self._allocate,
            embedding_store_cuda_free=self._free,
            embedding_store_cuda_capture_mode=self._exchange,
            embedding_store_cuda_pin=self._pin,
            embedding_store_cuda_unpin=self._unpin,
            embedding_store_cuda_stream=self._make_stream,
            embedding_store_cuda_driver=lambda: 12040,
            embedding_store_cuda_error=lambda _: b"what CUDA says",
        )
        patch.setattr(gpu, "cuda_library", lambda: library)
        patch.setattr(gpu, "_idle", defaultdict(deque))
        patch.setattr(torch, "as_tensor", self._as_tensor)
        patch.setattr(torch.cuda, "device", self._make_current)
        patch.setattr(torch.cuda, "Stream", None)  # one of torch's may be any of them
        patch.setattr(torch.cuda, "ExternalStream", lambda handle, device: FakeStream(handle, self.log))
        patch.setattr(torch.cuda, "stream", self._use)
        patch.setattr(torch.cuda, "current_stream", lambda _: self.current)
        patch.setattr(torch.cuda, "empty_cache", self._empty_cache)
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (self.capacity - self.live - self.cached, self.capacity))

    @property
    def device(self) -> int:
        """The number of the GPU that is current in this thread: another one, until this one is made that."""
        return getattr(self._thread, "device", 1)

    @contextlib.contextmanager
    def _make_current(self, device: torch.device | int) -> Iterator[None]:
        before, self._thread.device = self.device, device if isinstance(device, int) else device.index
        try:
            yield
        finally:
            self._thread.device = before

    def _allocate(self, device: int, count: ctypes.c_int64, address: Any) -> int:
        assert device == self.device == 0
        bytes = count.value
        if self.live + self.cached + bytes > self.capacity:
            return 2
        block = (ctypes.c_uint8 * bytes)()
        self._blocks[ctypes.addressof(block)] = block
        ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.addressof(block)
        self.live += bytes
        self.peak = max(self.peak, self.live)
        return 0

    def _free(self, device: int, address: ctypes.c_void_p) -> int:
        assert device == self.device == 0
        assert address.value is not None
        block = self._blocks.pop(address.value)
        ctypes.memset(block, 0xAB, len(block))
        self.live -= len(block)
        return 0

    def _pin(self, device: int, address: ctypes.c_void_p, count: ctypes.c_int64) -> int:
        assert device == self.device == 0
        assert address.value is not None
        if not self.may_pin:
            return 2
        self.log.append(f"pin {count.value}")
        return 0

    def _unpin(self, device: int, address: ctypes.c_void_p) -> int:
        assert device == self.device == 0
        assert address.value is not None
        self.log.append("unpin")
        return 0

    def _make_stream(self, device: int, handle: Any) -> int:
        assert (device, self.device, self.mode) == (0, 0, 2)
        self.streams += 1
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = self.streams
        return 0

    @contextlib.contextmanager
    def _use(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        assert self.device == 0
        try:
            yield
        finally:
            assert self.device == 0  # else this goes back to another one, and begins a context there
            self.current = before

    def _exchange(self, mode: int) -> int:
        assert self.device == 0
        before, self.mode = self.mode, mode
        return before

    def _empty_cache(self) -> None:
        assert self.mode == 2
        self.cached = 0

    def _as_tensor(self, block: Any, device: torch.device) -> Tensor:
        assert device == DEVICE
        interface = block.__cuda_array_interface__
        assert interface["typestr"] == "|u1"
        view = (ctypes.c_uint8 * interface["shape"][0]).from_address(interface["data"][0])
        view.block = block  # type: ignore[attr-defined]
        return torch.from_numpy(np.ctypeslib.as_array(view))
