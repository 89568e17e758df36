"""A snapshot that several processes write: each a fragment, data files and the sorted entries of their ids, and one of
them the commit, which lists them all. Nothing is visible before that.

All files of a draft lie in one folder, so that none of its writers is taken for dead while another one writes. Of a
part that was written again, say after its process was killed, only the fragment that is committed counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from embedding_store.arguments import integer
from embedding_store.dtypes import DTYPES
from embedding_store.errors import FragmentError, InvalidArgumentError
from embedding_store.format.files import CheckedSink, RowFormat, StoredReader, create_checked
from embedding_store.format.manifest import DataFile, Manifest, StoredFile
from embedding_store.scan.sorter import PairFile, Pairs
from embedding_store.storage.base import Storage
from embedding_store.write.draft import Draft

CHUNK = 1 << 18  # entries read at once
ENTRY_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class SharedDraft:
    """What the writers of one snapshot must agree on, made by `Series.draft`. Small: send it to each of them."""

    series: str
    """Name."""
    schema: int
    dim: int
    dtype: str
    ids: str
    as_of: int
    """ms."""
    space: str
    base: int | None
    """Version that it is a delta on; None: a whole snapshot."""
    parts: int
    """How many fragments it is made of: parts 0 .. parts - 1."""
    folder: str
    """Where their files lie, relative to the series."""

    @property
    def form(self) -> RowFormat:
        """What its rows look like."""
        return RowFormat(dim=self.dim, dtype=DTYPES[self.dtype], ids=self.ids)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A part that is on the disk: what `Series.commit` wants of it. Small, but for the sums, D + 1 numbers."""

    draft: SharedDraft
    part: int
    """Which of them."""
    data: tuple[DataFile, ...]
    """Its rows."""
    entries: StoredFile | None
    """The ids that it upserts and deletes, by hash, each with its location in `data`; None: of nothing."""
    count: int
    """How many ids these are."""
    sums: tuple[float, ...]
    """[1 + D]: the sum of the rows' L2 norms, and of the rows."""
    min_id: int | None
    """Least id that it upserts."""
    max_id: int | None
    """Greatest."""

    @property
    def rows(self) -> int:
        """Rows in its data files."""
        return sum(file.rows for file in self.data)


def new_draft(
    form: RowFormat, *, parts: int, series: str, schema: int, as_of: int, space: str, base: Manifest | None
) -> SharedDraft:
    """A draft with a folder of its own. Raises InvalidArgumentError: `parts` is not 1 or more."""
    return SharedDraft(
        series=series,
        schema=schema,
        dim=form.dim,
        dtype=form.dtype.name,
        ids=form.ids,
        as_of=as_of,
        space=space,
        base=None if base is None else base.version,
        parts=integer(parts, "parts", least=1, why=": how many fragments make the snapshot"),
        folder=f"data/{uuid.uuid4().hex}",
    )


def part_of(draft: SharedDraft, part: int) -> int:
    """The number of a part. Raises InvalidArgumentError: the draft has no such part."""
    part = integer(part, "part", least=0, why=f": the draft has parts 0 .. {draft.parts - 1}")
    if part >= draft.parts:
        raise InvalidArgumentError(f"part is {part}: the draft has parts 0 .. {draft.parts - 1}")
    return part


def write_fragment(storage: Storage, shared: SharedDraft, part: int, prefix: str, draft: Draft) -> Fragment:
    """What a draft has taken, as a fragment; all is durable then. Raises what `Draft.settle` raises."""
    files, settled = draft.settle()
    entries = None
    if settled.entries.count:
        with create_checked(storage, f"{prefix}entries.pairs") as new:
            _write_entries(new.sink, settled.entries)
        entries = new.stored
    if files or entries:
        storage.sync(shared.folder)
    return Fragment(
        draft=shared,
        part=part,
        data=tuple(files),
        entries=entries,
        count=settled.entries.count,
        sums=draft.sums.numbers(),
        min_id=settled.min_id,
        max_id=settled.max_id,
    )


def checked(draft: SharedDraft, fragments: Sequence[Fragment]) -> list[Fragment]:
    """The fragments by their parts. Raises FragmentError unless they are all of this draft, and each part once."""
    parts: dict[int, Fragment] = {}
    for fragment in fragments:
        theirs, name = fragment.draft, f"the fragment of part {fragment.part}"
        for field in fields(SharedDraft):
            if (has := getattr(theirs, field.name)) != (wants := getattr(draft, field.name)):
                message = f"{name} is of another draft: its {field.name} is {has!r}, the draft's {wants!r}"
                raise FragmentError(f"{message}; commit the fragments of one `draft` together")
        if parts.setdefault(fragment.part, fragment) is not fragment:
            raise FragmentError(f"part {fragment.part} is there twice: give one fragment of each part")
    if missing := sorted(set(range(draft.parts)) - set(parts)):
        names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        remedy = "commit when all are written, one without rows too"
        raise FragmentError(f"{len(missing)} of {draft.parts} fragments are missing, of part {names}: {remedy}")
    return [parts[part] for part in range(draft.parts)]


def _write_entries(sink: CheckedSink, entries: PairFile) -> None:
    """(hash of seed 0, location or ABSENT), 16 bytes each, by hash."""
    for pairs in entries:
        sink.write(np.stack(pairs, axis=1).view(np.uint8).data)
        sink.flush()


def read_entries(reader: StoredReader, first: int, last: int) -> Iterator[Pairs]:
    """Entries first .. last - 1 of such a file. Raises FileSizeError or ChecksumError."""
    for start in range(first, last, CHUNK):
        stop = min(start + CHUNK, last)
        words = reader.read(ENTRY_BYTES * start, ENTRY_BYTES * stop).view(np.uint64).reshape(-1, 2)
        yield Pairs(words[:, 0].copy(), words[:, 1].copy())
