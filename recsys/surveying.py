"""What a training has to know of its events before the first step: the positives' frequencies, who is there, and the
items that negatives are drawn from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from recsys.config import UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.last_events import LastEvents, everywhere, newest_rows, share_events
from recsys.data.newest import behind
from recsys.data.quarantine import Quarantine
from recsys.data.ranks import Ranks
from recsys.data.schema import Schema
from recsys.data.survey import Surveyed, survey
from recsys.models.frequencies import ItemFrequencies
from recsys.models.vocabulary import own_ids
from recsys.positives import frequencies_of


def read_survey(
    files: Sequence[Path],
    schema: Schema,
    upstream: UpstreamConfig,
    skip: Quarantine,
    as_of: int | None,
    ranks: Ranks,
) -> Surveyed | None:
    """What is known of the events that are trained on; None where nothing of it is asked for. A collective."""
    if not upstream.loss.contrastive_weight:
        return survey(files, schema, (), skip, ranks=ranks) if own_ids(schema) else None
    labels = tuple(upstream.loss.contrasted([label.name for label in schema.labels]))
    return survey(files, schema, labels, skip, as_of=as_of, ranks=ranks)


def find_frequencies(
    surveyed: Surveyed | None, upstream: UpstreamConfig, schema: Schema, ranks: Ranks, *, started: bool
) -> ItemFrequencies | None:
    """What the contrastive loss needs, None if there is to be none. A day that goes on from a trained model may have no
    positive: it teaches what it can. A first training without one is a mistake. A collective."""
    if surveyed is None or not upstream.loss.contrastive_weight:
        return None
    frequencies = frequencies_of(surveyed.positives, ranks)
    if frequencies is None and not started:
        labels = upstream.loss.contrasted([label.name for label in schema.labels])
        raise DataError(
            f"label {' or '.join(map(repr, labels))} is never 1 in {len(surveyed.files)} files: contrast another "
            "label, give more events, or set loss.contrastive_weight = 0"
        )
    return frequencies


def last_items(
    files: Sequence[Path],
    items: Sequence[Path],
    schema: Schema,
    skip: Quarantine,
    surveyed: Surveyed | None,
    ranks: Ranks,
    withdrawn: Collection[int],
) -> LastEvents:
    """The last row of each item of events and of items' own rows, but for those that are withdrawn. A collective."""
    if surveyed is None:
        surveyed = survey(files, schema, (), skip, ranks=ranks)
    parts = [(surveyed.rows["item"], len(files))]
    if items:
        parts.append((newest_rows(items, schema, "item", skip, ranks=ranks), len(items)))
    return everywhere(share_events([*files, *items], behind(parts), ranks=ranks, without=withdrawn), ranks)
