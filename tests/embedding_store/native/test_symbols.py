"""What the native libraries need of torch: its stable ABI, so that one binary serves every torch from 2.11 on."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import embedding_store

NM = shutil.which("nm")
pytestmark = pytest.mark.skipif(NM is None, reason="needs nm, which is not on the PATH")

LIBRARIES = ("libembedding_store.so", "libembedding_store_cuda.so")
STABLE = re.compile(r"(aoti_)?torch_\w+")  # functions of C; torch's classes and the mangled functions of C++ change
SYSTEM = re.compile(r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+|_ZNSt15__exception_ptr\w+")
CUDA = {"aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg"}
"""Which a torch without CUDA has not."""
NEWER = re.compile(r"\bSTABLE_TORCH_ERROR_CODE_CHECK\b")
"""What the headers of torch 2.11 have not, with which the libraries are built too; newer ones make the same of it."""
OPTIONAL = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}  # weak, as every library has


def needed(name: str) -> set[str]:
    """The symbols that a library wants of others."""
    path = Path(embedding_store.__file__).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not built")
    assert NM is not None
    listing = subprocess.run([NM, "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in listing.splitlines()} - OPTIONAL


@pytest.mark.parametrize("library", LIBRARIES)
def test_only_the_stable_abi_is_used(library: str):
    symbols = needed(library)
    assert any(STABLE.fullmatch(symbol) for symbol in symbols)
    others = {symbol for symbol in symbols if not STABLE.fullmatch(symbol) and not SYSTEM.fullmatch(symbol)}
    assert not others


@pytest.mark.parametrize("library", LIBRARIES)
def test_this_torch_has_all_of_it(library: str):
    folder = Path(torch.__file__).parent / "lib"
    has_cuda = (folder / "libtorch_cuda.so").exists()
    kinds = ("cpu", "cuda") if has_cuda else ("cpu",)
    libraries = [ctypes.CDLL(str(folder / f"libtorch_{kind}.so")) for kind in kinds]
    wanted = {symbol for symbol in needed(library) if STABLE.fullmatch(symbol)}
    missing = {symbol for symbol in wanted if not any(hasattr(each, symbol) for each in libraries)}
    assert missing <= (set() if has_cuda else CUDA)


def test_the_headers_of_the_oldest_torch_are_enough():
    sources = (Path(embedding_store.__file__).parent / "csrc").rglob("*.*")
    found = [path.name for path in sources if NEWER.search(path.read_text())]
    assert not found, f"{found} cannot be built with torch 2.11: use TORCH_ERROR_CODE_CHECK"
