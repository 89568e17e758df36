"""Draws a second of the bootstrap over users, and what the one pass before them costs.

    python -m benchmarks.bootstrap

Rows of a tenth as many users, one in ten positive, three metrics, one seed. `row_by_row` is the same draw that reads
every row: RankedScores. CPU seconds of one thread. Prints one JSON line and one readable line a size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from benchmarks.common import print_record
from recsys.evaluate.bootstrap import METRICS, RankedScores, resample


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: tuple[int, ...] = (1_000_000, 10_000_000)
    draws: int = 1000


def main(options: Options) -> None:
    """Measure each number of rows."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    for rows in options.rows:
        labels = (random.random(rows) < 0.1).astype(np.float32)
        users, scores = random.integers(0, rows // 10, rows), (labels + random.normal(size=rows)).astype(np.float32)
        ranked = RankedScores(labels, users, scores)
        weights = random.poisson(1.0, int(users.max()) + 1).astype(np.float64)
        slow = _seconds(lambda: ranked.metrics(weights, METRICS))  # noqa: B023
        once = _seconds(lambda: resample(labels, users, scores, samples=1))  # noqa: B023
        all_of_them = _seconds(lambda: resample(labels, users, scores, samples=options.draws))  # noqa: B023
        print_record(
            "bootstrap",
            {
                "rows": rows,
                "pass_seconds": round(once, 2),
                "draws_per_second": round(options.draws / max(all_of_them - once, 1e-9)),
                "row_by_row_draws_per_second": round(1 / slow, 2),
            },
        )


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
