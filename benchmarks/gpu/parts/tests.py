"""The tests that need a GPU, file by file, each in a process of its own.

An error of the device (an illegal address, say) makes every later call of its process fail: what failed is therefore
tried once more by itself, and counts as broken only if it fails again; what only fails after another is told apart.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path

from benchmarks.gpu.journal import Journal, SkippedError
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tools import ROOT, stream

RESULT = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
LACKING = re.compile(r"ModuleNotFoundError: No module named .+")
FIRST = "tests/embedding_store/read/test_cuda.py"
FOLDERS = ("tests/embedding_store", "tests/recsys")
"""The first imports no TorchRec; files of the second are left out where that is not here."""
NEEDS_GPU = re.compile(r"needs a GPU|^from tests\..* import .*\bCUDA\b", re.MULTILINE)
"""In a file of tests: the mark itself, or one that is kept elsewhere."""
RETRIED = 25  # failures that are tried again
RETRY_SECONDS = 90.0
FILE_SECONDS = 150.0  # at most: a file that hangs leaves the others time
ON_GPU = "cuda"  # in the name of every test that needs one, or of its file


def run(settings: Settings, journal: Journal) -> None:
    """All files, or for a rehearsal the first, whose tests all say that they need a GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not here: pip install pytest hypothesis")
    end = time.monotonic() + settings.limit
    files = cuda_files()
    results: dict[str, str] = {}
    for file in files[:1] if settings.rehearse else files:
        found = _pytest([file], min(end - time.monotonic(), FILE_SECONDS), journal)
        counts = {what: sum(x == what for x in found.values()) for what in sorted(set(found.values()))}
        journal.write("tests", file=file, **counts)
        results |= found
    failed = [name for name, result in results.items() if result in ("FAILED", "ERROR")]
    for name in failed[:RETRIED]:
        left = end - time.monotonic()
        alone = _pytest([name], min(left, RETRY_SECONDS), journal) if left > 0 else {}
        passes = alone.get(name) == "PASSED"
        journal.fail(f"{name} fails" + (" after others, and passes alone" if passes else ""))
    if len(failed) > RETRIED:
        journal.fail(f"{len(failed) - RETRIED} more tests fail")
    if not results:
        journal.fail("no test was found")


def cuda_files() -> list[str]:
    """The files with tests that need a GPU, the ops' own first, those of `recsys` last."""
    found = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sorted(Path(ROOT, folder).rglob("test_*.py"))
        if NEEDS_GPU.search(path.read_text())
    ]
    return sorted(found, key=lambda file: (file != FIRST, ON_GPU not in Path(file).name))


def _pytest(names: list[str], limit: float, journal: Journal) -> dict[str, str]:
    """Test -> result, as far as it came. Told is an end that is pytest's own failure, or for want of a module."""
    results: dict[str, str] = {}
    lacking: list[str] = []

    def line(text: str) -> None:
        print(text, flush=True)
        if match := LACKING.search(text):
            lacking.append(match[0])
        if match := RESULT.match(text):
            results[match[1]] = match[2]

    options = ["-v", "-k", ON_GPU, "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short", "-rN"]
    status = stream([sys.executable, "-m", "pytest", *options, *names], limit=max(limit, 1.0), line=line)
    if status is None:
        journal.fail(f"{', '.join(names)}: not done in {max(limit, 1.0):.0f} s")
    elif lacking and not results:
        journal.left_out(", ".join(names), lacking[0])
    elif status not in (0, 1):
        journal.fail(f"{', '.join(names)}: pytest ended with status {status}: see the log")
    return results
