"""What changes in a series: where its tags point to, and which snapshots are about to go.

All of it is in one file, `tags/00000042.json`; the file with the highest number counts. Who changes something reads the
newest, decides, and puts the next one if absent. If somebody else was faster, what was decided may be wrong by now: it
is decided anew. So all moves of tags, expiries and retractions of a series happen one after the other, and a version is
never pointed to and about to go at once, whoever stalls or dies where: every run acts on a file that it has put.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from embedding_store.errors import MissingFileError
from embedding_store.format.documents import Fields
from embedding_store.format.numbered import NumberedFiles
from embedding_store.storage.base import Storage

KEPT_MOVES = 100
"""Newest moves of a tag that are kept: a rollback needs some, and people look at them."""
KEPT_STATES = 100
"""Newest files that `clean` keeps: who reads a number, stalls and puts the next one must not find it free again."""
STATES = NumberedFiles("tags", "tags")


class Move(NamedTuple):
    """One move of a tag."""

    number: int
    """1, 2, 3, ..."""
    version: int | None
    """Where it points to since; None: removed."""
    moved: int
    """When, ms since the epoch."""


class State(NamedTuple):
    """The tags of a series, and what is about to go, at one moment."""

    tags: Mapping[str, tuple[Move, ...]]
    """Tag -> its moves, oldest first; a removed tag's too."""
    going: Mapping[int, bool]
    """Versions whose manifests will be deleted, or are by now -> whether they are retracted; False: expired. That is
    settled: no tag may be moved to them."""


def read(storage: Storage) -> tuple[State, int]:
    """The state of a series, and its number; 0 before the first change."""
    while True:
        numbers = STATES.numbers(storage)
        if not numbers:
            return State(_of_folders(storage), {}), 0
        try:
            return _decoded(STATES.read(storage, numbers[-1])), numbers[-1]
        except MissingFileError:  # so many were put since it was listed that it was cleaned away
            if numbers == STATES.numbers(storage):
                raise


def change(storage: Storage, decide: Callable[[State], State | None]) -> State:
    """Put what `decide` makes of the state; None: nothing is to be changed. Returns the state as it is then.

    `decide` is called again if somebody else changed the state meanwhile. What it looks up it looks up anew each time:
    of what it finds, all that goes by the state is right until it is put.
    """
    while True:
        before, number = read(storage)
        after = decide(before)
        if after is None:
            return before
        with suppress(FileExistsError):
            STATES.put(storage, number + 1, _fields(after))
            if STATES.numbers(storage)[-1] <= number + KEPT_STATES:  # else its number may have been free again
                return after


def prune(storage: Storage) -> list[str]:
    """Delete all but the newest KEPT_STATES files; returns their paths."""
    pruned = [STATES.path(number) for number in STATES.numbers(storage)[:-KEPT_STATES]]
    for path in pruned:
        storage.delete(path)
    return pruned


def _of_folders(storage: Storage) -> dict[str, tuple[Move, ...]]:
    """The tags as earlier writers left them, a folder of moves each; from the first change on they are in the state."""
    tags = {}
    for tag in storage.names("tags"):
        files = NumberedFiles(f"tags/{tag}", "tag")
        moves = [(number, files.read(storage, number)) for number in files.numbers(storage)]
        tags[tag] = tuple(Move(n, f.optional_integer("version", least=1), f.integer("moved")) for n, f in moves)
    return {tag: moves for tag, moves in tags.items() if moves}


def _fields(state: State) -> dict[str, Any]:
    tags = [
        {"tag": tag, "moves": [move._asdict() for move in moves[-KEPT_MOVES:]]} for tag, moves in state.tags.items()
    ]
    going = [{"version": version, "retracted": retracted} for version, retracted in state.going.items()]
    return {"tags": tags, "going": going}


def _decoded(fields: Fields) -> State:
    return State(
        {tag.text("tag"): tuple(_move(move) for move in tag.objects("moves")) for tag in fields.objects("tags")},
        {one.integer("version", least=1): one.boolean("retracted", absent=False) for one in fields.objects("going")},
    )


def _move(fields: Fields) -> Move:
    return Move(fields.integer("number", least=1), fields.optional_integer("version", least=1), fields.integer("moved"))
