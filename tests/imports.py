"""What the files of a package import, and whether its rooms do so one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded(package: Path, name: str, *modules: str) -> set[str]:
    """Full names of what is imported when these modules of the package `name` are: not in functions, nor for type
    checkers alone."""
    found: set[str] = set()
    waiting = {*modules}
    while waiting:
        full = waiting.pop()
        found.add(full)
        if full.startswith(f"{name}."):
            path = package.joinpath(*full.split(".")[1:])
            files = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()]
            waiting |= {full.rpartition(".")[0], *(other for file in files for other in _at_once(file))} - found
    return found


def _at_once(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package: Path, name: str) -> dict[str, set[str]]:
    """Room of the package `name` -> the others it imports."""
    found: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        room = file.relative_to(package).with_suffix("").parts[0]
        others = {full.split(".")[1] for full in imported(file) if full.startswith(f"{name}.")}
        found.setdefault(room, set()).update(others - {room})
    return found


def circle(rooms: Mapping[str, set[str]]) -> list[str]:
    """Rooms that import each other in a circle; empty: there are none."""
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        return error.args[1]
    return []
