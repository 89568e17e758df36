"""Publish the tables that a ranker has learned on top of a store's series, as series of their own: `recsys publish`.

So what one surface has made of an upstream's vectors can be read by the next, as any other series is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedding_store import EmbeddingStore, Snapshot
from recsys.bundle.manifest import PROGRAM, SCHEMA, VOCABULARY, Manifest, Pin, verify
from recsys.bundle.pins import pinned
from recsys.config import ConfigError, RankerConfig, from_dict
from recsys.config.rules import is_word
from recsys.data.convert import table_rows
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING
from recsys.data.schema import Schema
from recsys.data.seen import Ints, read_ids
from recsys.data.times import newest_time
from recsys.folders import bundle_folder
from recsys.models.learned import rows_name
from recsys.models.vocabulary import OwnedRows, Vocabulary

_ROWS = 65_536
"""Vectors that are made at once."""


class _Table(NamedTuple):
    """What a ranker has learned for one series."""

    kind: str
    rows: Tensor  # float32 [rows + 1, D], times what each row learns at
    rate: float


def publish_tables(out: Path, data: Path, name: str, *, store: str = "") -> list[Snapshot]:
    """Write `user_<name>` and `item_<name>`, as far as the ranker learned tables for users and items: a vector for
    every id of the snapshot that it began with and of its training rows, as of the newest of these, in a new space.

    Where several tasks have passes of their own, those of the first task's.

    Args:
        out: of `recsys bundle`.
        data: folder of the events that it was trained on.
        name: what the series are called behind the owner.
        store: where to; empty: the store that the ranker reads.

    Raises:
        ConfigError: the ranker's arm learned no table, two of one owner, or the name is none.
        BundleError: no bundle, or the snapshot that it began with is gone.
        StoreError: the store refuses a snapshot.
    """
    config, arm = _of(out)
    if not is_word(name):
        raise ConfigError(f"--name is {name!r}; use up to 100 of a-z, A-Z, 0-9 and _")
    folder = bundle_folder(out)
    manifest = Manifest.load(folder)
    verify(folder, manifest)
    schema, opened = Schema.load(folder / SCHEMA), EmbeddingStore(store or manifest.store)
    tables = _tables(folder, manifest, config.arm(arm).tables, config)
    owners = [pin.owner for pin in manifest.pins if pin.series in tables]
    if not owners or len(set(owners)) < len(owners):
        raise ConfigError(
            f"arm {arm!r} of {out} learned tables for {sorted(tables) or 'no series'}: there must be one of users, one "
            "of items, or both; see `tables` of an arm"
        )
    files = find_files(data, config.train)
    seen, as_of = read_ids(files, schema, NOTHING), newest_time(files, schema, above=0) if schema.timed else 0
    vocabulary = Vocabulary(schema)
    with np.load(folder / VOCABULARY) as marks:
        vocabulary.restore({owner: torch.from_numpy(marks[owner]) for owner in marks})
    versions = [opened.series(x).next_version for x in (f"user_{name}", f"item_{name}") if x in opened.list()]
    target = _Target(
        opened, name, max(as_of, *(pin.as_of for pin in manifest.pins)), f"{name}-{max(versions, default=1)}"
    )
    found = []
    for pin in manifest.pins:
        if pin.series in tables:
            owned = vocabulary.tables[pin.owner]
            assert isinstance(owned, OwnedRows)
            began = pinned(EmbeddingStore(manifest.store), [pin])[0].vectors
            found.append(target.write(pin, tables[pin.series], owned, began, seen[pin.owner]))
    return found


def _of(out: Path) -> tuple[RankerConfig, str]:
    path = out / "of.json"
    if not path.is_file():
        raise ConfigError(f"{out} is no folder of `recsys bundle`: give its --out")
    of = json.loads(path.read_text())
    return from_dict(RankerConfig, of["config"]), of["arm"]


def _tables(folder: Path, manifest: Manifest, wanted: Mapping[str, str], config: RankerConfig) -> dict[str, _Table]:
    """Series -> its table, in the ranker after the pass that was best for the first task."""
    passes: Mapping[str, int] = manifest.training["best_passes"]
    which = sorted(set(passes.values())).index(passes[manifest.tasks[0].name])
    state = torch.export.load(folder / PROGRAM).state_dict
    tables = {}
    for pin in manifest.pins:
        if pin.series not in wanted:
            continue
        begins, called = f"rankers.{which}.", rows_name(pin.series)
        (rows,) = [x for key, x in state.items() if key.startswith(begins) and called in key]
        rates = state.get(f"{begins}learned.join.{pin.owner}_rates")
        rows = rows.detach() if rates is None else rows.detach() * rates.unsqueeze(1)
        tables[pin.series] = _Table(wanted[pin.series], rows[:, : pin.dim], config.network.table_rate)
    return tables


@dataclass(frozen=True)
class _Target:
    """What is published, users and items alike."""

    store: EmbeddingStore
    name: str
    as_of: int
    space: str

    def write(self, pin: Pin, table: _Table, owned: OwnedRows, began: Snapshot, seen: Ints) -> Snapshot:
        """The snapshot's vectors with the rows of their ids on top, and the rows of ids that it lacks."""
        opened = began.load()
        known = opened.ids().numpy() if table.kind != "scratch" else np.zeros(0, np.int64)
        ids = np.union1d(known, seen)
        series = self.store.create(f"{pin.owner}_{self.name}", dim=pin.dim, dtype=began.dtype, exist_ok=True)
        with series.write(as_of=self.as_of, space=self.space) as writer:
            for start in range(0, len(ids), _ROWS):
                some = ids[start : start + _ROWS]
                rows = table.rows[torch.from_numpy(owned.find(some, table_rows(some, owned.unknown)))]
                vectors, found = opened.lookup(torch.from_numpy(some))
                if table.kind != "scratch":
                    rows = torch.where(found.unsqueeze(1), vectors + table.rate * rows, rows)
                writer.append(torch.from_numpy(some), rows)
        return writer.snapshot
