"""Where a figure was measured: the machine and the code's commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """`cpu` (model), `cores` (that this process may use), `memory_bytes`, `gpu` (models; empty without one)."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def commit() -> str:
    """Commit of the checkout this package lies in, `-dirty` if tracked files differ; `unknown` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        # the file must be tracked: an installed copy may lie inside the checkout of somebody else's project
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        revision = _git(folder, "rev-parse", "HEAD")
        return f"{revision}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else revision
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
