"""What the scripts here share: figures of variants measured in turn, and what machine they were measured on."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

Input = TypeVar("Input")


def in_turn(
    variants: Mapping[str, Callable[[Input], Any]], inputs: Sequence[Input], *, rounds: int = 1
) -> dict[str, float]:
    """Median seconds of each variant over all inputs and rounds, after one round that is not counted.

    The variants take turns, A B C A B C, so that what else the machine does meets all of them, and their ratios hold
    where single times do not. Each is an input ahead of the one before it: none finds in the caches what another has
    just read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for counted in [False] + [True] * rounds:
        for turn in range(len(inputs)):
            for ahead, (name, function) in enumerate(variants.items()):
                value = inputs[(turn + ahead) % len(inputs)]
                started = time.perf_counter()
                function(value)
                if counted:
                    seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_record(benchmark: str, figures: Mapping[str, Any]) -> None:
    """One JSON line: the figures, the machine and the day."""
    machine = {"processor": processor(), "torch": torch.__version__, "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps({"benchmark": benchmark, **figures, **machine}))


def processor() -> str:
    """Name of this machine's processor."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
