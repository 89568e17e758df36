"""What is done on a GPU beside lookups and captures is done on streams that nobody else has, with a fake of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedding_store import DeviceMemoryError, Series, TieredTable
from embedding_store.native import gpu
from embedding_store.read import upload
from embedding_store.serve.slots import Slots
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu
from tests.embedding_store.helpers import publish

IDS = list(range(100))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Lookups run there, and the stream of whoever drops memory is the present one."""
    made = FakeGpu(monkeypatch)
    monkeypatch.setattr(gpu, "usable", lambda device: torch.device(device))
    monkeypatch.setattr(gpu.Readers, "note", lambda _: None)
    return made


def test_a_copy_goes_by_way_of_a_stream_of_its_own(series: Series, fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    snapshot, on = publish(series, 1, IDS), list[tuple[int, int]]()
    put = upload._Copier.put

    def watched(self: upload._Copier, target: Tensor, fill: object) -> None:
        on.append((fake.current.handle, fake.mode))
        put(self, target, fill)  # type: ignore[arg-type]

    monkeypatch.setattr(upload._Copier, "put", watched)
    for gpu_bytes in (None, 2**13):
        on.clear(), fake.log.clear()
        table = snapshot.load(DEVICE, gpu_bytes=gpu_bytes)
        assert set(on) == {(1, 2)}
        assert fake.log[-1] == "wait 1"  # all is there
        assert (fake.current.handle, fake.mode, fake.streams) == (0, 0, 1)
        vectors, found = table.lookup(torch.tensor([7, -7]))
        assert vectors[0].tolist() == [7.0] * 3
        assert found.tolist() == [True, False]


def test_versions_change_on_a_stream_of_their_own(fake: FakeGpu):
    slots = Slots(DEVICE, ("user_ctr",), 0.25)
    assert fake.log == ["wait 1"]
    slots._filled[1] = [], {}
    slots.serve(slots._filled[1][1])
    assert slots._gate.tolist() == [1, 0, 0]
    assert fake.log == ["wait 1"] * 2
    assert (fake.current.handle, fake.mode, fake.streams) == (0, 0, 1)


def test_slots_for_which_a_gpu_has_no_room_name_their_own_remedy(fake: FakeGpu):
    slots = Slots(DEVICE, ("user_ctr",), 0.25)
    fake.capacity = fake.live + 2000
    message = (
        "two slots for user_ctr, whose version takes 1000 bytes, are not to be had .a table takes 2560 bytes of "
        "cuda:0, which has 2000 bytes free.: free some, give less headroom than 0.25, or use a LiveTable"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        slots._memory("user_ctr", 0)(1000, DEVICE)
    assert len(slots._memory("user_ctr", 1)(600, DEVICE)) == 600


def test_counts_are_read_after_what_was_asked_before(series: Series, fake: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    table = publish(series, 1, IDS).load(gpu_bytes=2**13)
    assert isinstance(table, TieredTable)
    monkeypatch.setattr(TieredTable, "device", DEVICE)
    with table._aside():
        assert (fake.current.handle, fake.mode) == (1, 2)
    assert fake.log == ["1 after 0", "wait 1"]
