"""What goes to another process, or into a copy: where things are, never bytes that were not checked."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    EntityEmbedding,
    InvalidArgumentError,
    MissingFileError,
    PinMismatchError,
    Series,
    Snapshot,
    Table,
    VersionExpiredError,
    VersionNotFoundError,
)
from embedding_store.storage.objects import ObjectStorage
from tests.embedding_store.helpers import folder, publish

ROWS = 20_000


@pytest.fixture
def wide(store: EmbeddingStore) -> Series:
    return store.create("wide", dim=64)


@pytest.fixture
def snapshot(wide: Series) -> Snapshot:
    """Some 5 MB."""
    return publish(wide, 1, list(range(ROWS)))


class Rows(Dataset[Tensor]):
    """The vector of each id."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, id: int) -> Tensor:
        return self.table.lookup(torch.tensor(id))[0]


def first_values(source: Table | Snapshot | Series | EmbeddingStore, ids: list[int]) -> list[float]:
    """The first value of each id's vector, by way of whatever was sent to this process."""
    if isinstance(source, EmbeddingStore):
        source = source.series("wide")
    if isinstance(source, Series):
        source = source.latest()
    table = source.load() if isinstance(source, Snapshot) else source
    return table.lookup(torch.tensor(ids))[0][:, 0].tolist()


def spoil(snapshot: Snapshot, series: Series) -> None:
    """Change one byte on the disk, in the vectors of the last rows."""
    file = snapshot.manifest.data[-1]
    with open(folder(series) / file.path, "r+b") as data:
        data.seek(file.segments[-1].vector + (file.segments[-1].rows - 1) * 256 + 3)
        byte = data.read(1)[0]
        data.seek(-1, 1)
        data.write(bytes([byte ^ 64]))


def test_spawned_processes_read_where_the_sender_does(
    store: EmbeddingStore, wide: Series, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    relative = EmbeddingStore("store")
    sources: list[Any] = [snapshot.load(), snapshot, wide, store, relative]
    monkeypatch.chdir("/")  # where a relative path would lead elsewhere
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(first_values, source, [0, 7, ROWS - 1]) for source in sources]
        assert [future.result(timeout=600) for future in futures] == [[0.0, 7.0, ROWS - 1.0]] * len(sources)


def test_the_workers_of_a_data_loader_look_up(snapshot: Snapshot):
    loader = DataLoader(
        Rows(snapshot.load()), batch_size=ROWS // 4, num_workers=2, multiprocessing_context="spawn", timeout=600
    )
    vectors = torch.cat(list(loader))
    assert torch.equal(vectors[:, 0], torch.arange(ROWS, dtype=torch.float32))


def test_a_pickle_is_a_place(store: EmbeddingStore, wide: Series, snapshot: Snapshot):
    table = snapshot.load()
    assert len(table.mapping.storage) > 5_000_000
    wide.lookup_as_of(torch.tensor([3]), torch.tensor([2]))  # a table stays open with the series
    for source in (table, snapshot, wide, store):
        data = pickle.dumps(source)
        assert len(data) < 10_000
        assert first_values(pickle.loads(data), [3]) == [3.0]
    opened = pickle.loads(pickle.dumps(table))
    assert opened.manifest == table.manifest
    assert pickle.loads(pickle.dumps(wide)).schema == wide.schema


def test_a_pickle_opens_the_snapshot_it_was_made_of_or_nothing(store: EmbeddingStore, wide: Series, tmp_path: Path):
    first = publish(wide, 1, [1, 2])
    publish(wide, 2, [1, 2])
    table, lone, series = pickle.dumps(first.load()), pickle.dumps(first), pickle.dumps(wide)
    wide.expire(keep_last=1, dry_run=False)
    for data in (table, lone):
        with pytest.raises(VersionExpiredError, match="version 1 of series 'wide' was expired"):
            pickle.loads(data)
    shutil.rmtree(folder(wide))
    for data in (table, lone):
        with pytest.raises(VersionNotFoundError, match="has no version 1"):
            pickle.loads(data)
    with pytest.raises(MissingFileError, match="does not exist"):
        pickle.loads(series)
    publish(store.create("wide", dim=64), 1, [1, 2, 3])
    for data in (table, lone):
        with pytest.raises(PinMismatchError, match=r"version 1 of series 'wide' in .* is another snapshot"):
            pickle.loads(data)


def test_a_copy_of_what_never_changes_is_itself(snapshot: Snapshot):
    table = snapshot.load()
    for source in (table, snapshot):
        assert copy.copy(source) is copy.deepcopy([source])[0] is source


def test_a_table_that_no_snapshot_loaded_says_so(snapshot: Snapshot):
    table = snapshot.load()
    with pytest.raises(InvalidArgumentError, match=r"Table\('wide', .*was not made by Snapshot.load"):
        pickle.dumps(Table(table.manifest, torch.zeros(8, dtype=torch.uint8), table.layout))


def test_errors_come_back_from_a_process():
    error = pickle.loads(pickle.dumps(ChecksumError("s3://b/x.arrow", "bytes changed")))
    assert (type(error), error.path, str(error)) == (ChecksumError, "s3://b/x.arrow", "s3://b/x.arrow: bytes changed")


def test_an_object_store_is_pickled_without_its_credentials(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    series = EmbeddingStore(url, tmp_path / "cache").create("wide", dim=3)
    table = publish(series, 1, [5, 6]).load()
    data = pickle.dumps(table)
    assert b"a-secret" not in data
    assert first_values(pickle.loads(data), [6]) == [1.0]
    storage = pickle.loads(pickle.dumps(series))._storage
    assert isinstance(storage, ObjectStorage)
    assert storage.names("manifests") == ["00000001.json"]
    assert storage.locate("x") == f"{url}/wide/x"
    assert storage._cache == series._storage._cache


class Lookup(nn.Module):
    """A model that holds a table as it is."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        return self.table.lookup(ids)[0]


def exported(model: nn.Module, ids: Tensor, strict: bool, path: Path) -> Tensor:
    """What a program gives that was exported, saved and loaded."""
    torch.export.save(torch.export.export(model, (ids,), strict=strict), path)
    return torch.export.load(path).module()(ids)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layer", [Lookup, EntityEmbedding])
def test_nothing_unchecked_is_exported(
    wide: Series, snapshot: Snapshot, layer: type[nn.Module], strict: bool, tmp_path: Path
):
    def model(snapshot: Snapshot) -> nn.Module:
        return Lookup(snapshot.load()) if layer is Lookup else EntityEmbedding([snapshot])

    ids = torch.tensor([ROWS - 1, 3, -1])
    sound = publish(wide, 1, list(range(ROWS)))  # of other files: what is checked of one counts for all its tables
    assert torch.equal(exported(model(sound), ids, strict, tmp_path / "sound.pt2"), model(sound)(ids))
    used = model(snapshot)
    used(ids[1:])  # checks the first rows, not the last
    spoil(snapshot, wide)
    for damaged in (used, copy.deepcopy(used), model(snapshot)):
        with pytest.raises(ChecksumError, match=r"\.arrow: "):
            exported(damaged, ids, strict, tmp_path / "damaged.pt2")


@pytest.mark.parametrize("layer", [Lookup, EntityEmbedding])
def test_what_is_compiled_is_not_taken_for_exported(snapshot: Snapshot, layer: type[nn.Module]):
    """All of its files would be read first. Torch 2.11's is_exporting() is True of whatever is compiled."""
    model = Lookup(snapshot.load()) if layer is Lookup else EntityEmbedding([snapshot])
    mapping = (model if layer is Lookup else model.series[0]).table.mapping
    ids = torch.tensor([3, -1])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids), model(ids))
    assert mapping.unchecked_blocks > 0


def test_nothing_unchecked_is_copied(wide: Series, snapshot: Snapshot):
    table = snapshot.load()
    assert first_values(table, [3]) == [3.0]
    unchecked = table.mapping.unchecked_blocks
    spoil(snapshot, wide)
    for copied in (copy.deepcopy(table), copy.copy(table), pickle.loads(pickle.dumps(table))):
        assert first_values(copied, [3]) == [3.0]
        with pytest.raises(ChecksumError, match=r"\.arrow: "):
            first_values(copied, [ROWS - 1])
    assert table.mapping.unchecked_blocks >= unchecked - 1  # a lookup checks no more than what it reads
    with pytest.raises(ChecksumError, match=r"\.arrow: "):
        table.storage.clone()


def test_a_layer_that_is_pickled_checks_what_it_reads(wide: Series, snapshot: Snapshot):
    layer = EntityEmbedding([snapshot])
    spoil(snapshot, wide)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        with pytest.raises(RuntimeError, match="ChecksumError: "):  # as the op says it
            copied(torch.tensor([ROWS - 1]))
