"""Host memory in huge pages: that it is real, and lives as long as what shares it."""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from embedding_store.read.huge_pages import in_huge_pages


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(x, 16) for x in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


@pytest.mark.parametrize("count", [0, 1, 4097, 5 << 20])
def test_it_holds_what_is_written(count: int):
    memory = in_huge_pages(count)
    assert (memory.dtype, memory.shape) == (torch.uint8, (count,))
    assert not memory.any()
    memory.copy_(torch.arange(count) % 251)
    assert torch.equal(memory, (torch.arange(count) % 251).to(torch.uint8))


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages")
def test_huge_pages_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    memory = in_huge_pages(8 << 20)
    assert "hg" in flags_at(memory.data_ptr())
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    plain = in_huge_pages(8 << 20)  # kept until the kernel was asked
    flags = flags_at(plain.data_ptr())
    assert flags
    assert "hg" not in flags


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages")
def test_what_is_not_inherited_is_zeros_in_a_child():
    """It may well unmap it, too, and what the parent has stays."""
    for inherited in (True, False):
        memory = in_huge_pages(8 << 20, inherited=inherited)
        memory.fill_(7)
        assert "hg" in flags_at(memory.data_ptr())
        child = os.fork()
        if child == 0:
            found = int(memory[-1])
            del memory
            os._exit(found)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (7 if inherited else 0)
        assert int(memory[-1]) == 7


def test_the_pages_live_as_long_as_the_storage(monkeypatch: pytest.MonkeyPatch):
    class Pages(mmap.mmap):
        pass

    made = []

    def make(*arguments: Any, **options: Any) -> mmap.mmap:
        pages = Pages(*arguments, **options)
        made.append(weakref.ref(pages))
        return pages

    monkeypatch.setattr(mmap, "mmap", make)
    memory = in_huge_pages(4 << 20)
    shared = torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())
    del memory
    gc.collect()
    shared[0] = 7
    assert made[0]() is not None
    del shared
    gc.collect()
    assert made[0]() is None
