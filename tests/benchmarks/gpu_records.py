"""What a run of benchmarks/gpu has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.journal import RESULTS, read


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Its records of a kind."""
    return [record for record in read(folder / RESULTS) if record["kind"] == kind]
