"""Two slots between readers and a writer: the ops, threads that use them at once, and every order there can be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

from embedding_store.native import gate


def test_readers_are_counted_where_they_are():
    state, rows = torch.zeros(3, dtype=torch.int64), torch.tensor([[1, 2, 3], [4, 5, 6]])
    first = gate.enter(state, rows)
    assert first.tolist() == [1, 2, 3, 0]
    state[0] = 1
    second, third = gate.enter(state, rows), gate.enter(state, rows)
    assert second.tolist() == third.tolist() == [4, 5, 6, 1]
    assert state.tolist() == [1, 1, 2]
    gate.leave(state, first)
    gate.leave(state, third)
    assert state.tolist() == [1, 0, 1]


def test_what_does_not_fit_is_refused():
    state, rows = torch.zeros(3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    for wrong in (state[:2], state.int(), rows):
        with pytest.raises(ValueError, match=r"gate is not an int64 tensor \[3\]"):
            gate.enter(wrong, rows)
    for wrong in (rows[0], rows[:1], rows[:, :2], rows.float()):
        with pytest.raises(ValueError, match=r"rows are not a contiguous int64 tensor \[2, N\]"):
            gate.enter(state, wrong)
    with pytest.raises(ValueError, match="row is not what enter gave"):
        gate.leave(state, rows)
    assert state.tolist() == [0, 0, 0]


def test_opcheck():
    state, rows = torch.tensor([1, 0, 3]), torch.arange(8).view(2, 4)
    torch.library.opcheck(torch.ops.embedding_store.enter, (state, rows))
    torch.library.opcheck(torch.ops.embedding_store.leave, (state, torch.tensor([1, 2, 0])))


def test_threads_read_what_the_writer_has_finished():
    state, rows = torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
    places = [torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)]
    stop = threading.Event()

    def read() -> int:
        seen = 0
        while not stop.is_set():
            row = gate.enter(state, rows)
            version, slot = row.tolist()
            assert set(places[slot].tolist()) == {version}
            assert version >= seen
            seen = version
            gate.leave(state, row)
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for version in range(1, 200):
                slot = 1 - int(state[0])
                while int(state[1 + slot]):
                    assert not any(reader.done() for reader in readers)
                for i in range(64):
                    places[slot][i] = version
                rows[slot] = version
                state[0] = slot
        finally:
            stop.set()
        assert all(reader.result(600) <= 199 for reader in readers)
    assert state.tolist()[1:] == [0, 0]


class State(NamedTuple):
    """Of the gate, of what lies in the slots, and of how far everybody is."""

    current: int
    counts: tuple[int, int]
    versions: tuple[int, int]  # in the slots; -1: half-written
    writer: int  # its step: wait, begin to fill, end, make current
    readers: tuple[tuple[str, int, int], ...]  # step, slot, version that was in it


def steps(state: State, again: bool) -> Iterator[State]:
    """All that may happen next: one access of one of them. `again`: readers read the current slot again."""
    other = 1 - state.current
    if max(state.versions) < 5 or state.writer:
        if state.writer == 0 and state.counts[other] == 0:
            yield state._replace(writer=1)
        elif state.writer == 1:
            yield state._replace(writer=2, versions=put(state.versions, other, -1))
        elif state.writer == 2:
            yield state._replace(writer=3, versions=put(state.versions, other, max(state.versions) + 1))
        elif state.writer == 3:
            yield state._replace(writer=0, current=other)
    for i, (step, slot, version) in enumerate(state.readers):

        def now(*reader: object, counts: tuple[int, int] = state.counts, i: int = i) -> State:
            return state._replace(readers=put(state.readers, i, reader), counts=counts)

        counted = put(state.counts, slot, state.counts[slot] + 1)
        fewer = put(state.counts, slot, state.counts[slot] - 1)
        if step == "out":
            yield now("count", state.current, 0)
        elif step == "count":
            yield now("again" if again else "in", slot, 0 if again else state.versions[slot], counts=counted)
        elif step == "again":
            inside = state.current == slot
            yield now("in" if inside else "back", slot, state.versions[slot] if inside else 0)
        elif step == "back":
            yield now("out", 0, 0, counts=fewer)
        elif step == "in":
            yield now("leave", slot, version)
        else:
            yield now("out", 0, 0, counts=fewer)


def put(values: tuple, place: int, value: object) -> tuple:
    return (*values[:place], value, *values[place + 1 :])


def torn(again: bool) -> bool:
    """Whether some order of accesses lets a reader find another version than the one that it began to read."""
    begin = State(0, (0, 0), (0, 0), 0, (("out", 0, 0),) * 2)
    seen, left = {begin}, [begin]
    while left:
        state = left.pop()
        if any(step in ("in", "leave") and state.versions[slot] != version for step, slot, version in state.readers):
            return True
        new = [later for later in steps(state, again) if later not in seen]
        seen.update(new)
        left += new
    assert len(seen) > 1000
    return False


def test_no_order_of_accesses_lets_a_reader_see_a_slot_change():
    assert not torn(again=True)


def test_without_the_second_look_some_order_does():
    assert torn(again=False)
