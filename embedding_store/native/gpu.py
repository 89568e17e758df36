"""GPUs: whether lookups run there, memory of theirs for tables, and how it is given back while others use them.

A table's memory is none of torch's caching allocator: that would keep a replaced version's tens of GB and split them
for small tensors, so that the next version does not fit, and would hand them out again while a kernel on another stream
reads them. `cudaFree` gives memory back at once, and waits until nothing on the device can be reading it: kernels on
any stream, replayed graphs too. It is called without the GIL.

Allocations, and waiting for events, are not allowed while another thread captures a CUDA graph (in its default mode,
"global"): they would fail, and end the capture. All that is done here is done in the mode "relaxed" of this thread,
see cudaThreadExchangeStreamCaptureMode, which is right because none of it belongs to a capture. Nor may it be issued
on a stream that is captured: torch has 32 streams and hands them out in turn, so that its next one may be that on which
another thread captures, which would take a copy into its graph, where nothing is copied before the replay. What is done
aside has streams that are not torch's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from embedding_store.errors import DeviceMemoryError, NativeLibraryError
from embedding_store.native.layout import EMPTY
from embedding_store.native.library import cuda_library, library

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_RELAXED = 2  # cudaStreamCaptureModeRelaxed

_idle = defaultdict[int, deque[int]](deque)
"""Of each GPU, streams that nobody has. A deque's ends are safe among threads."""


def usable(device: torch.device) -> torch.device:
    """`device`, of a GPU with its number, of the CPU without, where lookups have been seen to work: a small one takes
    place on a GPU first.

    Raises:
        NativeLibraryError: no lookup was built for this kind of device, or it does not run on this GPU or with this
            driver; the message has the cause and the remedy.
        DeviceMemoryError: it has no memory left at all.
    """
    library()
    if device.type == "cpu":
        return torch.device("cpu")  # as tensors have it: "cpu:0" is another
    if device.type != "cuda":
        raise NativeLibraryError(f"there is no lookup for device {str(device)!r}: use cpu or cuda")
    try:
        cuda_library()
    except NativeLibraryError as error:
        raise NativeLibraryError(f"there is no lookup for device {str(device)!r}: {error}") from None
    index = torch.cuda.current_device() if device.index is None else device.index
    found = torch.device("cuda", index)
    with beside_captures(found):
        _try_lookup(found)
    return found


@contextmanager
def beside_captures(device: torch.device) -> Iterator[None]:
    """What this thread does on `device`, which is current meanwhile, is no part of a capture, and does not disturb
    those of others."""
    if device.type == "cpu":
        yield
        return
    exchange = cuda_library().embedding_store_cuda_capture_mode
    # Current to the end: a thread's first call of CUDA could begin a context on another GPU, and so does the end of
    # `torch.cuda.stream` where it goes back to a stream of another one. In a thread that is the first GPU, of which
    # each process that has another one would take some hundred MB.
    with torch.cuda.device(device):
        before = exchange(_RELAXED)
        try:
            yield
        finally:
            if before >= 0:
                exchange(before)


def device_memory(count: int, device: torch.device) -> Tensor:
    """uint8 [count] on a device, given back when the last tensor over it is gone.

    Raises:
        DeviceMemoryError: the device has not as much; says how much it has.
    """
    if device.type == "cpu" or count == 0:
        return torch.empty(count, dtype=torch.uint8, device=device)
    with torch.cuda.device(device):
        block = _Block(_allocate(count, device), count)
    weakref.finalize(block, _free, block.address, device.index, os.getpid()).atexit = False
    return torch.as_tensor(block, device=device)


def copied(
    values: Tensor,  # any dtype and shape
    device: torch.device,
) -> Tensor:
    """`values` on a device, there when this returns, in memory that is given back as a table's is. Torch's allocator
    would hand what a dropped table leaves to whoever asks next, while a lookup on another stream is at it still."""
    if device.type != "cuda" or values.device.type == device.type:
        return values.to(device)
    with torch.inference_mode(False), beside_captures(device):
        return device_memory(values.nbytes, device).view(values.dtype).view(values.shape).copy_(values)


def sent(
    values: Tensor,  # any dtype and shape, on the device or the CPU
    device: torch.device,
) -> Tensor:
    """`values` on a device, for what is issued on the current stream from now on. The host does not wait until they are
    there: they go by way of a pinned copy, so that the caller's may change at once."""
    if values.device == device:
        return values
    with beside_captures(device):
        staged = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
        return staged.to(device, non_blocking=True)


@contextmanager
def aside(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """A stream that nobody else has, current meanwhile; all that was issued there is done at the end. It waits for no
    other, disturbs no captures, and is not disturbed by them. None on the CPU."""
    if device.type == "cpu":
        yield None
        return
    with beside_captures(device):
        idle = _idle[device.index]
        try:
            handle = idle.pop()
        except IndexError:
            handle = _new_stream(device)
        stream = torch.cuda.ExternalStream(handle, device=device)
        try:
            with torch.cuda.stream(stream):
                yield stream
        finally:
            stream.synchronize()  # where that fails, nobody gets the stream any more
            idle.append(handle)


def pin(memory: Tensor, device: torch.device) -> None:
    """Have a GPU read uint8 [N > 0] of the host, until `unpin`.

    Raises:
        DeviceMemoryError: the host has not as much that it may keep in place.
    """
    address, count = ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(memory.nbytes)
    with torch.cuda.device(device):
        error = cuda_library().embedding_store_cuda_pin(device.index, address, count)
    if error:
        raise DeviceMemoryError(
            f"{memory.nbytes} bytes of host memory cannot be pinned for {device} ({_message(error)}): free some, raise "
            "the limit on locked memory (ulimit -l), or give more gpu_bytes"
        )


def unpin(memory: torch.UntypedStorage, device: torch.device) -> None:
    """What `pin` began."""
    with torch.cuda.device(device):
        cuda_library().embedding_store_cuda_unpin(device.index, ctypes.c_void_p(memory.data_ptr()))


class Readers:
    """The streams on which host memory may be being read by a GPU, so that it is not given back before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        """With its number."""
        self._streams: dict[int, torch.cuda.Stream] = {}

    def note(self) -> None:
        """What reads the memory is issued on the current stream now. Costs a look into a dict."""
        handle = torch._C._cuda_getCurrentRawStream(self.device.index)
        if handle not in self._streams:
            self._streams[handle] = torch.cuda.current_stream(self.device)

    def wait(self) -> bool:
        """Wait for all that was issued on these streams; False, without waiting, if one is being captured just now:
        to wait for it would end the capture."""
        events = []
        with beside_captures(self.device):
            for stream in tuple(self._streams.values()):
                with torch.cuda.stream(stream):
                    if torch.cuda.is_current_stream_capturing():
                        return False
                events.append(stream.record_event())
            for event in events:
                event.synchronize()
        return True


class _Block:
    """Memory of a GPU as `torch.as_tensor` takes it; the tensor keeps it."""

    def __init__(self, address: int, count: int) -> None:
        self.address = address
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (count,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 2,
        }


def _allocate(count: int, device: torch.device) -> int:
    """Address of as many bytes. What torch's allocator keeps for later goes first if there are not enough."""
    native, address = cuda_library(), ctypes.c_void_p()
    error = _OUT_OF_MEMORY
    for spare in (False, True):
        if spare:
            with beside_captures(device), suppress(RuntimeError):  # torch may refuse while a graph is captured
                torch.cuda.empty_cache()
        error = native.embedding_store_cuda_allocate(device.index, ctypes.c_int64(count), ctypes.byref(address))
        if error != _OUT_OF_MEMORY:
            break
    if error == _OUT_OF_MEMORY:
        with beside_captures(device):
            free, _ = torch.cuda.mem_get_info(device)
        raise DeviceMemoryError(
            f"a table takes {count} bytes of {device}, which has {free} bytes free: give gpu_bytes, or fewer, to keep "
            "rows in host memory, or free some; while a LiveTable replaces a version, both are in memory"
        )
    if error or address.value is None:
        raise RuntimeError(f"{count} bytes of {device} cannot be allocated: {_message(error)}")
    return address.value


def _new_stream(device: torch.device) -> int:
    native, handle = cuda_library(), ctypes.c_void_p()
    with torch.cuda.device(device):
        error = native.embedding_store_cuda_stream(device.index, ctypes.byref(handle))
    if error or handle.value is None:
        raise RuntimeError(f"no stream of {device} can be made: {_message(error)}")
    return handle.value


def _free(address: int, index: int, process: int) -> None:
    if os.getpid() != process:  # a forked child has no GPU
        return
    with torch.cuda.device(index):
        cuda_library().embedding_store_cuda_free(index, ctypes.c_void_p(address))


def _message(error: int) -> str:
    function = cuda_library().embedding_store_cuda_error
    function.restype = ctypes.c_char_p
    return function(error).decode()


@functools.cache
def _try_lookup(device: torch.device) -> None:
    """Once for each GPU, before gigabytes are copied to it."""
    try:
        with torch.cuda.device(device):
            cause = None if looks_up(device) else "its answer is wrong"
    except (torch.OutOfMemoryError, MemoryError) as error:
        message = f"{device} has no memory for a first, small lookup ({str(error).partition('. ')[0]}): free some"
        raise DeviceMemoryError(message) from None
    except RuntimeError as error:
        cause = str(error).partition("\n")[0]
    if cause is not None:
        major, minor = torch.cuda.get_device_capability(device)
        driver = cuda_library().embedding_store_cuda_driver()
        raise NativeLibraryError(
            f"{device}, {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, with a driver for "
            f"CUDA {driver // 1000}.{driver % 1000 // 10}: a lookup does not run there ({cause}): update the driver, "
            "or build for this GPU with `make install` and a CUDA toolkit no newer than the driver"
        )


def looks_up(device: torch.device) -> bool:
    """Whether a table of one row answers as it should."""
    bucket = torch.tensor([[7, 0], *[[0, EMPTY - 2**64]] * 3])
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    storage = torch.zeros(256, dtype=torch.uint8)
    storage[:80] = torch.cat((bucket.view(torch.uint8).flatten(), row.view(torch.uint8).flatten()))
    layout = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 64, -1, -1, 1])
    asked = torch.tensor([7, 8]).to(device)
    vectors, found = torch.ops.embedding_store.lookup(
        asked, storage.to(device), layout.to(device), 4, "float32", torch.float32
    )
    return found.tolist() == [True, False] and torch.equal(vectors.cpu(), torch.cat((row, torch.zeros(1, 4))))
