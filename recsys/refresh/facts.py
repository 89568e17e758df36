"""What a cycle has to know of its days' events but for their features: taken where all rows are read anyway, when they
are screened, so that no rank reads them once more for the log Q, the last events or the quality."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recsys.config import UpstreamConfig
from recsys.data.last_events import SharedEvents, newest_rows, share_events
from recsys.data.newest import behind
from recsys.data.quarantine import Quarantine
from recsys.data.ranks import Ranks
from recsys.data.schema import Schema
from recsys.data.shares import Read
from recsys.data.survey import Survey, Surveyed
from recsys.monitor.traffic import Traffic, TrafficSample


class Facts(NamedTuple):
    """Of one day."""

    surveyed: Surveyed
    traffic: Traffic


class FactsCollector:
    """Collects them; the `visitor` of `screen`.

    Args:
        files: of the day.
        schema: of the events.
        upstream: for whom.
        as_of: time up to which outcomes are known, ms.
    """

    def __init__(self, files: Sequence[Path], schema: Schema, upstream: UpstreamConfig, as_of: int) -> None:
        self.as_of = as_of
        loss, names = upstream.loss, [label.name for label in schema.labels]
        positives = tuple(loss.contrasted(names)) if loss.contrastive_weight else ()
        self._survey = Survey(files, schema, positives, as_of)
        self._sample = TrafficSample(schema, loss.contrastive_label or names[0], as_of)

    def add(self, read: Read) -> None:
        """Take in rows."""
        self._survey.add(read)
        self._sample.add(read)

    def together(self, ranks: Ranks) -> Facts:
        """What all ranks have collected. A collective."""
        surveyed = self._survey.together(ranks)
        return Facts(surveyed, self._sample.together(surveyed.rows, ranks))


def last_of(
    parts: Sequence[Surveyed | Sequence[Path]],
    schema: Schema,
    owner: str,
    skip: Quarantine,
    own: Mapping[Path, int],
    ranks: Ranks,
    without: Collection[int],
) -> SharedEvents:
    """The last rows of a log's entities. A collective.

    Args:
        parts: of the log, in its order: events that have been surveyed, and files of own rows, which are read.
        schema: of the events.
        owner: `user` or `item`.
        skip: own rows that are left out.
        own: see `last_events`.
        ranks: who share the reading.
        without: entities that are left out.

    Raises:
        DataError: what `last_events` raises.
    """
    files, found = list[Path](), []
    for part in parts:
        if isinstance(part, Surveyed):
            found.append((part.rows[owner], len(part.files)))
            files += part.files
        elif part:
            found.append((newest_rows(part, schema, owner, skip, own, ranks), len(part)))
            files += part
    return share_events(files, behind(found), own, ranks, without)
