"""compute-sanitizer's memcheck over lookups of odd dimensions, bags and tiers, whose answers are checked too.

Each allocation is then one of the driver's: torch's caching allocator would hide reads beyond the end of a tensor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import COMPARED, NO_TIME
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tools import found, stream

FOUND_ERRORS = 86  # exit status
INVALID = "Invalid"  # in a line of the tool's about an access that is
WORDS = (INVALID, "ERROR SUMMARY", "Error:", "error:")
LAST_TABLE = 30.0  # seconds of the limit that are left for a table that was begun at its end
OPTIONS = (
    *("--tool", "memcheck", "--error-exitcode", str(FOUND_ERRORS)),
    *("--report-api-errors", "no"),  # torch asks the driver for what it may not have, and is content with a no
)


def run(settings: Settings, journal: Journal) -> None:
    """In a process of its own; without the tool, where that cannot watch the device, or on the CPU, as it is."""
    end = time.monotonic() + settings.limit
    until = ["--until", str(time.time() + settings.limit - LAST_TABLE)]  # what starting takes is not known beforehand
    body = [sys.executable, "-m", "benchmarks.gpu.odd", *until, *(["--rehearse"] if settings.rehearse else [])]
    sanitizer = None if settings.rehearse else found("compute-sanitizer")
    if sanitizer is None:
        reason = "a rehearsal, on the CPU" if settings.rehearse else "it is not here: install the CUDA toolkit's"
    else:
        status, said = _watched([sanitizer, *OPTIONS, *body], end - time.monotonic(), journal)
        if not status or any(INVALID in text or COMPARED in text for text in said):
            _tell(status, [text for text in said if COMPARED not in text], settings, journal)
            return
        reason = f"it ended with status {status} before a lookup was compared ({' '.join(said[-1:])})"
    journal.left_out("compute-sanitizer", f"{reason}; the lookups are only compared")
    status = stream(body, limit=end - time.monotonic())
    _tell(status, [], settings, journal)


def _watched(command: Sequence[str], limit: float, journal: Journal) -> tuple[int | None, list[str]]:
    """The exit status, and what was said of errors and of lookups."""
    said: list[str] = []

    def line(text: str) -> None:
        print(text, flush=True)
        if NO_TIME in text:
            journal.left_out("the rest", text)
        if COMPARED in text or (text.startswith("========= ") and any(word in text for word in WORDS)):
            said.append(text.removeprefix("========= ").strip())

    return stream(command, limit=limit, line=line, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}), said


def _tell(status: int | None, said: Sequence[str], settings: Settings, journal: Journal) -> None:
    for text in said[-20:]:
        journal.write("memcheck", said=text)
    if status is None:
        journal.fail(f"it was not done in {settings.limit:.0f} s")
    elif status == FOUND_ERRORS:
        journal.fail("compute-sanitizer found errors: see the log")
    elif status:
        journal.fail(f"the lookups ended with status {status}: see the log")
    else:
        journal.write("memcheck", said="no error" if said else "all answers are the CPU's")
