"""Is everything there: the device, the libraries, one lookup; and what memory and the bus give."""

from __future__ import annotations

import platform
import shutil
import subprocess
from datetime import UTC, datetime

import torch

from benchmarks.gpu.ids import draw
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import UNIFORM
from benchmarks.gpu.roof import bus_rates, copy_rate, out_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import snapshot
from benchmarks.gpu.timing import Clock
from benchmarks.gpu.tools import ROOT
from benchmarks.gpu.variants import store

ROWS = 1_000
EMPTY_CALLS = 20
ASKED = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,mig.mode.current"


def run(settings: Settings, journal: Journal) -> None:
    """Raises what a lookup raises."""
    software = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": platform.python_version()}
    journal.write(
        "machine", **software, date=datetime.now(UTC).date().isoformat(), commit=_commit(), **_device(settings)
    )
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        journal.write("nvidia-smi", said=(said.stdout or said.stderr).strip())
    for dtype in settings.dtypes:
        made = snapshot(settings, journal, dtype, settings.dim, ROWS)
        lookup = store(made.load(settings.device), made.load(), out_of(dtype))
        (batch,) = draw(UNIFORM, 1, ROWS, ROWS, settings.device, 0, missing=0.1)
        wrong = lookup.check(batch)
        if wrong:
            journal.fail(f"lookup of {dtype}: {wrong}")
        else:
            journal.write("lookup", dtype=dtype, ids=ROWS, answer="the CPU's")
    clock = Clock(settings.device)
    nothing = min(clock.on_device(lambda: None) for _ in range(EMPTY_CALLS))
    journal.write("roof", copy_GB_per_s=round(copy_rate(settings, clock) / 1e9, 1), empty_call_us=round(nothing, 2))
    journal.write("bus", **{f"{way} GB/s": round(rate / 1e9, 2) for way, rate in bus_rates(settings, clock).items()})


def _commit() -> str:
    """Of the checkout, if this is one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _device(settings: Settings) -> dict[str, object]:
    if settings.device.type != "cuda":
        return {"device": "CPU"}
    found = torch.cuda.get_device_properties(settings.device)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory": found.total_memory,
        "processors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
    }
