"""Every order in which the storage sees the steps of runs that change tags and let versions go, stalled and dead runs
included: a tag always leads to a version that exists."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from embedding_store import MissingFileError, VersionExpiredError, times
from embedding_store.errors import InvalidArgumentError, TagMovedError, TagNotFoundError
from embedding_store.format.manifest import MANIFESTS
from embedding_store.history import state as states
from embedding_store.history.expire import expire, retract
from embedding_store.history.tags import Tags, pointed
from embedding_store.history.versions import Versions, newest, versions
from tests.embedding_store.bare import bare_manifest

NAME = "user_ctr"
Run = Callable[[Versions], Any]


class Memory:
    """The parts of a storage that are asked for here, in a dict."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)

    def locate(self, path: str) -> str:
        return path

    def names(self, folder: str) -> list[str]:
        return sorted(path.removeprefix(f"{folder}/") for path in self.files if path.startswith(f"{folder}/"))

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise MissingFileError(path, "does not exist")
        return self.files[path]

    def put_new(self, path: str, data: bytes) -> None:
        if path in self.files:
            raise FileExistsError(path)
        self.files[path] = data

    def delete(self, path: str) -> None:
        self.files.pop(path, None)


class Paused(BaseException):
    """A run is about to ask the storage for something."""

    def __init__(self, step: tuple[str, tuple[Any, ...]]) -> None:
        self.step = step


class Replayed:
    """Answers a run's first questions as before, and stops it at the next one."""

    def __init__(self, answers: tuple[Any, ...]) -> None:
        self.answers = iter(answers)

    def locate(self, path: str) -> str:
        return path

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            try:
                answer = next(self.answers)
            except StopIteration:
                raise Paused((name, arguments)) from None
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def advance(run: Run, answers: tuple[Any, ...]) -> tuple[str, Any]:
    """("step", what the run asks for after these answers), ("done", None) or ("error", what it raised)."""
    try:
        run(Versions(Replayed(answers), NAME))  # type: ignore[arg-type]
        return "done", None
    except Paused as paused:
        return "step", paused.step
    except (VersionExpiredError, TagMovedError, TagNotFoundError, InvalidArgumentError) as error:
        return "error", error


def step_of(stored: dict[str, bytes], step: tuple[str, tuple[Any, ...]]) -> tuple[dict[str, bytes], Any]:
    """The files after a step, and its answer."""
    after = Memory(stored)
    try:
        return after.files, getattr(after, step[0])(*step[1])
    except (FileExistsError, MissingFileError) as error:
        return after.files, error


def explore(files: dict[str, bytes], runs: list[Run], check: Callable[[Memory, bool], None]) -> int:
    """Call `check` with the files of every state that some order of the runs' steps leads to, and whether all are done.

    A run that dies is one that makes no more steps: the others go on from each of its states to their ends.
    """
    seen, checked = set[Any](), set[Any]()
    waiting = [(files, tuple(() for _ in runs))]
    while waiting:
        stored, answers = waiting.pop()
        key = (frozenset(stored.items()), repr(answers))
        if key in seen:
            continue
        seen.add(key)
        stands = [advance(run, given) for run, given in zip(runs, answers, strict=True)]
        ended = all(stand != "step" for stand, _ in stands)
        if (key[0], ended) not in checked:
            checked.add((key[0], ended))
            check(Memory(stored), ended)
        for index, (stand, step) in enumerate(stands):
            if stand == "step":
                after, answer = step_of(stored, step)
                given = (*answers[index], answer)
                waiting.append((after, (*answers[:index], given, *answers[index + 1 :])))
    return len(seen)


def walk(files: dict[str, bytes], runs: list[Run], check: Callable[[Memory, bool], None], choice: random.Random) -> int:
    """As `explore`, of one order; a run may die at any step. Returns how many states were checked."""
    stored, answers = files, {run: () for run in runs}
    alive, checked = list(answers), 0
    while alive:
        run = choice.choice(alive)
        stand, step = advance(run, answers[run])
        if stand != "step" or choice.random() < 0.01:
            alive.remove(run)
            continue
        stored, answer = step_of(stored, step)
        answers[run] = (*answers[run], answer)
        if step[0] in ("put_new", "delete"):
            check(Memory(stored), False)
            checked += 1
    return checked


def found_in(storage: Memory) -> Versions:
    """The versions in this storage."""
    return Versions(storage, NAME)  # type: ignore[arg-type]


def tag(name: str, version: int | None) -> Run:
    return lambda found: Tags(found).move(name, version)


def roll_back(found: Versions) -> None:
    present, version = Tags(found).earlier("prod")
    Tags(found).move("prod", version, expected=present)


def keep_one(found: Versions) -> None:
    expire(found, keep_last=1, before=None, dry_run=False)


def take_back(found: Versions) -> None:
    retract(found, 3)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Versions 1 to 3; tag prod has been at 1 and is at 2."""
    monkeypatch.setattr(times, "now", lambda: 1_000_000)
    storage = Memory({})
    for version in (1, 2, 3):
        MANIFESTS.put(storage, version, bare_manifest(version).fields())  # type: ignore[arg-type]
    for version in (1, 2):
        tag("prod", version)(found_in(storage))
    return storage.files


def check(storage: Any, ended: bool) -> None:
    """No tag leads to what is gone, and if all that are not at their ends die, the next ones find what they need."""
    existing = versions(storage)
    state, _ = states.read(storage)
    pointing = {moves[-1].version for moves in state.tags.values()} - {None}
    assert pointing <= set(existing)
    assert not pointing & set(state.going)
    assert set(pointed(storage).values()) == pointing
    assert newest(storage)[1] == 4
    if ended:
        assert not set(state.going) & set(existing)
    rules = Memory(storage.files)
    expire(found_in(rules), keep_last=9, before=None, dry_run=False)
    assert versions(found_in(rules).storage) == existing
    for version in existing:
        moved = Memory(storage.files)
        if version in state.going:
            with pytest.raises(VersionExpiredError):
                tag("next", version)(found_in(moved))
            assert version not in found_in(moved).numbers()
        else:
            tag("next", version)(found_in(moved))
            assert pointed(found_in(moved).storage)["next"] == version


@pytest.mark.parametrize(
    "runs",
    [[keep_one, tag("prod", 1)], [keep_one, roll_back], [take_back, tag("prod", 3)]],
    ids=["expire and tag", "expire and rollback", "retract and tag"],
)
def test_a_tag_never_leads_to_what_is_gone(files: dict[str, bytes], runs: list[Run]):
    assert explore(files, runs, check) > 100


def test_nor_when_more_run_at_once(files: dict[str, bytes]):
    choice, checked = random.Random(0), 0
    for _ in range(60):
        runs = [keep_one, lambda found: keep_one(found), tag("prod", 3), tag("canary", 1), roll_back, take_back]
        checked += walk(files, choice.sample(runs, 4), check, choice)
    assert checked > 100
