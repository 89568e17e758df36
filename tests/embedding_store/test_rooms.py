"""The rooms of the store import one way, and so do the modules in each of them."""

from __future__ import annotations

from pathlib import Path

import embedding_store
from tests.imports import arrows, circle, imported

PACKAGE = Path(embedding_store.__file__).parent
ROOMS = {"storage", "format", "native", "history", "scan", "read", "write", "serve", "nn", "cli"}


def test_rooms_import_one_way():
    rooms = arrows(PACKAGE, "embedding_store")
    assert set(rooms) >= ROOMS
    assert rooms.pop("__init__") >= {"read", "write", "serve", "nn"}
    assert not circle(rooms)


def module(file: Path) -> str:
    return ".".join(("embedding_store", *file.relative_to(PACKAGE).with_suffix("").parts))


def test_modules_import_one_way():
    files = {module(file): file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py"}
    modules = {}
    for name, file in files.items():
        taken = [f"{full}." for full in imported(file)]
        modules[name] = {
            other for other in files if other != name and any(full.startswith(f"{other}.") for full in taken)
        }
    assert sum(map(len, modules.values())) > 100
    assert not circle(modules)
