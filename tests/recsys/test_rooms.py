"""The rooms of `recsys` import one way, and know of the embedding store what it gives to all."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import embedding_store
import recsys.cli

PACKAGE = Path(recsys.cli.__file__).parent
STORE = "embedding_store"


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package: Path) -> dict[str, set[str]]:
    """Room -> the others it imports."""
    found: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        room = file.relative_to(package).with_suffix("").parts[0]
        others = {name.split(".")[1] for name in imported(file) if name.startswith("recsys.")}
        found.setdefault(room, set()).update(others - {room})
    return found


def circle(rooms: Mapping[str, set[str]]) -> list[str]:
    """Rooms that import each other in a circle; empty: there are none."""
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_rooms_import_one_way() -> None:
    rooms = arrows(PACKAGE)
    assert {"config", "data", "models", "train", "refresh", "monitor", "downstream", "evaluate", "study"} <= set(rooms)
    assert not circle(rooms)


@pytest.mark.parametrize("line", ["from recsys import b", "def f():\n    from recsys.b import c"])
def test_a_circle_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text(line)
    (tmp_path / "b.py").write_text("if TYPE_CHECKING:\n    import recsys.a.x")
    assert set(circle(arrows(tmp_path))) == {"a", "b"}


def test_evaluate_knows_no_run() -> None:
    assert arrows(PACKAGE)["evaluate"] == set()


def test_the_store_is_used_by_what_it_gives_to_all() -> None:
    used = {(file.name, name) for file in PACKAGE.rglob("*.py") for name in imported(file) if name.startswith(STORE)}
    assert len(used) > 10
    assert {name for _, name in used} <= {f"{STORE}.{name}" for name in embedding_store.__all__}, used


def test_only_recipes_know_the_synthetic_market() -> None:
    market = ("recsys.data.market", "recsys.data.synthetic")
    knowing = {file.name for file in PACKAGE.rglob("*.py") if any(name.startswith(market) for name in imported(file))}
    assert knowing == {"recipes.py", "synthetic.py"}
