"""How the native library is found, what is said where it is not, and how its errors become those of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import embedding_store
from embedding_store import ChecksumError, StoreError, errors
from embedding_store.native.library import library, translated_errors


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def test_a_library_that_is_not_built_is_an_error_with_the_remedy(tmp_path: Path):
    missing = tmp_path / "none.so"
    child = run("from embedding_store.native.library import library; library()", EMBEDDING_STORE_LIBRARY=str(missing))
    assert child.returncode != 0
    assert f"NativeLibraryError: {missing}: does not exist: build it with `make install`" in child.stderr


def test_a_library_that_does_not_load_is_an_error_with_the_cause(tmp_path: Path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    child = run("from embedding_store.native.library import library; library()", EMBEDDING_STORE_LIBRARY=str(broken))
    assert child.returncode != 0
    assert f"NativeLibraryError: {broken}: cannot be loaded into torch" in child.stderr


def test_the_library_is_loaded_once():
    assert library() is library()


@pytest.mark.parametrize("path", ["/data/index.hash", "s3://bucket/a: b/index.hash", "/with\nnewline"])
def test_native_errors_get_their_class_and_path(path: str):
    with pytest.raises(ChecksumError) as error, translated_errors():
        raise RuntimeError(f"ChecksumError: {path}: bytes 0 .. 65535 are not those that were written")
    assert error.value.path == path
    assert str(error.value) == f"{path}: bytes 0 .. 65535 are not those that were written"


@pytest.mark.parametrize("message", ["something else", "ZeroDivisionError: a: b", "StoreError: a"])
def test_other_errors_pass_unchanged(message: str):
    with pytest.raises(RuntimeError, match=message) as error, translated_errors():
        raise RuntimeError(message)
    assert type(error.value) is RuntimeError


def test_every_class_that_native_code_names_exists():
    names = set()
    for source in (Path(embedding_store.__file__).parent / "csrc").rglob("*.cpp"):
        names |= {part.split('"')[0] for part in source.read_text().split('raise_corrupt("')[1:]}
    assert names == {"ChecksumError", "FileSizeError", "InvalidIndexError", "MissingFileError"}
    assert all(issubclass(getattr(errors, name), StoreError) for name in names)
