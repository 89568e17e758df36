import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.errors import DataError
from recsys.data.ranks import ALONE, Ranks
from recsys.refresh import checksums as checksums_module
from recsys.refresh import fingerprints as fingerprints_module
from recsys.refresh.checksums import combine, crcs_of
from recsys.refresh.fingerprints import Fingerprints, read_together
from recsys.train.distributed import Environment
from tests.recsys.data.threads import run_threads

HOUR = 3_600_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock forward, ns: files that were just written have been left alone for as long."""

    def forward(ahead: int) -> None:
        monkeypatch.setattr(fingerprints_module, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + ahead))

    return forward


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    crc = fingerprints_module._crc
    monkeypatch.setattr(fingerprints_module, "_crc", lambda path: names.append(path.name) or crc(path))
    return names


def write(root: Path, **contents: bytes) -> list[Path]:
    root.mkdir(exist_ok=True)
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return [root / name for name in contents]


def start(root: Path, memory: Path) -> str:
    """What a start sees of all files."""
    known = Fingerprints(root, memory)
    found = known.of(sorted(root.iterdir()))
    known.save()
    return found


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "a", x=b"some bytes")

    def of(path: Path) -> str:
        return Fingerprints(path.parent, tmp_path / "none.json").of([path])

    first = of(path)
    copy = Path(shutil.copytree(tmp_path / "a", tmp_path / "b")) / "x"
    assert of(copy) == first, "wherever it lies"
    os.utime(copy, ns=(1, 1))
    assert of(copy) == first, "whenever it was written"
    copy.write_bytes(b"some bytez")
    assert of(copy) != first, "one bit, no size"
    assert of(path.rename(path.with_name("y"))) != first
    with pytest.raises(DataError, match=r"a/x cannot be read: .*Days must appear, and go, as a whole"):
        of(path)


def test_a_start_reads_nothing_twice(tmp_path: Path, clock: Callable[[int], None], read: list[str]) -> None:
    root, memory = tmp_path / "data", tmp_path / "files.json"
    clock(HOUR)
    write(root, a=b"one", b=b"two")
    first = start(root, memory)
    assert read == ["a", "b"]
    known = memory.read_bytes()
    assert start(root, memory) == first
    assert read == ["a", "b"]
    assert memory.read_bytes() == known
    write(root, c=b"three")
    second = start(root, memory)
    assert second != first
    assert read == ["a", "b", "c"]
    (root / "c").unlink()
    assert start(root, memory) == first
    assert list(json.loads(memory.read_text())) == ["a", "b"], "what is gone is forgotten"


def test_a_changed_byte_is_seen_whatever_it_does_to_the_times(
    tmp_path: Path, clock: Callable[[int], None], read: list[str]
) -> None:
    root, memory = tmp_path / "data", tmp_path / "files.json"
    clock(HOUR)
    path, _ = write(root, a=b"one", b=b"two")
    first, before = start(root, memory), path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock has ticked
        path.write_bytes(b"One")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert start(root, memory) != first
    assert read == ["a", "b", "a"]
    path.write_bytes(b"one")
    assert start(root, memory) == first


def test_a_copy_is_read_once_and_is_the_same(tmp_path: Path, clock: Callable[[int], None], read: list[str]) -> None:
    root, memory = tmp_path / "data", tmp_path / "files.json"
    clock(HOUR)
    write(root, a=b"one", b=b"two")
    first = start(root, memory)
    copy = Path(shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile))
    assert [start(copy, memory), start(copy, memory)] == [first, first]
    assert read == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("age", "seen"), [(0, True), (1_999_999_999, True), (2_000_000_000, False)])
def test_a_file_is_not_trusted_that_was_read_just_after_it_was_written(tmp_path: Path, age: int, seen: bool) -> None:
    """A second write within one tick of the file system's clock leaves size and times as they were when it was read."""
    root, memory = tmp_path / "data", tmp_path / "files.json"
    (path,) = write(root, a=b"one")
    first = start(root, memory)
    path.write_bytes(b"two")
    stat, known = path.stat(), json.loads(memory.read_text())
    known["a"] |= {"modified": stat.st_mtime_ns, "changed": stat.st_ctime_ns, "when": stat.st_ctime_ns + age}
    memory.write_text(json.dumps(known))
    assert (start(root, memory) != first) == seen


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"size": 3}}', '{"a": {"other": 3}}', "\x00"])
def test_what_another_version_remembers_is_read_anew(tmp_path: Path, content: str) -> None:
    root, memory = tmp_path / "data", tmp_path / "files.json"
    write(root, a=b"one")
    first = start(root, memory)
    memory.write_text(content)
    assert start(root, memory) == first
    assert list(json.loads(memory.read_text())) == ["a"]


@settings(max_examples=50, deadline=None)
@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_sums_of_pieces_make_the_sum_of_the_whole(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@settings(max_examples=30, deadline=None)
@given(contents=st.lists(st.binary(max_size=40), max_size=4), world_size=st.integers(1, 3), piece=st.integers(1, 50))
def test_ranks_share_the_reading_of_files(contents: list[bytes], world_size: int, piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums_module, "PIECE_BYTES", piece)
        bytes_read: list[int] = []
        crc_of = checksums_module._crc_of
        patch.setattr(checksums_module, "_crc_of", lambda *piece: bytes_read.append(piece[-1]) or crc_of(*piece))
        files = []
        for number, content in enumerate(contents):
            files.append((Path(folder, str(number)), len(content)))
            files[-1][0].write_bytes(content)
        found = run_threads(lambda ranks: crcs_of(files, ranks), world_size)
        assert found == [[zlib.crc32(content) for content in contents]] * world_size
        assert sum(bytes_read) == sum(map(len, contents)), "each byte once"


def test_what_the_ranks_have_read_is_not_read_again(
    tmp_path: Path,
    clock: Callable[[int], None],
    read: list[str],
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, memory = tmp_path / "data", tmp_path / "files.json"
    paths = write(root, a=b"one", b=b"two")
    with monkeypatch.context() as patch:
        written = max(path.stat().st_ctime_ns for path in paths)
        patch.setattr(fingerprints_module, "time", SimpleNamespace(time_ns=lambda: written))
        read_together(root, memory, lambda: paths, environment)
    assert not memory.exists(), "just written: whoever asks reads them"
    clock(HOUR)
    read_together(root, memory, lambda: paths, environment)
    first = start(root, memory)
    assert read == []
    memory.unlink()
    assert start(root, memory) == first
    assert read == ["a", "b"]
    paths[0].unlink()
    memory.unlink()
    read_together(root, memory, lambda: paths, environment)
    with pytest.raises(DataError, match=r"data/a cannot be read"):
        Fingerprints(root, memory).of(paths)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "a", x=b"some bytes")
    with pytest.raises(OSError, match="it ended 5 bytes early"):
        crcs_of([(path, 15)], ALONE)


def test_what_one_rank_cannot_read_is_an_error_of_all(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", x=b"some bytes", y=b"others")

    def said(ranks: Ranks) -> str:
        with pytest.raises(OSError, match=r"read it|early") as error:
            crcs_of([(first, 10), (second, 16)], ranks)
        return str(error.value)

    assert run_threads(said, 2) == [f"{second}: another rank cannot read it", "it ended 10 bytes early"]
