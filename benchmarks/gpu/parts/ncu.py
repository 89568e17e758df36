"""ncu's counters of three lookups: bytes from memory, throughput, occupancy, registers, what warps wait for.

The clocks are left as they are. All that ncu found is in `ncu.txt`; its report for the viewer is `ncu.ncu-rep`.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tools import found, stream

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "WarpStateStats", "SchedulerStats")
ERROR = "==ERROR=="  # how lines of ncu's own begin
PROGRAMS = "returned an error code"  # in the one that is the program's fault
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct",
    "launch__registers_per_thread",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
)


def run(settings: Settings, journal: Journal) -> None:
    """In a process of its own; without ncu, or on the CPU, the lookups alone."""
    body = [sys.executable, "-m", "benchmarks.gpu.profiled", "--out", str(settings.out)]
    ncu = None if settings.rehearse else found("ncu")
    report = settings.out / "ncu.ncu-rep"
    refused: list[str] = []

    def line(text: str) -> None:
        print(text, flush=True)
        if text.startswith(ERROR) and PROGRAMS not in text:
            refused.append(text.removeprefix(ERROR).strip())

    if ncu is None:
        reason = "a rehearsal, on the CPU" if settings.rehearse else "it is not here: install Nsight Compute"
        journal.left_out("ncu", f"{reason}; the lookups are only called")
        status = stream([*body, *(["--rehearse"] if settings.rehearse else [])], limit=settings.limit)
    else:
        status = stream([*counting(ncu, str(report)), *body], limit=settings.limit, line=line)
    if refused and not report.exists():
        journal.left_out("ncu", refused[0])  # a driver that keeps its counters to itself, say
    elif status is None:
        journal.fail(f"it was not done in {settings.limit:.0f} s")
    elif status:
        journal.fail(f"it ended with status {status}: see the log")
    elif ncu is not None:
        _read(ncu, report, settings, journal)


def _read(ncu: str, report: Path, settings: Settings, journal: Journal) -> None:
    (settings.out / "ncu.txt").write_text(_printed(ncu, report, "details"))
    counted = kernels(_printed(ncu, report, "raw", "--csv"))
    for figures in counted:
        journal.write("kernel", **figures)
    if not counted:
        journal.fail("ncu counted no kernel: see the log")


def counting(ncu: str, report: str) -> list[str]:
    """What comes before the program whose kernels are counted."""
    sections = [word for section in SECTIONS for word in ("--section", section)]
    options = ["--profile-from-start", "off", "--clock-control", "none", "--metrics", ",".join(METRICS)]
    return [ncu, *options, *sections, "--export", report, "--force-overwrite"]


def kernels(raw: str) -> list[dict[str, str]]:
    """The figures of each kernel, from ncu's page of raw values as CSV: a head, units, then a line a kernel."""
    lines = [line for line in raw.splitlines() if line.startswith('"')]
    if not lines:
        return []
    units, *rows = csv.DictReader(lines)
    return [
        {"name": row["Kernel Name"][:120]}
        | {name: f"{row[name]} {units[name] or ''}".strip() for name in METRICS if row.get(name)}
        for row in rows
    ]


def _printed(ncu: str, report: Path, page: str, *options: str) -> str:
    command = [ncu, "--import", str(report), "--page", page, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
