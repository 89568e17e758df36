"""What a log's positives are: the counts that correct a sampled softmax."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from recsys.data.counts import Counts
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks
from recsys.data.schema import Schema
from recsys.data.survey import survey
from recsys.models.losses import ItemFrequencies


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


def frequencies_of(positives: Counts, ranks: Ranks = ALONE) -> ItemFrequencies | None:
    """log Q of items, of which each rank has counted some; None if there is none. A collective."""
    ids, counts = (torch.from_numpy(column) for column in ranks.gather(positives))
    return ItemFrequencies.from_counts(ids, counts) if len(ids) else None
