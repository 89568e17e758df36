"""Files mapped into one range: checked lazily or all at once, named when they have changed, given back in the end."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store import ChecksumError, FileSizeError, MissingFileError
from embedding_store.native import ops
from embedding_store.native.mapping import BLOCK, MappedFile, Mapping, crc32c, crc32c_blocks
from tests.embedding_store.helpers import finish, settle
from tests.embedding_store.small_table import SmallTable, small_table

DIM = 128
ROWS = 1500  # of float32: 750 KiB, twelve blocks


def crc_by_definition(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def mapped_file(path: Path, data: bytes) -> MappedFile:
    path.write_bytes(data)
    return MappedFile(str(path), len(data), crc32c_blocks(data))


@pytest.fixture(scope="module")
def table() -> SmallTable:
    return small_table(range(ROWS), DIM, "float32")


def stored_files(folder: Path, table: SmallTable) -> list[MappedFile]:
    """The table as an index file and a data file, neither a multiple of a block."""
    vectors = int(table.layout[8])
    data = table.storage[vectors : vectors + ROWS * DIM * 4].numpy().tobytes()
    return [
        mapped_file(folder / "index.hash", table.storage[: int(table.layout[2]) * 64].numpy().tobytes()),
        mapped_file(folder / "vectors.arrow", b"header--" * 8 + data),
    ]


def layout_in(mapping: Mapping, table: SmallTable) -> torch.Tensor:
    layout = table.layout.clone()
    layout[0], layout[8] = mapping.starts[0], mapping.starts[1] + 64
    return layout


def flip(path: str, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def maps(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder.resolve()}/")


def test_crc32c_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(0, 20_000), cut=st.integers(0, 20_000))
def test_crc32c_in_pieces_is_that_of_the_whole(seed: int, size: int, cut: int):
    data = np.random.default_rng(seed).bytes(size)
    whole = crc32c(data)
    assert crc32c(data[cut:], crc32c(data[:cut])) == whole
    if size < 3000:
        assert whole == crc_by_definition(data)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_blocks_have_a_checksum_each(size: int):
    data = np.random.default_rng(size).bytes(size)
    expected = [crc32c(data[start : start + BLOCK]) for start in range(0, size, BLOCK)]
    for form in (
        data,
        bytearray(data),
        memoryview(data),
        torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8),
    ):
        crcs = crc32c_blocks(form)
        assert crcs.dtype == np.uint32
        assert crcs.tolist() == expected


def test_files_lie_side_by_side(tmp_path: Path):
    contents = [b"a" * 10, b"b" * BLOCK, b"c" * (BLOCK + 1), b"d" * (5 << 20), b"e"]
    files = [mapped_file(tmp_path / str(i), data) for i, data in enumerate(contents)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about read-only arrays
        mapping = Mapping.open(files)
    assert mapping.starts[0] == 0
    assert all(start % BLOCK == 0 for start in mapping.starts)
    assert mapping.starts[3] % (2 << 20) == 0  # where a huge page may begin
    assert mapping.storage.dtype == torch.uint8
    for start, data in zip(mapping.starts, contents, strict=True):
        assert mapping.storage[start : start + len(data)].numpy().tobytes() == data
    assert len(mapping.storage) == mapping.starts[-1] + 1
    assert not mapping.storage[mapping.starts[0] + 10 : mapping.starts[1]].any()
    assert mapping.files == tuple(files)
    mapping.check()


def test_what_ends_with_a_block_goes_on_without_a_gap(tmp_path: Path):
    sizes = [BLOCK, 5 << 20, (3 << 20) + 64, 2 << 20]  # an index in three pieces, however large these are, and data
    files = [mapped_file(tmp_path / str(i), bytes([i]) * size) for i, size in enumerate(sizes)]
    starts = Mapping.open(files).starts
    assert starts[:3] == (0, BLOCK, BLOCK + (5 << 20))
    assert starts[3] % (2 << 20) == 0


def test_no_descriptor_stays_open_and_the_range_lives_as_long_as_a_tensor_over_it(tmp_path: Path):
    files = [mapped_file(tmp_path / str(i), bytes([i]) * (3 << 20)) for i in range(4)]
    descriptors = len(os.listdir("/proc/self/fd"))
    mapping = Mapping.open(files)
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # fewer where those of other tests have gone meanwhile
    assert maps(tmp_path) == 4
    part = mapping.storage[mapping.starts[2] :][:100]
    for file in files:
        os.unlink(file.path)
    del mapping
    assert bool((part == 2).all())
    del part
    assert maps(tmp_path) == 0


def test_a_lookup_checks_what_it_touches_and_nothing_else(tmp_path: Path, table: SmallTable):
    files = stored_files(tmp_path, table)
    flip(files[1].path, 64 + 1000 * DIM * 4)  # row 1000
    mapping = Mapping.open(files)
    arguments = (mapping.storage, layout_in(mapping, table), DIM, "float32")
    vectors, found = ops.lookup(torch.arange(800), *arguments)
    assert bool(found.all())
    assert torch.equal(vectors, table.vectors[:800])
    for ids in ([1000], [1, 2, 1000], [950]):  # 950 is in the same block
        with pytest.raises(RuntimeError, match=r"ChecksumError: .*vectors\.arrow: bytes 458752 \.\. 524287"):
            ops.lookup(torch.tensor(ids), *arguments)
    with pytest.raises(RuntimeError, match=r"ChecksumError: .*vectors\.arrow"):
        ops.lookup_pooled(torch.tensor([3, 1000]), torch.tensor([0, 1, 2]), None, *arguments)
    with pytest.raises(ChecksumError, match=r"vectors\.arrow: bytes 458752") as error:
        mapping.check()
    assert error.value.path == files[1].path


@pytest.mark.parametrize("threads", [1, 3])
def test_a_changed_index_is_never_believed(tmp_path: Path, table: SmallTable, threads: int):
    files = stored_files(tmp_path, table)
    flip(files[0].path, 8)
    mapping = Mapping.open(files)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(RuntimeError, match=r"ChecksumError: .*index\.hash: bytes 0"):
            ops.lookup(torch.arange(ROWS).repeat(4), mapping.storage, layout_in(mapping, table), DIM, "float32")
    finally:
        torch.set_num_threads(before)


def test_every_flipped_byte_is_found(tmp_path: Path, table: SmallTable):
    files = stored_files(tmp_path, table)
    sizes = [file.bytes for file in files]
    for number, position in [(0, 0), (0, sizes[0] - 1), (1, 0), (1, BLOCK - 1), (1, BLOCK), (1, sizes[1] - 1)]:
        flip(files[number].path, position)
        with pytest.raises(ChecksumError) as error:
            Mapping.open(files).check()
        assert error.value.path == files[number].path
        flip(files[number].path, position)
    Mapping.open(files).check()


def test_after_a_check_lookups_do_not_check_again(tmp_path: Path, table: SmallTable):
    files = stored_files(tmp_path, table)
    mapping = Mapping.open(files)
    seen: list[tuple[int, int]] = []
    mapping.check(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(mapping.storage), len(mapping.storage))
    flip(files[1].path, 64)  # the mapping shows the file as it is now
    vectors, _ = ops.lookup(torch.tensor([0]), mapping.storage, layout_in(mapping, table), DIM, "float32")
    assert not torch.equal(vectors[0], table.vectors[0])


def test_a_check_in_the_background_checks_as_well_and_can_be_ended(tmp_path: Path):
    files = [mapped_file(tmp_path / str(i), os.urandom(1 << 20)) for i in range(2)]
    Mapping.open(files).check(background=True)
    flip(files[1].path, 77)
    with pytest.raises(ChecksumError) as error:
        Mapping.open(files).check(background=True)
    assert error.value.path == files[1].path
    calls = []
    with pytest.raises(ChecksumError):
        Mapping.open(files).check(lambda *_: calls.append(1))
    large = MappedFile(str(tmp_path / "large"), 200 << 20, np.full(3200, crc32c(bytes(BLOCK)), np.uint32))
    Path(large.path).touch()
    os.truncate(large.path, large.bytes)
    Mapping.open([large]).check(lambda *_: bool(calls.append(1)))
    assert len(calls) == 1


def test_pages_given_back_are_read_again(tmp_path: Path):
    mapping = Mapping.open([mapped_file(tmp_path / "file", b"x" * (4 << 20))])
    mapping.check()
    mapping.release_pages()
    assert bool((mapping.storage == ord("x")).all())


def test_missing_and_truncated_files_are_named(tmp_path: Path):
    good = mapped_file(tmp_path / "good", b"x" * 100)
    short = mapped_file(tmp_path / "short", b"x" * 100)
    os.truncate(short.path, 99)
    with pytest.raises(FileSizeError, match="has 99 bytes, its manifest says 100") as wrong:
        Mapping.open([good, short])
    assert wrong.value.path == short.path
    os.unlink(short.path)
    with pytest.raises(MissingFileError) as missing:
        Mapping.open([good, short])
    assert missing.value.path == short.path
    with pytest.raises(FileSizeError, match="has 0 bytes"):
        Mapping.open([mapped_file(tmp_path / "empty", b"")])
    assert maps(tmp_path) == 0
    with pytest.raises(ValueError, match="fewer crcs"):
        Mapping.open([MappedFile(good.path, good.bytes, np.empty(0, np.uint32))])


def test_a_segment_across_two_files_is_refused(tmp_path: Path, table: SmallTable):
    files = stored_files(tmp_path, table)
    mapping = Mapping.open(files)
    layout = layout_in(mapping, table)
    layout[8] = mapping.starts[1] - 64
    with pytest.raises(RuntimeError, match=r"InvalidIndexError: .*index\.hash: segment 0 lies outside"):
        ops.lookup(torch.tensor([0]), mapping.storage, layout, DIM, "float32")


def test_threads_that_race_for_a_block_all_get_the_vectors(tmp_path: Path, table: SmallTable):
    files = stored_files(tmp_path, table)
    results: list[bool] = []
    for _ in range(5):
        mapping = Mapping.open(files)
        layout = layout_in(mapping, table)
        barrier = threading.Barrier(4)

        def look(mapping: Mapping = mapping, layout: torch.Tensor = layout, barrier: threading.Barrier = barrier):
            barrier.wait()
            vectors, _ = ops.lookup(torch.arange(ROWS), mapping.storage, layout, DIM, "float32")
            results.append(torch.equal(vectors, table.vectors))

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 20


@pytest.mark.parametrize("copies", [True, False])
def test_a_changed_copy_is_deleted_and_nothing_else_is(tmp_path: Path, copies: bool):
    file = mapped_file(tmp_path / "a", bytes(2 * BLOCK))
    mapping = Mapping.open([file], copies=copies)
    flip(file.path, BLOCK + 5)
    remedy = "the copy was deleted, load again" if copies else "restore it from a copy"
    with pytest.raises(ChecksumError, match=remedy):
        mapping.check()
    assert Path(file.path).exists() is not copies
    os.replace(mapped_file(tmp_path / "b", bytes(2 * BLOCK)).path, file.path)  # another has taken its name
    with pytest.raises(ChecksumError, match=remedy):
        mapping.check()
    assert Path(file.path).exists()


def test_blocks_that_another_mapping_of_the_file_has_checked_stay_checked(tmp_path: Path):
    base = mapped_file(tmp_path / "base", os.urandom(20 * BLOCK + 5))
    indices = [mapped_file(tmp_path / f"index-{i}", os.urandom(BLOCK)) for i in range(2)]
    settle()
    first = Mapping.open([indices[0], base])
    assert first.unchecked_blocks == 22
    assert Mapping.open([indices[1], base]).unchecked_blocks == 22
    first.check()
    assert first.unchecked_blocks == 0
    second = Mapping.open([indices[1], base])
    assert second.unchecked_blocks == 1
    assert Mapping.open([indices[1], base], anew=True).unchecked_blocks == 22
    second.check(background=True)
    assert second.unchecked_blocks == 0


def test_a_file_that_has_changed_since_is_checked_anew(tmp_path: Path):
    file = mapped_file(tmp_path / "file", os.urandom(3 * BLOCK))
    settle()
    first = Mapping.open([file])
    first.check()
    copy = mapped_file(tmp_path / "copy", Path(file.path).read_bytes())
    assert Mapping.open([copy]).unchecked_blocks == 3
    other = MappedFile(file.path, file.bytes, file.crcs ^ np.array([0, 1, 0], np.uint32))
    assert Mapping.open([other]).unchecked_blocks == 1
    flip(file.path, 5)
    with pytest.raises(ChecksumError):
        Mapping.open([file]).check()


def test_a_fork_amid_mapping_and_looking_up_leaves_a_child_that_can(tmp_path: Path, table: SmallTable):
    files = stored_files(tmp_path, table)
    # Torch keeps a mutex with every view, which a fork does not renew: the tensors of a loaded table are no views.
    storage, layout = table.storage.clone(), table.layout.clone()
    mapped_layout = layout_in(Mapping.open(files), table)
    stop, busy = threading.Event(), threading.Event()

    def look_up() -> Tensor:
        mapping = Mapping.open(files)
        vectors, _ = ops.lookup(torch.arange(8), mapping.storage, mapped_layout, DIM, "float32")
        ops.lookup(torch.zeros(1 << 14, dtype=torch.int64), storage, layout, DIM, "float32")  # from the pool of outputs
        return vectors

    def map_and_look_up() -> None:
        while busy.wait() and not stop.is_set():
            look_up()

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not live in a child
    moment = random.Random(0)
    threads = [threading.Thread(target=map_and_look_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(120):
            busy.set()
            time.sleep(moment.uniform(0, 0.002))
            child = os.fork()
            if child == 0:
                end_child(lambda: torch.equal(look_up(), table.vectors[:8]))
            busy.clear()  # the child has the cores to itself
            assert finish(child) == 0
    finally:
        stop.set()
        busy.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(before)


def end_child(check: Callable[[], bool]) -> NoReturn:
    """End a forked child; its code is 0 where the check holds."""
    try:
        os._exit(0 if check() else 1)
    except BaseException:
        os._exit(2)
