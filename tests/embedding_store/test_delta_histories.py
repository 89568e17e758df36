"""Random histories of deltas against dicts, driven by Hypothesis: whatever is an overlay, folded, compacted or old."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from embedding_store import EmbeddingStore, Snapshot, hash_keys
from embedding_store.dtypes import DTYPES, decode, encode
from embedding_store.format.documents import checksum
from embedding_store.format.manifest import manifest_path
from embedding_store.read.snapshot import table_layout
from embedding_store.read.upload import upload
from embedding_store.scan.changed import changed_ids
from embedding_store.scan.diff import Diff
from embedding_store.write import overlay
from tests.embedding_store.helpers import age, folder, named_files

DIM = 3
INT64 = [-(2**63), -(2**63) + 1, -7, -1, 0, 1, 2, 3, 2**31, 2**40, 2**63 - 2, 2**63 - 1]
TEXT = ["", "a", "anna", "björn", "carla", "d" * 40, "e", "f", "g", "h", "i", "\u65e5\u672c"]
ENTITIES = st.integers(0, len(INT64) - 1)
VECTORS = st.tuples(*[st.floats(-8, 8, width=16)] * DIM)
OPERATIONS = st.lists(
    st.one_of(st.dictionaries(ENTITIES, VECTORS, max_size=5), st.sets(ENTITIES, max_size=4)), max_size=4
)
"""Batches to append, and sets to delete, in this order."""
Rows = dict[int, tuple[float, ...]]  # entity -> its vector as stored


def as_earlier(path: Path) -> None:
    """A manifest as it was written before `deletes` and `folded`; with a whole index, before version 3."""
    document = json.loads(path.read_bytes())
    for key in ("checksum", "deletes", "folded"):
        document.pop(key, None)
    if document.get("overlay") is None:
        document.pop("overlay", None)
        document["format_version"] = 2
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
    body = (",\n".join(lines) + "\n}\n").encode()
    path.write_bytes(f'{{"checksum": "{checksum(body)}",\n'.encode() + body)


class DeltaHistories(RuleBasedStateMachine):
    """`self.history`: version -> (as_of, content) of all that were not expired. `self.line`: of every version what it
    was made of, if anything, and which entities it wrote or deleted there. `self.known`: all of that can be told."""

    @initialize(
        dtype=st.sampled_from(["float32", "int8", "bfloat16"]),
        ids=st.sampled_from(["int64", "text"]),
        least=st.sampled_from([0, 3, 4096]),
        share=st.sampled_from([1, 3, 16]),
        rows=st.dictionaries(ENTITIES, VECTORS),
    )
    def create(self, dtype: str, ids: str, least: int, share: int, rows: Rows) -> None:
        self.before = overlay.LEAST, overlay.SHARE
        overlay.LEAST, overlay.SHARE = least, share
        self.folder = tempfile.mkdtemp()
        self.kind, self.text = DTYPES[dtype], ids == "text"
        self.series = EmbeddingStore(self.folder).create("entities", dim=DIM, dtype=dtype, ids=ids)
        self.names: list[Any] = TEXT if self.text else INT64
        self.ids = hash_keys(TEXT) if self.text else torch.tensor(INT64)
        self.history: dict[int, tuple[int, Rows]] = {}
        self.line: dict[int, tuple[int | None, set[int]]] = {}
        self.known = True
        self.write_whole(rows, rows_per_batch=2)

    @rule(rows=st.dictionaries(ENTITIES, VECTORS), rows_per_batch=st.sampled_from([1, 3, None]))
    def write_whole(self, rows: Rows, rows_per_batch: int | None) -> None:
        with self.series.write(as_of=self._next_time(), space="s", rows_per_batch=rows_per_batch) as writer:
            writer.append(*self._given(rows))
        self._keep(writer.snapshot, self._stored(rows), None, set(rows))

    @rule(data=st.data(), operations=OPERATIONS, rows_per_batch=st.sampled_from([1, 2, None]), newest=st.booleans())
    def write_delta(self, data: st.DataObject, operations: list, rows_per_batch: int | None, newest: bool) -> None:
        base = max(self.history) if newest else data.draw(st.sampled_from(sorted(self.history)))
        rows, touched = dict(self.history[base][1]), set[int]()
        options: dict[str, Any] = {"duplicates": "last", "rows_per_batch": rows_per_batch}
        with self.series.write(as_of=self._next_time(), space="s", base=base, **options) as writer:
            for operation in operations:
                if isinstance(operation, dict):
                    writer.append(*self._given(operation))
                    rows |= self._stored(operation)
                    touched |= operation.keys()
                else:
                    writer.delete(self._names(operation))
                    rows = {entity: vector for entity, vector in rows.items() if entity not in operation}
                    touched |= operation
        manifest, before = writer.snapshot.manifest, self.series.version(base).manifest
        if manifest.overlay is not None:
            assert manifest.index == before.index
            assert manifest.overlay.entries <= max(overlay.LEAST, before.index_entries // overlay.SHARE)
        self._keep(writer.snapshot, rows, base, touched)

    @precondition(lambda self: self.series.latest().manifest.base is not None)
    @rule()
    def compact(self) -> None:
        folded = max(self.history)
        rows = self.history[folded][1]
        whole = self.series.compact()
        assert (whole.manifest.base, whole.manifest.overlay, whole.manifest.stored_rows) == (None, None, len(rows))
        self._keep(whole, rows, folded, set())

    @rule(data=st.data())
    def make_old(self, data: st.DataObject) -> None:
        """What is there might have been written by an earlier package."""
        for version in data.draw(st.sets(st.sampled_from(sorted(self.history)))):
            as_earlier(folder(self.series) / manifest_path(version))
            self.known = False
        self.series = EmbeddingStore(self.folder).series("entities")

    @rule(keep=st.integers(1, 4))
    def expire(self, keep: int) -> None:
        """Deltas outlive the versions whose files they share."""
        for snapshot in self.series.expire(keep_last=keep, dry_run=False):
            del self.history[snapshot.version]
            self.known = False
        age(folder(self.series), 8000)
        self.series.clean()
        tombstoned = {
            path for one in self.series.expired() for f in one.manifest.files for path in (f.path, f.crc_path)
        }
        present = {str(path.relative_to(folder(self.series))) for path in folder(self.series).glob("data/*/*")}
        needed = {path for path in named_files(self.series) if path.startswith("data/")}
        assert needed <= present <= needed | tombstoned

    @rule(data=st.data(), delay=st.integers(0, 3))
    def look_up_as_of(self, data: st.DataObject, delay: int) -> None:
        times = torch.tensor(data.draw(st.lists(st.integers(95, 160), min_size=len(INT64), max_size=len(INT64))))
        vectors, found, versions = self.series.lookup_as_of(self.ids, times, delay_ms=delay)
        for i, time in enumerate(times.tolist()):
            seen = [version for version, (as_of, _) in self.history.items() if as_of + delay <= time]
            version = max(seen, default=0)
            assert int(versions[i]) == version
            rows = self.history[version][1] if seen else {}
            assert bool(found[i]) == (i in rows)
            assert tuple(vectors[i].tolist()) == rows.get(i, (0.0,) * DIM)

    @rule(data=st.data())
    def diff(self, data: st.DataObject) -> None:
        old, new = (data.draw(st.sampled_from(sorted(self.history))) for _ in range(2))
        (_, before), (_, after) = self.history[old], self.history[new]
        found = self.series.diff(old, new)
        kept = before.keys() & after.keys()
        moved = sum(before[entity] != after[entity] for entity in kept)
        assert found == Diff(
            old=old,
            new=new,
            added=len(after.keys() - before.keys()),
            removed=len(before.keys() - after.keys()),
            kept=len(kept),
            moved=moved,
            cosine=found.cosine,
        )
        if kept:
            ends = torch.tensor([[before[entity], after[entity]] for entity in sorted(kept)]).double()
            norms = ends.norm(dim=2).prod(1)
            cosines = torch.where(norms > 0, (ends[:, 0] * ends[:, 1]).sum(1) / norms.clamp(min=1e-300), 0.0)
            cosines = torch.where((ends[:, 0] == ends[:, 1]).all(1), 1.0, cosines)
            assert found.cosine is not None
            expected = cosines.quantile(torch.tensor(list(found.cosine), dtype=torch.float64))
            torch.testing.assert_close(torch.tensor(list(found.cosine.values())).double(), expected, atol=1e-5, rtol=0)

    @rule(data=st.data())
    def changed(self, data: st.DataObject) -> None:
        """What histories tell is all that differs, and no more than was written since they parted."""
        old, new = (data.draw(st.sampled_from(sorted(self.history))) for _ in range(2))
        manifests = [self.series.version(version).manifest for version in (old, new)]
        chunks = changed_ids(self.series._storage, *manifests)
        found = None if chunks is None else [id for chunk in chunks for id in chunk.tolist()]
        (_, before), (_, after) = self.history[old], self.history[new]
        differ = {entity for entity in before.keys() | after.keys() if before.get(entity) != after.get(entity)}
        if found is not None:
            assert len(set(found)) == len(found)
            assert {int(self.ids[entity]) for entity in differ} <= set(found)
        ours, theirs = self._made_of(old), self._made_of(new)
        parted = max(set(ours) & set(theirs), default=None)
        if self.known and parted is not None and self.series.version(parted).manifest.data:
            since = {v for v in ours + theirs if v > parted}
            assert found is not None
            assert set(found) <= {int(self.ids[entity]) for version in since for entity in self.line[version][1]}

    @invariant()
    def all_versions_read_as_their_dicts(self) -> None:
        for version, (as_of, rows) in self.history.items():
            snapshot = self.series.version(version)
            assert (snapshot.as_of, snapshot.rows) == (as_of, len(rows))
            numbers = [int(self.ids[entity]) for entity in rows]
            ends = (min(numbers, default=None), max(numbers, default=None))
            assert (snapshot.statistics.min_id, snapshot.statistics.max_id) == ends

    def _made_of(self, version: int | None) -> list[int]:
        """The version, what it was made of, and so on."""
        versions = []
        while version is not None:
            versions.append(version)
            version = self.line[version][0]
        return versions

    def _keep(self, snapshot: Snapshot, rows: Rows, base: int | None, touched: set[int]) -> None:
        """Look at a new version in every way."""
        self.history[snapshot.version] = snapshot.as_of, rows
        self.line[snapshot.version] = base, touched
        table = snapshot.load()
        mapping, headers = snapshot._map(anew=True)
        layout = table_layout(snapshot.manifest, mapping.starts, headers)
        copied = upload(mapping, layout, dim=DIM, dtype=self.kind, device="cpu", index_path="the index")
        expected = torch.tensor([rows.get(entity, (0.0,) * DIM) for entity in range(len(INT64))])
        assert table.ids().tolist() == sorted(int(self.ids[entity]) for entity in rows)
        for vectors, found in (
            table.lookup(self.ids),
            snapshot.load(gpu_bytes=100_000).lookup(self.ids),
            torch.ops.embedding_store.lookup(self.ids, *copied, DIM, self.kind.name, torch.float32),
        ):
            assert found.tolist() == [entity in rows for entity in range(len(INT64))]
            assert torch.equal(vectors, expected)
        read = {}
        for part in snapshot.batches(2):
            read |= zip(part.ids.tolist(), map(tuple, part.vectors.tolist()), strict=True)
            if self.text:
                assert part.keys is not None
                assert torch.equal(hash_keys(part.keys), part.ids)
        assert read == {int(self.ids[entity]): vector for entity, vector in rows.items()}
        snapshot.verify()

    def _next_time(self) -> int:
        return max((as_of for as_of, _ in self.history.values()), default=99) + len(self.history) % 2

    def _names(self, entities: Any) -> Any:
        names = [self.names[entity] for entity in entities]
        return names if self.text else torch.tensor(names, dtype=torch.int64)

    def _given(self, rows: Rows) -> tuple[Any, Tensor]:
        return self._names(rows), torch.tensor(list(rows.values())).reshape(-1, DIM)

    def _stored(self, rows: Rows) -> Rows:
        """As the dtype holds them."""
        vectors = decode(encode(self._given(rows)[1], self.kind), DIM, self.kind)
        return dict(zip(rows, map(tuple, vectors.tolist()), strict=True))

    def teardown(self) -> None:
        overlay.LEAST, overlay.SHARE = self.before
        shutil.rmtree(self.folder)


DeltaHistories.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_deltas_agree_with_dicts = DeltaHistories.TestCase
