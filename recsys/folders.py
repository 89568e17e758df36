"""Where a run keeps what its jobs hand to each other."""

from __future__ import annotations

from pathlib import Path


def upstream_folder(out: Path, name: str) -> Path:
    """Where an upstream keeps its checkpoints and figures."""
    return out / "upstream" / name


def store_folder(out: Path) -> Path:
    """Where a run keeps its embedding store."""
    return out / "store"
