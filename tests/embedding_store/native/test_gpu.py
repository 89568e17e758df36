"""Memory of GPUs and what is refused there, with fakes; on a GPU see ../read/test_cuda.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from embedding_store.errors import DeviceMemoryError, NativeLibraryError
from embedding_store.native import gpu, library
from embedding_store.read import copying
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu, FakeStream


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch, capacity=1000)


def test_memory_is_given_back_with_the_last_tensor_over_it(fake: FakeGpu):
    memory = gpu.device_memory(600, DEVICE)
    part = memory[100:200].view(torch.int32)
    part.fill_(7)
    del memory
    assert fake.live == 600
    assert part.tolist() == [7] * 25
    del part
    assert fake.live == 0
    assert len(gpu.device_memory(10, torch.device("cpu"))) == 10
    assert fake.peak == 600


def test_a_full_gpu_is_an_error_with_both_numbers_and_a_remedy(fake: FakeGpu):
    held = gpu.device_memory(700, DEVICE)
    message = "a table takes 400 bytes of cuda:0, which has 300 bytes free: give gpu_bytes"
    with pytest.raises(DeviceMemoryError, match=message):
        gpu.device_memory(400, DEVICE)
    assert isinstance(DeviceMemoryError(), MemoryError)
    del held
    assert len(gpu.device_memory(400, DEVICE)) == 400
    assert fake.mode == 0


def test_what_torch_keeps_for_later_goes_first(fake: FakeGpu):
    fake.cached = 700
    assert len(gpu.device_memory(400, DEVICE)) == 400
    assert fake.cached == 0


def test_that_torch_keeps_what_it_has_while_a_graph_is_captured_is_no_other_error(
    fake: FakeGpu, monkeypatch: pytest.MonkeyPatch
):
    def refuse() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    fake.cached = 700
    with pytest.raises(DeviceMemoryError, match="a table takes 400 bytes of cuda:0, which has 300 bytes free"):
        gpu.device_memory(400, DEVICE)
    assert fake.mode == 0


def test_the_mode_of_captures_is_restored(fake: FakeGpu):
    def fail() -> None:
        with gpu.beside_captures(DEVICE):
            assert fake.mode == 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert fake.mode == 0
    with gpu.beside_captures(torch.device("cpu")):
        assert fake.mode == 0


def test_the_gpu_is_current_as_long_as_something_is_done_there(fake: FakeGpu):
    """In a thread another one is, and where a stream's end goes back to that one, torch begins a context there."""
    for begin in (gpu.beside_captures, gpu.aside):
        assert fake.device == 1
        with begin(DEVICE):
            assert fake.device == 0
    assert fake.device == 1


def test_what_is_done_aside_has_a_stream_to_itself(fake: FakeGpu):
    """Torch hands its 32 out in turn: one of them may be that on which another thread captures a graph."""
    with gpu.aside(DEVICE) as one, gpu.aside(DEVICE) as other:
        assert fake.current is other
        assert fake.mode == 2
    assert isinstance(one, FakeStream)
    assert isinstance(other, FakeStream)
    assert one.handle != other.handle
    assert fake.log == [f"wait {other.handle}", f"wait {one.handle}"]
    assert (fake.current.handle, fake.mode) == (0, 0)
    for _ in range(40):
        with gpu.aside(DEVICE):
            pass
    assert fake.streams == 2
    with gpu.aside(torch.device("cpu")) as none:
        assert (none, fake.mode) == (None, 0)


def test_a_stream_that_ends_in_an_error_of_the_device_is_nobodys(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    def fail_aside(error: Exception) -> None:
        with gpu.aside(DEVICE):
            raise error

    with pytest.raises(KeyError):
        fail_aside(KeyError())
    assert fake.log == ["wait 1"]
    assert fake.current.handle == 0

    def broken(_: FakeStream) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(FakeStream, "synchronize", broken)
        with pytest.raises(RuntimeError, match="illegal memory access"), gpu.aside(DEVICE):
            pass
    assert fake.mode == 0
    with gpu.aside(DEVICE):
        assert fake.streams == 2


class ReadStream:
    """Of which an event can be recorded, unless it is being captured."""

    def __init__(self, handle: int, log: list[str]) -> None:
        self.handle = handle
        self.log = log
        self.capturing = False

    def record_event(self) -> ReadStream:
        assert not self.capturing
        self.log.append(f"record {self.handle}")
        return self

    def synchronize(self) -> None:
        self.log.append(f"wait {self.handle}")


class FakeStreams:
    """What Readers ask of torch."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.streams = [ReadStream(handle, self.log) for handle in range(3)]
        self.current = self.streams[0]
        self.asked = 0
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: self.current.handle, raising=False)
        patch.setattr(torch.cuda, "current_stream", self._current)
        patch.setattr(torch.cuda, "stream", self._use)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.used.capturing)

    def _current(self, _: torch.device) -> ReadStream:
        self.asked += 1
        return self.current

    def _use(self, stream: ReadStream) -> Any:
        self.used = stream
        return contextlib.nullcontext()


def test_readers_wait_for_the_streams_that_they_noted(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    streams = FakeStreams(monkeypatch)
    readers = gpu.Readers(DEVICE)
    for i in (0, 2, 0, 2, 2):
        streams.current = streams.streams[i]
        readers.note()
    assert streams.asked == 2  # a lookup on a stream that is known asks for no Stream
    assert readers.wait()
    assert streams.log == ["record 0", "record 2", "wait 0", "wait 2"]
    streams.streams[2].capturing = True
    streams.log.clear()
    assert not readers.wait()
    assert "wait" not in "".join(streams.log)
    assert fake.mode == 0


def test_host_memory_waits_for_its_readers(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    streams = FakeStreams(monkeypatch)
    fake.log = streams.log
    memory, readers = copying.host_memory(100, DEVICE)
    assert readers is not None
    streams.current = streams.streams[1]
    readers.note()
    streams.current = streams.streams[0]
    del memory
    # A compiled lookup notes no stream: that of whoever drops the memory is waited for, too.
    assert streams.log == ["pin 100", "record 1", "record 0", "wait 1", "wait 0", "unpin"]
    memory, readers = copying.host_memory(100, DEVICE)
    assert readers is not None
    readers.note()
    streams.streams[0].capturing = True
    streams.log.clear()
    del memory
    assert streams.log == []  # to wait would end the capture: kept
    streams.streams[0].capturing = False
    copying.host_memory(10, DEVICE)  # what was kept goes with the next one
    assert streams.log.count("unpin") == 2
    assert not copying._kept
    assert copying.host_memory(0, DEVICE)[1] is copying.host_memory(10, torch.device("cpu"))[1] is None


def test_memory_whose_readers_are_gone_keeps_no_other(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    """Say a stream of another library, which has destroyed it."""

    def destroyed() -> bool:
        raise RuntimeError("CUDA error: invalid resource handle")

    FakeStreams(monkeypatch)
    memory, readers = copying.host_memory(100, DEVICE)
    monkeypatch.setattr(readers, "wait", destroyed)
    lost = memory.data_ptr()
    del memory
    for _ in range(2):
        copying.host_memory(10, DEVICE)
    assert fake.log.count("unpin") == 2
    assert list(copying._kept) == [lost]
    copying._kept.clear()


class Done(gpu.Readers):
    """Readers that need not be waited for."""

    def note(self) -> None:
        pass

    def wait(self) -> bool:
        return True


def released(at: int) -> bool:
    """Give memory back, and other memory at one step of that; False if it has fewer steps."""
    one, other = (torch.zeros(8).untyped_storage() for _ in range(2))
    steps, before = itertools.count(), sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not copying._release.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(steps) == at:
            copying._release(other, Done(DEVICE), os.getpid())
        return trace

    sys.settrace(trace)
    try:
        copying._release(one, Done(DEVICE), os.getpid())
    finally:
        sys.settrace(before)
    return next(steps) > at


def test_host_memory_is_given_back_once_whatever_comes_between(monkeypatch: pytest.MonkeyPatch):
    """Another thread gives memory back meanwhile, or a collection of garbage in the midst of it."""
    given = list[int]()
    monkeypatch.setattr(gpu, "unpin", lambda memory, device: given.append(memory.data_ptr()))
    for at in itertools.count():
        given.clear()
        if not released(at):
            break
        assert len(given) == len(set(given)) == 2
        assert not copying._kept
    assert at > 10


def test_host_memory_that_cannot_be_pinned_is_an_error_with_a_remedy(fake: FakeGpu):
    fake.may_pin = False
    message = r"100 bytes of host memory cannot be pinned for cuda:0 \(what CUDA says\): free some, raise the limit"
    with pytest.raises(DeviceMemoryError, match=message):
        copying.host_memory(100, DEVICE)
    assert (fake.log, copying._kept) == ([], {})


def test_host_memory_that_is_not_there_is_an_error_with_a_remedy(fake: FakeGpu):
    message = rf"{2**50} bytes of host memory for what cuda:0 reads there cannot be had \(.+\): free some, or give more"
    with pytest.raises(DeviceMemoryError, match=message):
        copying.host_memory(2**50, DEVICE)
    assert (fake.log, copying._kept) == ([], {})


def test_a_small_tensor_that_tables_need_is_given_back_as_they_are(fake: FakeGpu):
    with torch.inference_mode():
        there = gpu.copied(torch.arange(6).view(2, 3), DEVICE)
    assert there.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert fake.live == 48
    there += 1  # made in inference mode, of use outside of it
    del there
    assert (fake.live, fake.mode) == (0, 0)
    here = torch.arange(3)
    assert gpu.copied(here, here.device) is here


def test_a_table_of_one_row_is_looked_up_first(monkeypatch: pytest.MonkeyPatch):
    assert gpu.looks_up(torch.device("cpu"))
    real = torch.ops.embedding_store.lookup

    def wrong(*arguments: Any) -> Any:
        vectors, found = real(*arguments)
        return vectors + 1, found

    monkeypatch.setattr(torch.ops.embedding_store, "lookup", wrong)
    assert not gpu.looks_up(torch.device("cpu"))


def test_a_gpu_on_which_lookups_do_not_run_is_named(fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    def no_image(_: torch.device) -> bool:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    def full(_: torch.device) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has ...")

    gpu._try_lookup.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Old")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(gpu, "looks_up", no_image)
    message = (
        r"cuda:0, NVIDIA Old, compute capability 7.0, with a driver for CUDA 12.4: a lookup does not run there \(CUDA "
        r"error: no kernel image is available for execution on the device\): update the driver, or build for this GPU"
    )
    for _ in range(2):
        with pytest.raises(NativeLibraryError, match=message):
            gpu.usable(DEVICE)
    monkeypatch.setattr(gpu, "looks_up", full)
    message = r"cuda:0 has no memory for a first, small lookup \(CUDA out of memory\): free some"
    with pytest.raises(DeviceMemoryError, match=message):
        gpu.usable(DEVICE)
    monkeypatch.setattr(gpu, "looks_up", lambda _: False)
    with pytest.raises(NativeLibraryError, match="its answer is wrong"):
        gpu.usable(DEVICE)
    monkeypatch.setattr(gpu, "looks_up", lambda _: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert gpu.usable(torch.device("cuda")) == DEVICE
    monkeypatch.setattr(gpu, "looks_up", no_image)
    assert gpu.usable(DEVICE) == DEVICE  # once is enough
    gpu._try_lookup.cache_clear()


BROKEN = """
import sys, torch
from pathlib import Path
from embedding_store.native import library
torch.cuda.is_available = lambda: True
library.CUDA_LIBRARY = Path(sys.argv[1])
from embedding_store.native import ops
from embedding_store.native.gpu import looks_up, usable
assert looks_up(usable(torch.device("cpu")))
usable(torch.device("cuda", 1))
"""


@pytest.mark.parametrize("kind", ["missing", "broken", "old"])
def test_a_cuda_library_that_is_of_no_use_leaves_the_cpu_alone(tmp_path: Path, kind: str):
    path = tmp_path / "broken.so"
    if kind == "broken":
        path.write_bytes(b"not a library")
    elif kind == "old":  # which has not the functions that are called
        path = Path(library.__file__).parent.parent / "libembedding_store.so"
    child = subprocess.run([sys.executable, "-c", BROKEN, str(path)], capture_output=True, text=True, timeout=600)
    causes = {
        "missing": f"{path} does not exist",
        "broken": f"{path}: cannot be loaded into torch",
        "old": f"{path} is of another version of this package (embedding_store_cuda_allocate is missing): build it",
    }
    assert "NativeLibraryError: there is no lookup for device 'cuda:1': " in child.stderr
    assert causes[kind] in child.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_why_there_is_no_gpu_is_said():
    with pytest.raises(NativeLibraryError, match=r"build with `make install` .* on a machine with a GPU \(.+\)"):
        library.cuda_library()
