"""Loads the native libraries, on first use, and turns their errors into those of this package."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from embedding_store import errors

LIBRARY_VARIABLE = "EMBEDDING_STORE_LIBRARY"
"""Environment variable: another file to load as the CPU library, say one built with sanitizers."""

CUDA_LIBRARY = Path(__file__).parent.parent / "libembedding_store_cuda.so"

_BUILD = (
    "for CUDA, install the CUDA toolkit's nvcc and build with `make install` or `pip install --no-build-isolation .`, "
    "and use a torch with CUDA on a machine with a GPU"
)
_CUDA_FUNCTIONS = ("allocate", "free", "pin", "unpin", "stream", "capture_mode", "driver", "error")
"""What native/gpu.py calls, besides ops."""
_CORRUPT = re.compile(r"(\w+Error): (.*): (.*)", re.DOTALL)


@functools.cache
def library() -> ctypes.CDLL:
    """The CPU library. Its ops are in `torch.ops.embedding_store` from here on, CUDA's too where its library loads.

    Raises:
        NativeLibraryError: it is not built or does not fit this torch; the message has the cause and the remedy.
    """
    cpu = _load(Path(os.environ.get(LIBRARY_VARIABLE) or Path(__file__).parent.parent / "libembedding_store.so"))
    if torch.cuda.is_available():
        _cuda()
    return cpu


def cuda_library() -> ctypes.CDLL:
    """CUDA's library. Where it cannot be had the CPU's works all the same.

    Raises:
        NativeLibraryError: torch finds no GPU, or the library is not built or does not load; with the cause.
    """
    library()
    found = _cuda() if torch.cuda.is_available() else f"{_BUILD} ({_why_no_gpu()})"
    if isinstance(found, str):
        raise errors.NativeLibraryError(found)
    return found


@functools.cache
def _cuda() -> ctypes.CDLL | str:
    """The library, or why it is not there."""
    if not CUDA_LIBRARY.exists():
        return f"{_BUILD} ({CUDA_LIBRARY} does not exist)"
    try:
        found = _load(CUDA_LIBRARY)
    except errors.NativeLibraryError as error:
        return str(error)
    if missing := [name for name in _CUDA_FUNCTIONS if not hasattr(found, f"embedding_store_cuda_{name}")]:
        what = f"embedding_store_cuda_{missing[0]} is missing"
        return f"{CUDA_LIBRARY} is of another version of this package ({what}): build it anew with `make install`"
    return found


def _why_no_gpu() -> str:
    """What torch says when it is told to use a GPU: that it has no CUDA, that there is no driver or one too old."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return "torch.cuda.is_available() is False"


def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise errors.NativeLibraryError(
            f"{path}: does not exist: build it with `make install` or `pip install --no-build-isolation .`, "
            f"or name another one in {LIBRARY_VARIABLE}"
        )
    try:
        torch.ops.load_library(path)
        return ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise errors.NativeLibraryError(
            f"{path}: cannot be loaded into torch {torch.__version__} ({error}): torch 2.11 or newer is needed; "
            "build it anew with `make install`"
        ) from error


@contextmanager
def translated_errors() -> Iterator[None]:
    """What native code says of a corrupt file, a RuntimeError in torch's hands, becomes its class in this package."""
    try:
        yield
    except RuntimeError as error:
        match = _CORRUPT.fullmatch(str(error))
        kind = getattr(errors, match[1], None) if match else None
        if match is None or kind is None:
            raise
        raise kind(match[2], match[3]) from None
