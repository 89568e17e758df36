"""A team can adopt the store alone: it imports nothing of recsys."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import embedding_store

PACKAGE = Path(embedding_store.__file__).parent
ALLOWED = {"embedding_store", "numpy", "pyarrow", "rich", "torch", "tyro"}
OPTIONAL = {"objects.py": {"obstore"}}  # of extras; the module is imported where it is needed only


def test_imports_only_its_own_dependencies():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            allowed = ALLOWED | OPTIONAL.get(file.name, set()) | sys.stdlib_module_names
            assert roots <= allowed, f"{file} imports {roots}"


def test_what_few_need_is_not_imported_by_the_package():
    """An extra's module, and torch's compiler: 900 modules and 70 MB in every process that looks up vectors."""
    code = "import sys, embedding_store; assert not {'obstore', 'torch._dynamo', 'sympy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
