from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import TABLES_VARIABLE
from benchmarks.gpu.settings import Settings, settings_of


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv(TABLES_VARIABLE, str(tmp_path / "tables"))
    (tmp_path / "tables").mkdir()
    return replace(settings_of(tmp_path, rehearse=True), rows=500, dim=6, most_batches=1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, "part")
