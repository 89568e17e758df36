"""CapturableLiveTable against a model, on the CPU: versions, slots and readers in any order."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedding_store import DeviceMemoryError, EmbeddingStore, SlotBusyError
from embedding_store.serve import slots
from tests.embedding_store.serve.test_capturable import capturable, publish_rows


class Machine(RuleBasedStateMachine):
    """Against a model: what is served, what lies in the other slot, and who reads which version."""

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        self.exits.enter_context(pytest.MonkeyPatch.context()).setattr(slots, "PATIENCE", 0.0)
        path = Path(self.exits.enter_context(TemporaryDirectory()))
        self.series = EmbeddingStore(path).create("user", dim=2)
        self.rows = {1: 100}
        publish_rows(self.series, 100)
        self.series.tag("prod", 1)
        self.live = capturable(self.series, tag="prod", headroom=0.3)
        self.exits.enter_context(self.live)
        self.served, self.other = 1, None  # versions
        self.readers: list[tuple[ExitStack, object, int]] = []

    @rule(rows=st.sampled_from([1, 60, 100, 120, 400]))
    def publish(self, rows: int) -> None:
        publish_rows(self.series, rows)
        self.rows[max(self.rows) + 1] = rows

    @rule(rows=st.integers(1, 5))
    def publish_delta(self, rows: int) -> None:
        version, base = max(self.rows) + 1, max(self.rows)
        if self.rows[base] == 100:
            publish_rows(self.series, rows, base=base)
            self.rows[version] = -rows  # the first ones are of this version, the others of its base

    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.rows)))
        self.series.tag("prod", version)
        busy = any(of == self.other for _, _, of in self.readers)
        status = self.live.refresh()
        if version == self.served:
            pass
        elif version == self.other:
            self.served, self.other = version, self.served
        elif busy:
            assert isinstance(status.error, SlotBusyError)
        elif self.rows[version] == 400:
            assert isinstance(status.error, DeviceMemoryError)
            self.other = None
        else:
            assert status.error is None
            self.served, self.other = version, self.served
        assert status.version == self.served

    @precondition(lambda self: len(self.readers) < 4)
    @rule()
    def begin(self) -> None:
        stack = ExitStack()
        self.readers.append((stack, stack.enter_context(self.live.reading()), self.served))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.readers) - 1))
        self.readers.pop(number)[0].close()

    @invariant()
    def everybody_reads_the_version_that_was_served_at_the_beginning(self) -> None:
        for _, reading, version in self.readers:
            assert int(reading.version) == version  # type: ignore[attr-defined]
            self.check(reading.tables["user"].lookup, version)  # type: ignore[attr-defined]
        self.check(self.live.lookup, self.served)

    def check(self, lookup: object, version: int) -> None:
        rows = self.rows[version]
        vectors, found = lookup(torch.arange(500))  # type: ignore[operator]
        assert int(found.sum()) == (rows if rows > 0 else 100)
        new = abs(rows)
        assert vectors[:new].eq(float(version)).all()
        assert rows > 0 or vectors[new:100].eq(float(version - 1)).all()

    def teardown(self) -> None:
        for stack, _, _ in self.readers:
            stack.close()
        self.exits.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
