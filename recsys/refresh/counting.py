"""Count the prior of items (recsys/prior.py) in a log's newest hours: for every cycle, and between cycles by
`recsys prior`, which trains and embeds nothing, so that it can be had every hour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_store import EmbeddingStore, Snapshot
from recsys.config import RefreshConfig, UpstreamConfig
from recsys.data.counts import Counter, Counts
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks
from recsys.data.scan import Findings, Part, Window
from recsys.data.schema import Schema
from recsys.data.shares import read_share
from recsys.dates import HOUR_MS
from recsys.folders import store_of
from recsys.prior import Prior
from recsys.refresh.days import find_days, window
from recsys.refresh.prior import prior_series, publish_prior, withdrawn_items
from recsys.screening import screen
from recsys.source import upstream_schema
from recsys.train.distributed import Environment, broadcast
from recsys.train.exchange import ranks_of
from recsys.train.watch import Pulse
from recsys.upstream import screen_source


class Events(NamedTuple):
    """Files that may hold events of the window, and what of them nobody reads."""

    files: Sequence[Path]
    found: Findings


def refresh_prior(config: RefreshConfig, data: Path, out: Path, *, events: str = "") -> Snapshot:
    """Count the prior anew and publish it, as of the newest event.

    Args:
        config: of the upstream's refresh: its contrastive label, and how far back is counted.
        data: folder of the events.
        out: folder of the run, whose store is written to.
        events: glob pattern of the files to count, relative to `data`; empty: the source's and the days' files.

    Returns:
        what was published.

    Raises:
        DataError: a file that cannot be read, no event, or none later than the prior that is there.
        StoreError: the store refuses it.
    """
    upstream, schema = config.upstream, upstream_schema(config.upstream, data)
    if events:
        facts, files = _facts(schema, upstream), find_files(data, (events,))
        read = [Events(files, screen(out, f"prior-{upstream.name}", [Part(files=files, schema=facts)], data))]
    else:
        read = list(_newest_events(config, schema, data, out, None))
    as_of = max(each.found.newest for each in read)
    prior = count_prior(read, schema, upstream, hours=config.prior.hours, as_of=as_of)
    assert prior is not None  # this process is alone
    series = prior_series(EmbeddingStore(store_of(out)), upstream.name)
    published = publish_prior(series, prior.without(withdrawn_items(series)), as_of)
    if published is None:
        raise DataError(
            f"the newest event is of {as_of} ms, but series {series.name!r} is as of {series.latest().as_of} ms: give "
            "newer events with --events"
        )
    return published


def read_prior(
    config: RefreshConfig, schema: Schema, data: Path, out: Path, as_of: int, environment: Environment
) -> Prior | None:
    """The prior as of a time, of the source's and the days' files up to it; on rank 0. A collective.

    Raises:
        DataError: the source cannot be read. A day that came again and cannot be read is left out.
    """
    read = list(_newest_events(config, schema, data, out, environment, as_of))
    with Pulse("the count of a prior", environment):
        return count_prior(
            read, schema, config.upstream, hours=config.prior.hours, as_of=as_of, ranks=ranks_of(environment)
        )


def count_prior(
    read: Sequence[Events],
    schema: Schema,
    upstream: UpstreamConfig,
    *,
    hours: float,
    as_of: int,
    ranks: Ranks = ALONE,
) -> Prior | None:
    """The prior of the events of (as_of - hours, as_of]; 0 hours: of all up to then. On rank 0; a collective."""
    files = [path for each in read for path in each.files]
    skip = NOTHING
    for each in read:
        skip |= each.found.quarantine
    after = as_of - hours * HOUR_MS if hours else -np.inf
    return _count(files, _facts(schema, upstream), skip, after, as_of, ranks)


def _count(
    files: Sequence[Path], facts: Schema, skip: Quarantine, after: float, until: int, ranks: Ranks
) -> Prior | None:
    items, positives = Counter(), Counter()
    for batch, *_ in read_share(files, facts, skip, ranks, as_of=until):
        times, ids = batch.timestamps.numpy(), batch.item_ids.numpy()
        counted = (times > after) & (times <= until)
        positive = ((batch.labels[:, 0] == 1) & batch.label_mask[:, 0]).numpy()
        items.add(ids[counted])
        positives.add(ids[counted & positive])
    seen, counts = (_on_main(each.counts().together(ranks), ranks) for each in (items, positives))
    if ranks.rank:
        return None
    chosen = np.zeros(len(seen.ids), np.int64)
    chosen[np.searchsorted(seen.ids, counts.ids)] = counts.counts
    return Prior.of_counts(seen.ids, chosen)


def _on_main(counts: Counts, ranks: Ranks) -> Counts:
    """Those of all ranks on rank 0."""
    return Counts.of(*ranks.exchange(counts, np.zeros(len(counts.ids), np.int64)))


def _facts(schema: Schema, upstream: UpstreamConfig) -> Schema:
    """Ids, times and the contrastive label alone."""
    return schema.select(features=(), labels=(upstream.loss.contrastive_label or schema.labels[0].name,))


def _newest_events(
    config: RefreshConfig,
    schema: Schema,
    data: Path,
    out: Path,
    environment: Environment | None,
    as_of: int | None = None,
) -> Iterator[Events]:
    """The days that reach into the window, and the source where it may. A collective where there are ranks."""
    name, hours = config.upstream.name, config.prior.hours
    there = find_days(data, config.days) if config.days is not None else {}
    if environment is not None:
        there = broadcast(there, environment)
    spans = {day: window(config.day_by_day(), day) for day in there}
    newest = max((end for _, end in spans.values()), default=0) if as_of is None else as_of
    length = (config.days.hours if config.days else 24) * HOUR_MS
    earliest = newest if as_of is not None else newest - length  # the newest event may be the first of its day
    after = earliest - hours * HOUR_MS if hours else -np.inf
    reached = [day for day, (start, end) in spans.items() if end > after and start < newest]
    if not reached or config.days is None or window(config.days, config.days.first)[0] > after:
        files = find_files(data, config.upstream.source.events)
        yield Events(files, screen_source(config.upstream, schema, data, out, environment))
    for day in reached:
        part = Part(files=there[day], schema=schema, window=Window(day, *spans[day]))
        try:
            yield Events(part.files, screen(out, f"{name}-{day}", [part], data, environment))
        except DataError as error:
            print(f"prior of {name}: day {day} is left out: {error}", flush=True)
