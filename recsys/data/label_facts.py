"""What the losses of some labels have to know of all rows that are trained on, counted once before a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema
from recsys.data.stream import EventStream

_SCAN_ROWS = 65_536
"""Rows of labels that are read at once."""


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Of the rows of one training."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Label that is a value -> its mean; 1 where all are 0."""


def survey_labels(files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING) -> LabelFacts:
    """Read the labels of all rows, if any of them asks for it.

    Raises:
        DataError: what `EventStream` raises.
    """
    values = [label.name for label in schema.labels if label.is_value]
    if not values:
        return LabelFacts()
    facts = schema.select(features=(), labels=tuple(values))
    sums, counts = np.zeros(len(values)), np.zeros(len(values))
    for batch in EventStream(files, facts, batch_size=_SCAN_ROWS, drop_last=False, skip=skip):
        sums += batch.labels.double().sum(0).numpy()  # 0 where it is not valid
        counts += batch.label_mask.double().sum(0).numpy()
    means = np.where(sums > 0, sums / np.maximum(counts, 1), 1.0)
    return LabelFacts(means=dict(zip(values, means.tolist(), strict=True)))
