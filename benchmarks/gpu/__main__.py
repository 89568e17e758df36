"""The command: each part in a process of its own, results written as they come, a summary after each part."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import benchmarks.gpu
from benchmarks.gpu.folder import ROOM, tables_folder
from benchmarks.gpu.journal import RESULTS, Journal, PeerError, SkippedError, append, first_line, read
from benchmarks.gpu.names import ALONE_VARIABLE, TABLES_VARIABLE
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.settings import settings_of
from benchmarks.gpu.summary import summary
from benchmarks.gpu.tools import ROOT, end_by_exception, stream

LOG, SUMMARY = "log.txt", "summary.txt"
SKIPPED = 77  # exit status of a part that cannot run here
BROKEN = 78  # and of one in which a variant of another library broke the device
SPARED = 20.0  # seconds of a part's limit that are left for its own last words


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if something failed, was cut off or had no time."""
    started = time.monotonic()  # before torch is imported, which takes a minute from a cold disk
    parser = _parser()
    given = parser.parse_args(arguments)
    names = [part.name for part in PARTS]
    if unknown := set(given.parts) - set(names):
        parser.error(f"no part {', '.join(sorted(unknown))}; use {', '.join(names)}")
    end_by_exception()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.inside:
        status = _inside(given)
        sys.stdout.flush()
        os._exit(status)  # what is left to the interpreter's end fails on a broken device, and may abort
    if given.list:
        for part in PARTS:
            print(f"{part.name:10} {part.limit:4} s at most: {part.what}")
        return 0
    if not given.rehearse and not _gpu_is_there():
        print(
            "benchmarks.gpu: needs a CUDA GPU and a torch built for it; this torch sees none. --rehearse does without"
        )
        return 1
    with tables_folder(0 if given.rehearse else ROOM) as tables:
        os.environ[TABLES_VARIABLE] = str(tables)
        return _run([part for part in PARTS if part.name in (given.parts or names)], given, started + given.seconds)


def _run(parts: Sequence[Part], given: argparse.Namespace, end: float) -> int:
    results = given.out / RESULTS
    kept = [record for record in read(results) if record["part"] not in {part.name for part in parts}]
    results.write_text("")  # of a run before this one only what is not measured anew
    for record in kept:
        append(results, record)
    sound = True
    with (given.out / LOG).open("a", buffering=1) as log:
        for number, part in enumerate(parts):
            later = sum(other.least for other in parts[number + 1 :])
            outcome, seconds, reason = _part(part, given, log, end - time.monotonic(), later)
            sound &= outcome in ("ok", "skipped")
            ended = {"part": part.name, "kind": "part", "outcome": outcome, "seconds": round(seconds, 1)}
            append(results, {**ended, **({"reason": reason} if reason else {})})
            (given.out / SUMMARY).write_text(summary(read(results)))
    print((given.out / SUMMARY).read_text())
    return 0 if sound else 1


def _part(part: Part, given: argparse.Namespace, log: TextIO, left: float, later: float) -> tuple[str, float, str]:
    """How a part ended, after how many seconds, and why if it did not end well. One that hangs takes its own time, not
    what the `later` ones need at least."""
    limit = min(part.limit, max(part.least, left - later))
    if left < part.least:
        return "no time", 0.0, f"{max(left, 0.0):.0f} s were left"

    def line(text: str) -> None:
        print(text, flush=True)
        log.write(text + "\n")

    line(f"=== {part.name}: {part.what} (at most {limit:.0f} s)")
    words = ["--inside", part.name, "--out", str(given.out), "--limit", str(limit - SPARED)]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, *(["--rehearse"] if given.rehearse else [])]
    started = time.monotonic()
    status = stream(command, limit=limit, line=line)
    if part.peers and status is not None and (status == BROKEN or status < 0):
        line(f"=== {part.name} ended with status {status}: without the other libraries")
        command[command.index("--limit") + 1] = str(limit - SPARED - (time.monotonic() - started))
        rest = max(limit - (time.monotonic() - started), 1.0)
        status = stream(command, limit=rest, line=line, environment={ALONE_VARIABLE: "1"})
    seconds = time.monotonic() - started
    if status is None:
        return "cut off", seconds, f"it was not done in {limit:.0f} s"
    if status == 0:
        return "ok", seconds, ""
    if status == SKIPPED:
        return "skipped", seconds, ""
    return "failed", seconds, "" if status == 1 else f"it ended with status {status}: see the log"


def _inside(given: argparse.Namespace) -> int:
    """Of a part's own process."""
    settings = settings_of(given.out, rehearse=given.rehearse, limit=given.limit)
    journal = Journal(given.out, given.inside)
    try:
        importlib.import_module(f"benchmarks.gpu.parts.{given.inside}").run(settings, journal)
    except SkippedError as error:
        journal.left_out("the part", str(error))
        return SKIPPED
    except PeerError as error:
        journal.left_out("the other libraries", str(error))
        return BROKEN
    except Exception as error:
        traceback.print_exc()
        journal.fail(f"{type(error).__name__}: {first_line(str(error))}")
    return 1 if journal.failures else 0


def _gpu_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    out = Path(os.environ.get("OUT") or ROOT / "runs/gpu")
    parser = argparse.ArgumentParser(
        "benchmarks.gpu", description=benchmarks.gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(names)}; none: all of them")
    parser.add_argument("--out", type=Path, default=out, help="folder of results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="that all parts have together")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--list", action="store_true", help="print the parts")
    parser.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=600.0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
