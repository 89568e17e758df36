"""A bundle that is replaced under load: each answer is one bundle's; what is wrong with a new one is never served."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import current_thread

import pyarrow as pa
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.bundle import load_bundle
from recsys.bundle.bundle import _program, place_of
from recsys.bundle.manifest import Manifest
from recsys.bundle.repin import repin
from tests.recsys.bundle.live import Answer, Load, Place, answers_of, same, until


def test_program_and_vectors_move_together_under_load(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]]
) -> None:
    """To the other bundle and back: the vectors of one are never seen by the program of the other."""
    known = dict(said)
    shutil.copytree(place.folder / "a", place.folder / "mixed")
    repin(place.folder / "mixed", store=place.store)
    known["a of b's vectors"] = answers_of(load_bundle(place.folder / "mixed"), requests)
    for rows, answers in zip(requests, zip(*known.values(), strict=True), strict=True):
        assert not len(rows) or not any(same(one, other) for one, other in itertools.combinations(answers, 2))
    with place.serve() as live, Load(live, requests, known) as load:
        for number, name in enumerate("abab"):
            place.deploy(name)
            until(lambda name=name: load.of(name))
            assert (live.swaps, live.error) == (number, None)
    assert load.changes() == [["a", "b", "a", "b"]] * 4


def test_vectors_alone_move_together_under_load(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]]
) -> None:
    """Users and items of one time."""
    shutil.copytree(place.folder / "a", place.folder / "moved")
    repin(place.folder / "moved", store=place.store)
    known = {"1": said["a"], "2": answers_of(load_bundle(place.folder / "moved"), requests)}
    with place.serve() as live, Load(live, requests, known) as load:
        until(lambda: load.of("1"))
        repin(place.link, store=place.store)
        until(lambda: load.of("2"))
        assert [pin.version for pin in live.bundle.manifest.pins] == [2, 2]
    assert load.changes() == [["1", "2"]] * 4


def flip(path: Path) -> None:
    """A byte of a file, in its place; twice: nothing."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _vectors(place: Place) -> Path:
    (file,) = EmbeddingStore(place.store).series("item_ctr").version(2).manifest.data
    return place.store / "item_ctr" / file.path


def _away(place: Place) -> None:
    (place.folder / "b").rename(place.folder / "elsewhere")


def _back(place: Place) -> None:
    (place.folder / "elsewhere").rename(place.folder / "b")


def _damage(place: Place) -> None:
    (place.folder / "b/bundle.json").rename(place.folder / "whole.json")
    (place.folder / "b/bundle.json").write_text('{"format": 1, "tasks": []}')


def _expire(place: Place) -> None:
    series = EmbeddingStore(place.store).series("item_ctr")
    with series.write(as_of=series.latest().as_of, space="ctr-1", base=2) as writer:
        writer.append(torch.tensor([1]), torch.ones(1, 6))
    series.expire(keep_last=1, dry_run=False)


BROKEN: dict[str, tuple[Callable[[Place], object], Callable[[Place], object], str]] = {
    "a changed byte": (
        lambda place: flip(place.folder / "b/ranker.pt2"),
        lambda place: flip(place.folder / "b/ranker.pt2"),
        "ranker.pt2 is changed",
    ),
    "changed vectors": (
        lambda place: flip(_vectors(place)),
        lambda place: flip(_vectors(place)),
        "vectors-00000.arrow",
    ),
    "an expired version": (_expire, lambda place: repin(place.folder / "b"), "version 2 of .*item_ctr.*expired"),
    "no folder": (_away, _back, "is no bundle"),
    "a damaged manifest": (
        _damage,
        lambda place: (place.folder / "whole.json").replace(place.folder / "b/bundle.json"),
        "is damaged .KeyError",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_bundle_that_is_broken_is_not_served_until_it_is_mended(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]], broken: str
) -> None:
    hurt, mend, words = BROKEN[broken]
    manifest = Manifest.load(place.folder / "b")
    replace(manifest, store=str(place.store)).save(place.folder / "b")
    with place.serve() as live, Load(live, requests, said) as load:
        hurt(place)
        place.deploy("b")
        until(lambda: live.error)
        with pytest.raises(Exception, match=words):
            raise live.error
        load.whose[:] = [[] for _ in load.whose]
        until(lambda: load.of("a"))
        assert live.swaps == 0
        assert not live.refresh()
        mend(place)
        until(lambda: live.swaps)
        assert live.error is None
        wanted = said["b"] if broken != "an expired version" else answers_of(load_bundle(place.folder / "b"), requests)
        until(lambda: all(same(live.predict(x), y) for x, y in zip(requests, wanted, strict=True)))
    assert all(x[0] == "a" and set(x) <= {"a", "b", "a mixture"} for x in load.changes())
    if broken != "an expired version":  # repinned: neither
        assert {name for whose in load.whose for name in whose} <= {"a", "b"}


def test_requests_are_prepared_on_the_stream_of_whoever_asks(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's stream is another one, whose work the program would not wait for. So may its GPU be."""
    used: list[str] = []

    @contextmanager
    def use(stream: str | torch.device) -> Iterator[None]:
        used.append(str(stream))
        yield
        used.append("done")

    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"that of {device} in {current_thread().name}")
    monkeypatch.setattr(torch.cuda, "stream", use)
    with place.serve(interval_s=0) as live:
        assert all(map(same, live.answers(requests), said["a"]))
        assert not used
        live._device = torch.device("cuda", 1)
        assert all(map(same, live.answers(requests), said["a"]))
    assert used == ["cuda:1", f"that of cuda:1 in {current_thread().name}", "done", "done"] * len(requests)


def test_a_gpu_without_a_number_is_that_of_the_thread_that_names_it(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert place_of("cuda") == torch.device("cuda", 1)
    assert place_of("cuda:0") == torch.device("cuda", 0)
    assert place_of(torch.device("cpu")) == torch.device("cpu")
    loaded: list[int] = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path, device_index: loaded.append(device_index))
    compiled = replace(Manifest.load(made), compiled="cuda")
    for device in ("cuda", "cuda:0"):
        _program(made, compiled, place_of(device))
    assert loaded == [1, 0]
