"""What a log's positives are: the counts that correct a sampled softmax."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recsys.data.counts import Counts
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks
from recsys.data.schema import Schema
from recsys.data.survey import survey
from recsys.models.frequencies import DEPTH, ItemFrequencies, cells_of

HEAD = 2**20
"""Items whose counts are exact: 12 MiB on every device."""
WIDTH = 2**22
"""Cells of each hash function for the others, a power of two: 32 MiB in all."""


def count_positives(
    files: Sequence[Path],
    schema: Schema,
    labels: Sequence[str],
    skip: Quarantine = NOTHING,
    as_of: int | None = None,
    ranks: Ranks = ALONE,
) -> ItemFrequencies | None:
    """How often each item is the positive of a training row, by any of these labels: Q of the logQ correction (Yi et
    al. 2019). A collective.

    Counted before training starts, each row on one rank; None if no row is positive.

    Raises:
        DataError: what `survey` raises.
    """
    return frequencies_of(survey(files, schema, labels, skip, as_of=as_of, ranks=ranks).positives, ranks)


def frequencies_of(
    counted: Counts, ranks: Ranks = ALONE, *, head: int = HEAD, width: int = WIDTH
) -> ItemFrequencies | None:
    """log Q of items in bounded memory; None if nothing was counted. A collective.

    Args:
        counted: this rank's items, each item on one rank, with a count of 1 or more.
        ranks: who have counted.
        head: how many items are exact at most.
        width: cells of each hash function where there are more, a power of two.
    """
    items, total = ranks.sum(np.array([len(counted.ids), counted.counts.sum()])).tolist()
    if not items:
        return None
    frequent = counted.counts >= (1 if items <= head else _threshold(counted.counts, ranks, head))
    ids, counts = (torch.from_numpy(x) for x in ranks.gather([column[frequent] for column in counted]))
    ids, order = ids.sort()
    logs = (counts[order].double() / total).log().float()
    if items <= head:
        return ItemFrequencies(ids, logs)
    cells, rest = np.zeros((DEPTH, width), np.float32), counted.counts[~frequent].astype(np.float32)
    for row, places in zip(cells, cells_of(torch.from_numpy(counted.ids[~frequent]), width).numpy(), strict=True):
        np.maximum.at(row, places, rest)
    greatest = torch.from_numpy(np.asarray(ranks.max(cells), np.float32)).double()
    return ItemFrequencies(ids, logs, (greatest / total).log().half(), -float(np.log(total)))


def _threshold(counts: np.ndarray, ranks: Ranks, head: int) -> int:
    """The least count that no more than `head` items of all ranks have. A collective."""
    counts = np.sort(counts)
    low, high = 1, int(ranks.max(np.array([counts.max(initial=0)]))[0]) + 1
    while low < high:
        middle = (low + high) // 2
        above = len(counts) - np.searchsorted(counts, middle)
        if ranks.sum(np.array([above]))[0] <= head:
            high = middle
        else:
            low = middle + 1
    return low
