"""What `recsys prepare log` takes of time and memory for a log of so many actions.

    python -m benchmarks.prepare_log                                       # a CSV of a million actions
    python -m benchmarks.prepare_log --actions 3000000 --kind parquet
    python -m benchmarks.prepare_log --actions 20000000 --kind parquet --memory-gb 2

Makes the log (SYNTHETIC: 60 days, a user for 20 actions, items of which the first are far more popular, a like for nine
views) and gives it to the command as a user would, with histories, counts and negatives as they are by default. The
log and all that is made of it lie in a temporary folder. Prints a line of JSON: seconds by the clock and of processor
time, the largest resident set, rows and bytes that were written.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import tyro

from benchmarks.common import print_record

DAYS, ITEMS = 60, 20_000
_START = 1_700_000_000

_CONFIG = """
[log]
files = ["log-*.{kind}"]
user = "user"
item = "item"
time = "time"
action = "action"
context = ["country"]
memory_gb = {memory_gb}

[actions.view]

[actions.like]
given = "view"
within = "2h"
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Size and form of the log."""

    actions: int = 1_000_000
    """Rows."""
    kind: Literal["csv", "parquet"] = "csv"
    """Of the files, one a day."""
    memory_gb: float = 4.0
    """`log.memory_gb`."""


def write_day(folder: Path, day: int, actions: int, users: int, kind: str) -> None:
    """A day of the log, in the order of time."""
    rng = np.random.default_rng(day)
    table = pa.table(
        {
            "user": rng.integers(0, users, actions),
            "item": np.minimum((rng.pareto(1.0, actions) * 200).astype(np.int64), ITEMS - 1),
            "time": np.sort(rng.integers(0, 86_400, actions)) + _START + day * 86_400,
            "action": rng.choice(["view", "like"], actions, p=[0.9, 0.1]),
            "country": rng.choice(["de", "fr", "it"], actions),
        }
    )
    path = folder / f"log-{day:02}.{kind}"
    if kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)


def main(options: Options) -> None:
    """Measure one log."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for day in range(DAYS):
            write_day(folder, day, options.actions // DAYS, options.actions // 20, options.kind)
        (folder / "LOG.toml").write_text(_CONFIG.format(kind=options.kind, memory_gb=options.memory_gb))
        command = [sys.executable, "-m", "recsys.cli", "prepare", "log", str(folder / "LOG.toml")]
        start = time.perf_counter()
        subprocess.run([*command, "--out", str(folder / "out")], check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        prepared = json.loads((folder / "out/prepared.json").read_text())
        written = sum(path.stat().st_size for path in (folder / "out/events").glob("*/*"))
    figures = {
        "data": f"SYNTHETIC log, {options.kind}",
        "actions": prepared["read"],
        "rows": prepared["events"] + prepared["negatives"]["rows"],
        "memory_gb": options.memory_gb,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mb": round(used.ru_maxrss / 1024),
        "written_mb": round(written / 1e6),
    }
    print_record("prepare_log", figures)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
