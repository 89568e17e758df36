"""CapturableLiveTable on the CPU: slots, who may read them and until when. On a GPU see ../read/test_cuda.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from embedding_store import (
    CapturableLiveTable,
    DeviceMemoryError,
    EmbeddingStore,
    InvalidArgumentError,
    Series,
    SlotBusyError,
)
from embedding_store.serve import slots
from tests.embedding_store.serve.following import IDS, NEVER, eventually, publish, spoil, version_of


def capturable(series: Series | dict[str, Series], **options: object) -> CapturableLiveTable:
    return CapturableLiveTable(series, device="cpu", **{"interval": NEVER, **options})  # type: ignore[arg-type]


def publish_rows(series: Series, rows: int, **options: object) -> None:
    """All of whose values are its version."""
    version = max(series.versions(), default=0) + 1
    with series.write(as_of=version, space="ctr-1", **options) as writer:
        writer.append(torch.arange(rows), torch.full((rows, series.dim), float(version)))


def test_follows_and_keeps_its_addresses(series: Series):
    publish(series)
    with capturable(series, interval=0.01) as live:
        assert version_of(live.lookup) == 1
        with live.reading() as reading:
            address = reading.tables["user_ctr"]._storage.data_ptr()
            assert int(reading.version) == 1
        for version in range(2, 6):
            publish(series)
            eventually(lambda version=version: live.status.version == version)
            with live.reading() as reading:
                (table,) = reading.tables.values()
                assert version_of(table.lookup) == int(reading.version) == version
                assert table._storage.data_ptr() == address
                assert version_of(lambda ids, table=table: table.lookup(ids, torch.float16)) == version
        assert (live.status.error, live.status.swaps) == (None, 4)
    assert repr(live).startswith("CapturableLiveTable(user_ctr: version 5")


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_answers_as_the_table_does(store: EmbeddingStore, dtype: str):
    series = store.create("item", dim=6, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(IDS, torch.randn(len(IDS), 6, generator=generator))
    live = capturable(series)
    with series.write(as_of=2, space="ctr-1", base=1) as writer:  # with an overlay
        writer.append(IDS[:7], torch.randn(7, 6, generator=generator))
        writer.delete(IDS[20:30])
    for version in (1, 2):
        table, asked = series.version(version).load(), torch.cat((IDS, torch.tensor([10**9])))
        for got, expected in zip(live.lookup(asked), table.lookup(asked), strict=True):
            assert torch.equal(got, expected)
        with live.reading() as reading:
            offsets = torch.tensor([0, 40, 40, 1001])
            pooled = reading.tables["item"].lookup_pooled(asked, offsets, mode="mean")
            for got, expected in zip(pooled, table.lookup_pooled(asked, offsets, mode="mean"), strict=True):
                assert torch.equal(got, expected)
        live.refresh()


def test_made_and_read_in_inference_mode(series: Series):
    publish(series)
    with torch.inference_mode():
        live = capturable(series, interval=0.001)
    publish(series)
    eventually(lambda: live.status.version == 2 or live.status.error)
    assert version_of(live.lookup) == 2
    with torch.inference_mode():
        assert version_of(live.lookup) == 2
        publish(series)
        assert live.refresh().version == 3
    assert version_of(live.lookup) == 3


def test_several_series_change_together(store: EmbeddingStore, series: Series):
    items = store.create("item_ctr", dim=2, dtype="int8")
    for one in (series, items):
        publish(one)
    with capturable({"user": series, "item": items}) as live:
        with pytest.raises(InvalidArgumentError, match=r"follows user, item: use reading\(\)"):
            live.lookup(IDS)
        with pytest.raises(InvalidArgumentError, match=r"use `with live.reading\(\) as reading`"):
            live.tables()
        for version in (1, 2, 3):
            with live.reading() as reading:
                assert {version_of(table.lookup) for table in reading.tables.values()} == {version}
            publish(series)
            assert live.refresh().version == version
            publish(items)
            assert live.refresh().version == version + 1


def test_a_version_too_large_for_its_slot_is_refused(series: Series):
    publish_rows(series, 1000)
    with capturable(series, headroom=0.1) as live:
        publish_rows(series, 1050)
        assert live.refresh().version == 2
        publish_rows(series, 2000)
        status = live.refresh()
        assert status.version == 2
        assert isinstance(status.error, DeviceMemoryError)
        assert "the version of user_ctr takes" in str(status.error)
        assert "with more headroom than 0.1" in str(status.error)
        assert live.lookup(torch.arange(1050))[0].eq(2.0).all()
        publish_rows(series, 900)
        assert (live.refresh().version, live.status.error) == (4, None)
    for headroom in (-0.1, 11, float("nan"), True):
        with pytest.raises(InvalidArgumentError, match="headroom is"):
            capturable(series, headroom=headroom)


def test_who_still_reads_the_version_before_the_present_one_keeps_its_place(
    series: Series, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slots, "PATIENCE", 0.05)
    publish(series)
    live = capturable(series)
    with live.reading() as reading:
        table = reading.tables["user_ctr"]
        publish(series)
        assert live.refresh().version == 2
        publish(series)
        status = live.refresh()
        assert status.version == 2
        assert isinstance(status.error, SlotBusyError)
        assert "1 lookups or blocks of reading() that began before" in str(status.error)
        assert version_of(table.lookup) == int(reading.version) == 1
        assert version_of(live.lookup) == 2
    with pytest.raises(InvalidArgumentError, match=r"the block of reading\(\) has ended"):
        table.lookup(IDS)
    assert live.refresh().version == 3
    with pytest.raises(KeyError), live.reading():
        raise KeyError  # leaves all the same
    for version in (4, 5):
        publish(series)
        assert live.refresh().version == version


def test_a_tag_that_moves_back_copies_nothing(series: Series):
    first, second = publish(series), publish(series)
    series.tag("prod", 1)
    live = capturable(series, tag="prod")
    series.tag("prod", 2)
    assert live.refresh().version == 2
    spoil(first, series)  # would be refused if it were read
    series.tag("prod", 1)
    assert (live.refresh().version, version_of(live.lookup)) == (1, 1)
    spoil(second, series)
    third = publish(series)
    series.tag("prod", third.version)
    assert live.refresh().version == 3
    series.tag("prod", 2)  # its slot is the third's
    status = live.refresh()
    assert status.version == 3
    assert "vectors-00000" in str(status.error)
    assert version_of(live.lookup) == 3


def test_a_version_with_the_bytes_of_an_earlier_one_is_another(series: Series):
    for as_of, value in ((1, 1.0), (2, 2.0), (3, 1.0)):
        with series.write(as_of=as_of, space=f"space-{as_of}") as writer:
            writer.append(IDS, torch.full((len(IDS), series.dim), value))
        series.tag("prod", as_of)
        if as_of == 1:
            live = capturable(series, tag="prod")
        assert live.refresh().version == as_of
        with live.reading() as reading:
            manifest = reading.tables["user_ctr"].manifest
            assert (int(reading.version), manifest.version, manifest.space) == (as_of, as_of, f"space-{as_of}")


def test_tables_of_a_slot_do_no_more_than_they_can(series: Series):
    publish(series)
    live, offsets = capturable(series), torch.tensor([0, 2])
    with live.reading() as reading:
        table = reading.tables["user_ctr"]
        assert torch.equal(table.ids(), IDS)
        weights = torch.ones(2, requires_grad=True)
        with pytest.raises(InvalidArgumentError, match="weights require grad, and backward would look up again"):
            table.lookup_pooled(IDS[:2], offsets, weights)
        assert table.lookup_pooled(IDS[:2], offsets, weights.detach())[0].tolist() == [[2.0] * series.dim]
        with pytest.raises(InvalidArgumentError, match=r"take that of Snapshot.load\(\)"):
            _ = table.storage
    with pytest.raises(InvalidArgumentError, match=r"the block of reading\(\) has ended"):
        table.ids()


def test_who_fails_to_begin_to_read_leaves_all_the_same(series: Series, monkeypatch: pytest.MonkeyPatch):
    publish(series)
    live = capturable(series)
    monkeypatch.setattr(slots, "SlotTable", lambda *_: [][0])
    with pytest.raises(IndexError):
        live.lookup(IDS)
    assert live._slots is not None
    assert live._slots._gate[1:].tolist() == [0, 0]


def test_after_an_interrupt_the_version_that_is_read_is_not_overwritten(
    series: Series, monkeypatch: pytest.MonkeyPatch
):
    publish(series)
    live = capturable(series)
    real, writing = slots.Slots.serve, slots.Slots._writing

    @contextmanager
    def interrupted(self: slots.Slots) -> Iterator[None]:
        with writing(self):
            yield
        raise KeyboardInterrupt

    def serve(self: slots.Slots, tables: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(slots.Slots, "_writing", interrupted)
            real(self, tables)  # type: ignore[arg-type]

    publish(series)
    with monkeypatch.context() as patch:
        patch.setattr(slots.Slots, "serve", serve)
        with pytest.raises(KeyboardInterrupt):
            live.refresh()
    with live.reading() as reading:
        (table,) = reading.tables.values()
        assert version_of(table.lookup) == int(reading.version) == 2  # it had come so far
        publish(series)
        assert live.refresh().version == 3
        assert version_of(table.lookup) == 2
    assert version_of(live.lookup) == 3


def test_a_slot_that_was_overwritten_in_vain_is_filled_anew(store: EmbeddingStore, series: Series):
    items = store.create("item_ctr", dim=2)
    for _ in range(3):
        for one in (series, items):
            publish(one)
    spoil(items.version(3), items)
    for one in (series, items):
        one.tag("prod", 1)
    live = capturable({"user": series, "item": items}, tag="prod")
    for version, served in ((2, 2), (3, 2), (1, 1)):  # of the third the users are copied, the items are refused
        for one in (series, items):
            one.tag("prod", version)
        assert live.refresh().version == served
        with live.reading() as reading:
            assert {version_of(table.lookup) for table in reading.tables.values()} == {served}


def test_every_lookup_of_many_readers_is_of_one_version(series: Series):
    publish(series)
    stop = threading.Event()

    def read() -> list[float]:
        seen = []
        while not stop.is_set():
            with live.reading() as reading:
                versions = {version_of(reading.tables["user_ctr"].lookup) for _ in range(3)}
                assert versions == {float(reading.version)}
            seen.append(versions.pop())
        return seen

    with capturable(series, interval=0.001) as live, ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for version in range(2, 14):
                publish(series)
                eventually(lambda version=version: live.status.version == version)
        finally:
            stop.set()
        for reader in readers:
            seen = reader.result(600)
            assert seen == sorted(seen)
    assert live.status.error is None


def test_close_breaks_off_a_wait_for_readers(series: Series, monkeypatch: pytest.MonkeyPatch):
    waiting = threading.Event()

    def sleep(seconds: float) -> None:
        waiting.set()
        time.sleep(seconds)

    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    monkeypatch.setattr(slots, "PATIENCE", NEVER)
    publish(series)
    live = capturable(series, interval=0.001)
    with live.reading():
        publish(series)
        while live.status.version == 1:
            live.refresh()
        publish(series)
        assert waiting.wait(600)
        live.close()
        assert not live._thread.is_alive()
    assert (live.status.version, live.status.error) == (2, None)
