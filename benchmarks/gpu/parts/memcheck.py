"""compute-sanitizer's memcheck over lookups of odd dimensions, bags and tiers, whose answers are checked too.

Each allocation is then one of the driver's: torch's caching allocator would hide reads beyond the end of a tensor.
"""

from __future__ import annotations

import sys

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tools import found, stream

FOUND_ERRORS = 86  # exit status


def run(settings: Settings, journal: Journal) -> None:
    """In a process of its own; without the tool, or on the CPU, as it is."""
    body = [sys.executable, "-m", "benchmarks.gpu.odd", *(["--rehearse"] if settings.rehearse else [])]
    sanitizer = None if settings.rehearse else found("compute-sanitizer")
    if sanitizer is None:
        reason = "a rehearsal, on the CPU" if settings.rehearse else "it is not here: install the CUDA toolkit's"
        journal.left_out("compute-sanitizer", f"{reason}; the lookups are only compared")
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", str(FOUND_ERRORS)] if sanitizer else []
    errors: list[str] = []

    def line(text: str) -> None:
        print(text, flush=True)
        if text.startswith("========= ") and any(word in text for word in ("Invalid", "ERROR SUMMARY", "Error:")):
            errors.append(text.removeprefix("========= ").strip())

    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if sanitizer else {}
    status = stream([*command, *body], limit=settings.limit, line=line, environment=variables)
    for text in errors[-20:]:
        journal.write("memcheck", said=text)
    if status is None:
        journal.fail(f"it was not done in {settings.limit:.0f} s")
    elif status == FOUND_ERRORS:
        journal.fail("compute-sanitizer found errors: see the log")
    elif status:
        journal.fail(f"the lookups ended with status {status}: see the log")
    else:
        journal.write("memcheck", said="no error" if sanitizer else "all answers are the CPU's")
