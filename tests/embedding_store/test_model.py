"""The store against a model of it: a list of dicts, driven by Hypothesis."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedding_store import (
    AsOfDecreasedError,
    DuplicateIdsError,
    EmbeddingStore,
    InvalidVectorsError,
    TagNotFoundError,
    VersionNotFoundError,
)

DIM = 2
IDS = st.sampled_from([-(2**63), -5, -1, 0, 1, 2, 3, 2**31, 2**40, 2**63 - 1])
VALUES = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0])  # each dtype holds them exactly, but for int8 and int4
BATCHES = st.lists(st.lists(st.tuples(IDS, VALUES, VALUES), max_size=5), max_size=4)
CHANGES = st.lists(
    st.one_of(st.lists(st.tuples(IDS, VALUES, VALUES), max_size=4), st.sets(IDS, max_size=3)), max_size=4
)
"""Of a delta: batches to append, sets to delete."""
DUPLICATES = st.sampled_from(["error", "last"])
ROWS_PER_BATCH = st.sampled_from([1, 2, 3, None])
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])


class StoreModel(RuleBasedStateMachine):
    """Every step is done to the store and to `self.history`: one (as_of, {id: vector}) a version."""

    @initialize(dtype=DTYPES)
    def create(self, dtype: str) -> None:
        self.folder = tempfile.mkdtemp()
        self.history: list[tuple[int, dict[int, list[float]]]] = []
        self.tags: dict[str, int] = {}
        self.series = EmbeddingStore(self.folder).create("user_ctr", dim=DIM, dtype=dtype)

    @rule(
        batches=BATCHES,
        step=st.integers(-1, 2),
        duplicates=DUPLICATES,
        rows_per_batch=ROWS_PER_BATCH,
        fail=st.sampled_from([None, None, None, RuntimeError, InvalidVectorsError]),
    )
    def write(self, batches: list, step: int, fail: type[Exception] | None, **options: Any) -> None:
        as_of = (self.history[-1][0] if self.history else 100) + step
        expected = fail
        if self.history and step < 0:
            expected = AsOfDecreasedError
        ids = [row[0] for batch in batches for row in batch]
        if expected is None and options["duplicates"] == "error" and len(set(ids)) < len(ids):
            expected = DuplicateIdsError
        if expected is None:
            self._write(batches, as_of, None, options)
            self.history.append((as_of, {row[0]: list(row[1:]) for batch in batches for row in batch}))
        else:
            with pytest.raises(expected):
                self._write(batches, as_of, fail, options)

    def _write(self, batches: list, as_of: int, fail: type[Exception] | None, options: dict[str, Any]) -> None:
        with self.series.write(as_of=as_of, space="s", **options) as writer:
            for batch in batches:
                ids = torch.tensor([row[0] for row in batch], dtype=torch.int64)
                writer.append(ids, torch.tensor([row[1:] for row in batch]).reshape(-1, DIM))
            if fail is InvalidVectorsError:
                writer.append(torch.tensor([1]), torch.full((1, DIM), float("nan")))
            elif fail is not None:
                raise fail("the caller's own")

    @precondition(lambda self: self.history)
    @rule(changes=CHANGES, duplicates=DUPLICATES, rows_per_batch=ROWS_PER_BATCH, data=st.data())
    def delta(self, changes: list, data: st.DataObject, **options: Any) -> None:
        base = data.draw(st.integers(1, len(self.history)))
        as_of, rows = self.history[-1][0], dict(self.history[base - 1][1])
        appended = [row[0] for change in changes if isinstance(change, list) for row in change]
        deleted = {id for change in changes if isinstance(change, set) for id in change}
        if options["duplicates"] == "error" and (len(set(appended)) < len(appended) or deleted & set(appended)):
            with pytest.raises(DuplicateIdsError):
                self._write_delta(base, as_of, changes, options)
            return
        self._write_delta(base, as_of, changes, options)
        for change in changes:
            for change_of in change:
                if isinstance(change, list):
                    rows[change_of[0]] = list(change_of[1:])
                else:
                    rows.pop(change_of, None)
        self.history.append((as_of, rows))

    def _write_delta(self, base: int, as_of: int, changes: list, options: dict[str, Any]) -> None:
        with self.series.write(as_of=as_of, space="s", base=base, **options) as writer:
            for change in changes:
                if isinstance(change, list):
                    ids = torch.tensor([row[0] for row in change], dtype=torch.int64)
                    writer.append(ids, torch.tensor([row[1:] for row in change]).reshape(-1, DIM))
                else:
                    writer.delete(torch.tensor(list(change), dtype=torch.int64))

    @precondition(lambda self: self.history)
    @rule()
    def compact(self) -> None:
        was_delta = self.series.latest().manifest.base is not None
        assert self.series.compact().manifest.stored_rows == len(self.history[-1][1])
        if was_delta:
            self.history.append(self.history[-1])

    @precondition(lambda self: self.history)
    @rule(rows=st.integers(1, 4), data=st.data())
    def read_all(self, rows: int, data: st.DataObject) -> None:
        version = data.draw(st.integers(1, len(self.history)))
        snapshot, expected = self.series.version(version), self.history[version - 1][1]
        found = [pair for part in snapshot.batches(rows) for pair in zip(*(x.tolist() for x in part[:2]), strict=True)]
        assert len(found) == len(expected)
        assert dict(found) == expected
        assert snapshot.load().ids().tolist() == sorted(expected)

    @rule()
    def reopen(self) -> None:
        self.series = EmbeddingStore(self.folder).series("user_ctr")

    @rule(wanted=st.integers(98, 115))
    def as_of(self, wanted: int) -> None:
        versions = [i for i, (as_of, _) in enumerate(self.history, 1) if as_of <= wanted]
        if versions:
            assert self.series.as_of(wanted).version == versions[-1]
        else:
            with pytest.raises(VersionNotFoundError):
                self.series.as_of(wanted)

    @precondition(lambda self: self.history)
    @rule(ids=st.lists(IDS, max_size=12), data=st.data())
    def lookup(self, ids: list[int], data: st.DataObject) -> None:
        version = data.draw(st.integers(1, len(self.history)))
        rows = self.history[version - 1][1]
        vectors, found = self.series.version(version).load().lookup(torch.tensor(ids, dtype=torch.int64))
        assert found.tolist() == [id in rows for id in ids]
        assert vectors.tolist() == [rows.get(id, [0.0] * DIM) for id in ids]

    @precondition(lambda self: self.history)
    @rule(name=st.sampled_from(["prod", "canary"]), data=st.data())
    def tag(self, name: str, data: st.DataObject) -> None:
        self.tags[name] = data.draw(st.integers(1, len(self.history)))
        self.series.tag(name, self.tags[name])

    @rule(name=st.sampled_from(["prod", "canary"]))
    def untag(self, name: str) -> None:
        if name in self.tags:
            self.series.untag(name)
            del self.tags[name]
        else:
            with pytest.raises(TagNotFoundError):
                self.series.untag(name)

    @invariant()
    def history_is_the_models(self) -> None:
        found = [(snapshot.as_of, snapshot.rows) for snapshot in self.series.history()]
        assert found == [(as_of, len(rows)) for as_of, rows in self.history]
        assert self.series.tags() == self.tags

    def teardown(self) -> None:
        for snapshot in self.series.history():
            snapshot.verify()
        shutil.rmtree(self.folder)


StoreModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_store_agrees_with_a_dict = StoreModel.TestCase
