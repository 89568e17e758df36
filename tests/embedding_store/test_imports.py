"""A team can adopt the store alone: it imports nothing of recsys."""

from __future__ import annotations

import ast
from pathlib import Path

import embedding_store

PACKAGE = Path(embedding_store.__file__).parent
ALLOWED = {"embedding_store", "numpy", "pyarrow", "rich", "torch", "tyro"}


def test_imports_only_its_own_dependencies():
    import sys

    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert roots <= ALLOWED | sys.stdlib_module_names, f"{file} imports {roots}"
