"""Counts of accesses: their file, and what is refused."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_store import (
    Accesses,
    ChecksumError,
    FileFormatError,
    InvalidArgumentError,
    MissingFileError,
    NewerFormatError,
)
from embedding_store.storage import replacing as replacing_module


def crc(ids: list[int], counts: list[int]) -> dict[str, str]:
    """The metadata of a file, as its docstring has them."""
    crc32 = zlib.crc32(struct.pack(f"<{2 * len(ids)}q", *ids, *counts))
    return {"embedding_store.accesses": "1", "embedding_store.crc32": str(crc32)}


SOME = Accesses(torch.tensor([7, -(2**63), 2**63 - 1]), torch.tensor([9, 9, 1]))


@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**40), max_size=50))
def test_a_file_gives_back_what_was_saved(tmp_path: Path, counts: dict[int, int]):
    falling = sorted(counts.items(), key=lambda item: -item[1])
    ids, often = (torch.tensor([pair[i] for pair in falling], dtype=torch.int64) for i in (0, 1))
    Accesses(ids, often).save(tmp_path / "hot.parquet")
    loaded = Accesses.load(tmp_path / "hot.parquet")
    assert torch.equal(loaded.ids, ids)
    assert torch.equal(loaded.counts, often)
    assert [path.name for path in tmp_path.iterdir()] == ["hot.parquet"]


def test_it_says_what_it_is():
    assert len(SOME) == 3
    assert repr(SOME) == "Accesses(3 ids, 19 counted)"


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "hot.parquet"
    SOME.save(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(replacing_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Accesses(SOME.ids[:1], SOME.counts[:1]).save(path)
    assert len(Accesses.load(path)) == 3
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidArgumentError, match=r"nowhere is not a folder: make it first"):
        SOME.save(tmp_path / "nowhere" / "hot.parquet")


def test_changed_bytes_are_noticed(tmp_path: Path):
    path = tmp_path / "hot.parquet"
    ids = torch.randperm(2000, generator=torch.Generator().manual_seed(1)) << 40
    Accesses(ids, torch.arange(2000, 0, -1)).save(path)
    content, refused = path.read_bytes(), 0
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            loaded = Accesses.load(path)
        except (ChecksumError, FileFormatError):
            refused += 1
        else:  # a byte of what Parquet tells besides
            assert torch.equal(loaded.ids, ids)
            assert loaded.counts.tolist() == list(range(2000, 0, -1))
    assert refused > 20
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"hot\.parquet: cannot be read .* save it again"):
        Accesses.load(path)


@pytest.mark.parametrize(
    ("ids", "counts", "metadata", "error", "message"),
    [
        ([1, 2], [2, 1], {}, FileFormatError, "is no file of accesses"),
        ([1, 2], [2, 1], {"embedding_store.accesses": "2"}, NewerFormatError, "is of format 2, this package reads 1"),
        ([1, None], [2, 1], {"embedding_store.accesses": "1"}, FileFormatError, "is no file of accesses"),
        ([1.0], [2], {"embedding_store.accesses": "1"}, FileFormatError, "is no file of accesses"),
        ([1, 2], [2, 1], {"embedding_store.accesses": "1"}, ChecksumError, "are not those that were written"),
        ([1, 1], [2, 1], crc([1, 1], [2, 1]), FileFormatError, "has an id twice"),
        ([1, 2], [1, 2], crc([1, 2], [1, 2]), FileFormatError, "counts out of order"),
        ([1, 2], [1, 0], crc([1, 2], [1, 0]), FileFormatError, "counts out of order"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, ids, counts, metadata, error, message: str):
    path = tmp_path / "hot.parquet"
    pq.write_table(pa.table({"id": ids, "count": counts}).replace_schema_metadata(metadata), path)
    with pytest.raises(error, match=message):
        Accesses.load(path)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(MissingFileError, match="save a table's accesses there first"):
        Accesses.load(tmp_path / "hot.parquet")
