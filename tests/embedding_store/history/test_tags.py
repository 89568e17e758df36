"""Tags: moves that are put in an order, none of them lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    InvalidArgumentError,
    Series,
    TagMovedError,
    TagNotFoundError,
    VersionExpiredError,
    VersionNotFoundError,
)
from embedding_store.errors import FileFormatError
from embedding_store.format import documents
from embedding_store.format.manifest import manifest_path
from embedding_store.history.state import KEPT_MOVES, KEPT_STATES
from embedding_store.history.tags import Tags
from embedding_store.history.versions import Versions
from embedding_store.storage.local import LocalStorage
from tests.embedding_store.bare import publish_bare
from tests.embedding_store.helpers import folder
from tests.processes import forkserver

TIMEOUT = 600.0


@pytest.fixture
def five(series: Series) -> Series:
    """A series with versions 1 to 5."""
    for _ in range(5):
        publish_bare(series)
    return series


def test_tags_of_earlier_writers_are_read_and_go_on(five: Series):
    """They kept a folder of moves for each tag."""
    for number, version in ((1, 2), (2, 4)):
        path = folder(five) / f"tags/prod/{number:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(documents.encode("tag", {"version": version, "moved": number}))
    assert five.tags() == {"prod": 4}
    five.tag("canary", 5)
    assert five.tags() == {"canary": 5, "prod": 4}
    assert five.rollback("prod").version == 2
    assert [move.version for move in five.moves("prod")] == [2, 4, 2]


def test_tags_move_and_roll_back(five: Series):
    for version in (1, 4, 3, 5):
        five.tag("prod", version)
    five.tag("canary", 5)
    assert five.tags() == {"canary": 5, "prod": 5}
    assert five.latest().tags == ("canary", "prod")
    assert five.tagged("prod").version == 5
    assert [five.rollback("prod").version for _ in range(2)] == [3, 1]
    with pytest.raises(TagNotFoundError, match="at version 1 and has named no earlier one"):
        five.rollback("prod")
    assert five.rollback("canary", 2).version == 2
    with pytest.raises(InvalidArgumentError, match="version is 2, tag 'canary' is at 2"):
        five.rollback("canary", 2)
    with pytest.raises(VersionNotFoundError):
        five.rollback("canary", 0)
    five.untag("canary")
    assert five.tags() == {"prod": 1}
    assert five.version(1).tags == ("prod",)
    assert [move.version for move in five.moves("prod")] == [1, 4, 3, 5, 3, 1]
    assert [move.number for move in five.moves("canary")] == [1, 2, 3]
    assert [move.version for move in five.moves("canary")] == [5, 2, None]


def test_what_is_not_there_is_named(five: Series):
    five.tag("prod", 2)
    five.tag("canary", 3)
    for ask in (five.tagged, five.untag, five.rollback):
        with pytest.raises(TagNotFoundError, match=r"no tag 'prud'; tags: canary, prod"):
            ask("prud")
    with pytest.raises(TagNotFoundError, match=r"there was never a tag 'prud'; tags: canary, prod"):
        five.moves("prud")
    with pytest.raises(VersionNotFoundError, match="versions: 1-5"):
        five.tag("prod", 6)
    with pytest.raises(InvalidArgumentError, match=r"tag is '\.\./prod'"):
        five.tag("../prod", 1)
    assert five.tags() == {"canary": 3, "prod": 2}


def test_compare_and_set(five: Series):
    five.tag("prod", 1, expected=None)
    with pytest.raises(TagMovedError, match=r"tag 'prod' points to version 1, expected was that it does not exist"):
        five.tag("prod", 2, expected=None)
    with pytest.raises(TagMovedError, match=r"points to version 1, expected was that it points to version 4: look"):
        five.tag("prod", 2, expected=4)
    five.tag("prod", 2, expected=1)
    five.untag("prod")
    with pytest.raises(TagMovedError, match="tag 'prod' does not exist, expected was that it points to version 2"):
        five.tag("prod", 3, expected=2)
    five.tag("prod", 3, expected=None)
    assert [move.version for move in five.moves("prod")] == [1, 2, None, 3]


def test_a_removed_tag_begins_anew(five: Series):
    five.tag("prod", 1)
    five.untag("prod")
    with pytest.raises(TagNotFoundError, match="tags: none"):
        five.untag("prod")
    with pytest.raises(TagNotFoundError, match="no tag 'prod'"):
        five.tagged("prod")
    five.tag("prod", 3)
    with pytest.raises(TagNotFoundError, match="named no earlier one"):
        five.rollback("prod")


def test_a_rollback_skips_what_was_expired(five: Series):
    for version in (1, 2, 3):
        five.tag("prod", version)
    five.tag("archive", 1)
    assert [s.version for s in five.expire(keep_last=1, dry_run=False)] == [2, 4]
    assert five.rollback("prod").version == 1


def test_a_rollback_does_not_undo_a_move_it_has_not_seen(five: Series, monkeypatch: pytest.MonkeyPatch):
    for version in (1, 2):
        five.tag("prod", version)
    earlier = Tags.earlier

    def overtaken(self: Tags, name: str) -> tuple[int, int]:
        found = earlier(self, name)
        monkeypatch.setattr(Tags, "earlier", earlier)
        five.tag("prod", 5)
        return found

    monkeypatch.setattr(Tags, "earlier", overtaken)
    with pytest.raises(TagMovedError, match="points to version 5"):
        five.rollback("prod")
    assert five.tagged("prod").version == 5


def test_a_reader_follows_a_tag_whose_old_version_is_gone(five: Series, monkeypatch: pytest.MonkeyPatch):
    five.tag("prod", 1)
    read = LocalStorage.read

    def slow(self: LocalStorage, path: str) -> bytes:
        found = read(self, path)
        if path.startswith("tags/"):
            monkeypatch.setattr(LocalStorage, "read", read)
            five.tag("prod", 4)
            five.expire(keep_last=1, dry_run=False)
        return found

    monkeypatch.setattr(LocalStorage, "read", slow)
    assert five.tagged("prod").version == 4
    with pytest.raises(VersionExpiredError):
        five.version(1)


def test_a_tag_whose_version_is_not_there_leads_to_the_one_before(five: Series):
    for version in (1, 3, 4):
        five.tag("prod", version)
    (folder(five) / manifest_path(4)).unlink()
    assert five.tagged("prod").version == 3
    assert five.tags() == {"prod": 3}
    assert five.version(3).tags == ("prod",)
    assert five.rollback("prod").version == 1
    assert [move.version for move in five.moves("prod")] == [1, 3, 4, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(1, 6), st.just("rollback")), max_size=12))
def test_tags_against_a_list(tmp_path_factory: pytest.TempPathFactory, operations: list[Any]):
    series = EmbeddingStore(tmp_path_factory.mktemp("tags")).create("user_ctr", dim=3)
    for _ in range(5):
        publish_bare(series)
    (folder(series) / manifest_path(3)).unlink()
    tags, existing, model = Tags(Versions(series._storage, series.name)), {1, 2, 4, 5}, [None]
    for operation in operations:
        if operation == "rollback":
            since = model[max(i for i, version in enumerate(model) if version is None) + 1 :]
            wanted = [v for v in since if v < model[-1]] if since else []
            if wanted:
                assert tags.earlier("prod") == (model[-1], wanted[-1])
            else:
                with pytest.raises(TagNotFoundError):
                    tags.earlier("prod")
        elif operation in (3, 6):
            with pytest.raises(VersionNotFoundError):
                tags.move("prod", operation)
        else:
            tags.move("prod", operation, expected=model[-1])
            model.append(operation)
        assert series.tags() == ({} if model[-1] is None else {"prod": model[-1]})
        assert model[-1] in (None, *existing)
    if len(model) > 1:
        assert [(move.number, move.version) for move in tags.moves("prod")] == list(enumerate(model))[1:]


def test_reading_tags_looks_at_the_last_file_only(five: Series, monkeypatch: pytest.MonkeyPatch):
    for version in (1, 2, 3, 4):
        five.tag("prod", version)
        five.tag("canary", 1)
    read, paths = LocalStorage.read, []
    monkeypatch.setattr(LocalStorage, "read", lambda self, path: paths.append(path) or read(self, path))
    assert five.tags() == {"canary": 1, "prod": 4}
    assert paths == ["tags/00000008.json"]


def test_the_newest_moves_and_files_are_kept(five: Series):
    five.tag("prod", 1)
    for turn in range(KEPT_MOVES):
        five.tag("prod", 2 + turn % 2)
    assert KEPT_MOVES == KEPT_STATES
    assert five.clean() == ["tags/00000001.json"]
    assert five.clean() == []
    assert [move.number for move in five.moves("prod")] == list(range(2, KEPT_MOVES + 2))
    assert five.rollback("prod").version == 2
    with pytest.raises(TagNotFoundError):  # the move to version 1 is forgotten
        five.rollback("prod")


def test_a_run_that_stalls_until_its_number_is_free_again_begins_anew(five: Series, monkeypatch: pytest.MonkeyPatch):
    five.tag("prod", 1)
    put_new = LocalStorage.put_new

    def stalled(self: LocalStorage, path: str, data: bytes) -> None:
        monkeypatch.setattr(LocalStorage, "put_new", put_new)
        for turn in range(KEPT_STATES + 2):
            five.tag("prod", 2 + turn % 2)
        assert path in five.clean()
        put_new(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_new", stalled)
    five.tag("canary", 5)
    assert five.tags() == {"canary": 5, "prod": 3}


def test_a_torn_file_is_an_error_that_names_it(five: Series):
    five.tag("prod", 2)
    file = folder(five) / "tags/00000001.json"
    original = file.read_bytes()
    file.write_bytes(original.replace(b'"version": 2', b'"version": 3'))
    with pytest.raises(ChecksumError, match=r"tags/00000001\.json"):
        five.tagged("prod")
    file.write_bytes(documents.encode("tags", {"tags": [{"tag": "prod", "moves": [{"number": 0}]}], "going": []}))
    with pytest.raises(FileFormatError, match=r"00000001\.json: .*number is 0"):
        five.tags()
    file.write_bytes(original)
    (file.parent / "notes.txt").write_text("not a state")
    assert five.tags() == {"prod": 2}


def moving_process(path: Path, barrier: Any, number: int, moves: int) -> None:
    """Move `prod` by plain moves, and count `counter` up by compare-and-set."""
    series = EmbeddingStore(path).series("user_ctr")
    barrier.wait(TIMEOUT)
    for turn in range(moves):
        series.tag("prod", 2 * turn + number)
        while True:
            present = series.tags().get("counter")
            try:
                series.tag("counter", (present or 0) + 1, expected=present)
                break
            except TagMovedError:
                continue


def test_two_processes_that_move_one_tag_lose_no_move(store: EmbeddingStore, series: Series):
    context = forkserver()
    barrier, moves = context.Barrier(2), 15
    for _ in range(2 * moves):
        publish_bare(series)
    movers = [context.Process(target=moving_process, args=(store.path, barrier, n, moves)) for n in (1, 2)]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join(TIMEOUT)
        mover.kill()
    assert [mover.exitcode for mover in movers] == [0, 0]
    assert series.tags()["counter"] == 2 * moves
    history = [move.version for move in series.moves("prod")]
    assert len(history) == 2 * moves
    for number in (1, 2):
        own = [version for version in history if version is not None and version % 2 == number % 2]
        assert own == [2 * turn + number for turn in range(moves)]
    assert series.tags()["prod"] == history[-1]


def test_tags_of_a_store_that_is_opened_again(store: EmbeddingStore, five: Series):
    five.tag("prod", 3)
    assert EmbeddingStore(store.location).series("user_ctr").tags() == {"prod": 3}
