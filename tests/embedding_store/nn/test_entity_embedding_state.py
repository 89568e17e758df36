"""EntityEmbedding: what a checkpoint, a copy and a pickle of it hold."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from embedding_store import (
    DeviceMemoryError,
    EmbeddingStore,
    EntityEmbedding,
    Hits,
    NotFoundError,
    PinMismatchError,
    SchemaChangedError,
    SeriesNotFoundError,
    VersionExpiredError,
    VersionNotFoundError,
)
from embedding_store.native import gpu
from embedding_store.nn.entity_embedding import _SeriesVectors
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu
from tests.embedding_store.nn.layers import IDS, make_ranker, make_store, publish


def test_a_checkpoint_holds_pins_and_opens_them_again(both: EmbeddingStore, tmp_path: Path):
    publish(both)
    ranker = make_ranker(both).eval()
    want = ranker(IDS[0], IDS[1])
    file = io.BytesIO()
    torch.save(ranker.state_dict(), file)
    assert len(file.getvalue()) < 20_000
    dcp.save({"model": get_model_state_dict(ranker)}, checkpoint_id=tmp_path / "dcp")

    publish(both, seed=2)
    other = make_ranker(both).eval()
    assert not torch.equal(other(IDS[0], IDS[1]), want)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(IDS[0], IDS[1]), want)
    assert [snapshot.version for snapshot in (*other.users.snapshots, *other.items.snapshots)] == [1, 1, 1]

    other = make_ranker(both).eval()
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=tmp_path / "dcp")
    set_model_state_dict(other, state["model"])
    assert torch.equal(other(IDS[0], IDS[1]), want)
    assert other.state_dict()["users._extra_state"]["pins"][0] == {
        "store": str(tmp_path / "store"),
        "series": "user_ctr",
        "version": 1,
        "as_of": 1,
        "space": "s",
        "dim": 3,
        "dtype": "float32",
        "content": ranker.state_dict()["users._extra_state"]["pins"][0]["content"],
    }


def test_a_store_may_have_moved(both: EmbeddingStore, tmp_path: Path):
    layer = EntityEmbedding(publish(both))
    want, state = layer(IDS), layer.state_dict()
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    moved = EmbeddingStore(tmp_path / "elsewhere")
    other = EntityEmbedding(publish(moved, seed=2))
    other.load_state_dict(state)
    assert torch.equal(other(IDS), want)
    assert [snapshot.version for snapshot in other.snapshots] == [1, 1]


def test_what_is_gone_is_named(both: EmbeddingStore, tmp_path: Path):
    first = publish(both)
    state = EntityEmbedding(first).state_dict()
    second = publish(both, seed=2)
    layer = EntityEmbedding(second)
    want = layer(IDS)
    both.series("user_cvr").expire(keep_last=1, dry_run=False)
    with pytest.raises(VersionExpiredError, match=r"the checkpoint's user_cvr version 1 in .*store.*expired"):
        layer.load_state_dict(state)
    both.series("user_ctr").expire(keep_last=1, dry_run=False)
    with pytest.raises(NotFoundError, match=r"user_ctr version 1 in .*; the checkpoint's user_cvr version 1 in"):
        layer.load_state_dict(state)
    assert torch.equal(layer(IDS), want)  # what failed to load has changed nothing
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(SeriesNotFoundError, match="user_ctr version 1"):
        layer.load_state_dict(state)
    again = EntityEmbedding(publish(make_store(tmp_path / "store"), seed=3))
    with pytest.raises(PinMismatchError, match=r"user_ctr version 1 in .* another snapshot: as_of is 3, was 1, conte"):
        again.load_state_dict(state)
    ahead = copy.deepcopy(again.state_dict())
    ahead["_extra_state"]["pins"][1]["version"] = 9
    with pytest.raises(VersionNotFoundError, match="user_cvr version 9"):
        again.load_state_dict(ahead)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """On which all vectors lie."""
    made = FakeGpu(monkeypatch)
    monkeypatch.setattr(gpu, "usable", lambda device: device)
    monkeypatch.setattr(gpu.Readers, "note", lambda _: None)
    monkeypatch.setattr(_SeriesVectors, "_placed", lambda self, *given: self._copied(*given[:2], DEVICE))
    return made


@pytest.mark.parametrize("gpu_bytes", [None, {"user_ctr": 256 + 12, "user_cvr": 256 + 8}])
def test_a_checkpoint_for_which_a_gpu_has_no_room_changes_nothing(
    both: EmbeddingStore, fake: FakeGpu, gpu_bytes: dict[str, int] | None
):
    state = EntityEmbedding(publish(both)).state_dict()
    gc.collect()
    layer = EntityEmbedding(publish(both, seed=2), missing="mean", gpu_bytes=gpu_bytes)
    want, live, tiers = layer(IDS), fake.live, layer.tiers
    fake.capacity = live + 500  # of the second series more is asked for
    for _ in range(2):
        with pytest.raises(DeviceMemoryError, match="bytes free"):
            layer.load_state_dict(state)
        gc.collect()
        assert [snapshot.version for snapshot in layer.snapshots] == [2, 2]
        assert torch.equal(layer(IDS), want)
        assert fake.live == live
    assert layer.tiers == tiers
    if gpu_bytes is not None:
        assert layer.tiers["user_ctr"].hits() == Hits(6, 6, 6, 6)
    fake.capacity = 2**40
    layer.load_state_dict(state)
    assert [snapshot.version for snapshot in layer.snapshots] == [1, 1]
    del tiers
    gc.collect()
    assert fake.live == live
    del layer
    gc.collect()
    assert fake.live == 0


def test_a_layer_that_finds_a_gpu_full_stays_where_it_is(both: EmbeddingStore, monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(EntityEmbedding(publish(both)[:1], missing="learned", projection=4))
    want = model(IDS)

    def full(*_: object) -> None:
        raise DeviceMemoryError("a table takes 300 bytes of meta, which has 200 bytes free")

    with monkeypatch.context() as patch:
        patch.setattr(_SeriesVectors, "_placed", full)
        with pytest.raises(DeviceMemoryError, match="200 bytes free"):
            model.to("meta")
    assert torch.equal(model(IDS), want)
    assert model.to("meta")[0].series[0].missing.is_meta


def test_another_layer_than_the_checkpoints_is_refused(both: EmbeddingStore):
    ctr, cvr = publish(both)
    state = EntityEmbedding([ctr, cvr]).state_dict()
    with pytest.raises(PinMismatchError, match="is of user_ctr, user_cvr, this layer of user_cvr, user_ctr: build"):
        EntityEmbedding([cvr, ctr]).load_state_dict(state)
    wider = both.series("user_ctr").evolve(dim=4)
    with wider.write(as_of=2, space="s") as writer:
        writer.append(torch.tensor([7]), torch.ones(1, 4))
    with pytest.raises(SchemaChangedError, match=r"user_ctr version 1 has dim 3; this layer .* version 2, dim 4"):
        EntityEmbedding([wider.latest(), cvr]).load_state_dict(state)
    unreadable = copy.deepcopy(state)
    unreadable["_extra_state"]["pins"][0]["shard"] = 1
    with pytest.raises(PinMismatchError, match="is not a pin"):
        EntityEmbedding([ctr, cvr]).load_state_dict(unreadable)


def test_a_copy_shares_the_vectors_and_a_pickle_opens_them_again(both: EmbeddingStore, tmp_path: Path):
    layer = EntityEmbedding(publish(both), missing="learned", projection=4)
    want = layer(IDS)
    pickled = pickle.dumps(layer)
    copied = copy.deepcopy(layer)
    assert copied.series[0].storage.data_ptr() == layer.series[0].storage.data_ptr()
    with torch.no_grad():
        layer.series[0].missing.zero_()
    assert torch.equal(copied(IDS), want)
    opened = pickle.loads(pickled)
    assert torch.equal(opened(IDS), want)
    assert opened.snapshots[1].version == 1
    shutil.rmtree(tmp_path / "store")
    assert torch.equal(copy.deepcopy(copied)(IDS), want)
    with pytest.raises(SeriesNotFoundError, match="user_ctr version 1"):
        pickle.loads(pickled)
