"""The subcommands that are jobs: each takes a config of its own, and is what every rank of a job runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from recsys.config import RankerConfig, RefreshConfig, TwoTowerConfig, UpstreamConfig
from recsys.refresh.errors import GateRefusedError

# Rooms are imported inside the functions, as in cli.py.


@contextmanager
def _loading() -> Iterator[None]:
    """Imports, without the collector, which walks what they have just made, for a tenth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def upstream(*, config: Path, data: Path, out: Path) -> None:
    """Train one upstream model; one rank of a job (see launchers/upstream.py).

    Args:
        config: The upstream's TOML config (`recsys config upstream`).
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the run.
    """
    settings = UpstreamConfig.load(config)
    with _loading():
        from recsys.data.objects import located
        from recsys.upstream import train_upstream

    train_upstream(settings, located(data), out)


def refresh(
    *,
    config: Path,
    data: Path,
    out: Path,
    day: str | None = None,
    cold: bool = False,
    every: bool = False,
    after_refused: bool = False,
    train: bool = False,
    store: str = "",
) -> None:
    """Run one cycle of one upstream: train on its next day, embed, aggregate, publish, tag; one rank of a job.

    The first cycle publishes what the upstream learned from its source. Exit code 3: a gate refused the tag; also where
    nothing was due since.

    Args:
        config: The refresh's TOML config (`recsys config refresh`).
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the run.
        day: Run the cycle of this day (ISO date), not whichever is due.
        cold: Train from scratch on the source and all days, in a new space.
        every: Go on until no day is due; a refused tag then shows in the records alone, not in the exit code.
        after_refused: Go on from the newest day even where a gate refused it, not from the newest that passed.
        train: Train the upstream on its source first, as `recsys upstream` does: one start of the processes for both.
        store: Path or URL of the store to publish to, noted in OUT for all that follows; left out: what is noted there,
            or else OUT/store.
    """
    settings = RefreshConfig.load(config)
    with _loading():
        from recsys.data.objects import located
        from recsys.placing import place_store
        from recsys.refresh.cycle import refresh_upstream
        from recsys.refresh.records import Ledger
        from recsys.train.distributed import process_group
        from recsys.upstream import train_upstream

    place_store(out, store)
    with ExitStack() as ranks:
        if train:
            ranks.enter_context(process_group())
            train_upstream(settings.upstream, located(data), out)
        records = refresh_upstream(
            settings, located(data), out, day=day, cold=cold, every=every, after_refused=after_refused
        )
    if not records:  # nothing was due: what the newest day ended with holds on
        records = Ledger(out, settings.upstream.name).records()[-1:]
    reasons = [reason for record in records for reason in record.gates]
    if reasons and not every:
        raise GateRefusedError(f"published, but not tagged: {'; '.join(reasons)}")


def embed(*, config: Path, rows: Path, owner: Literal["user", "item"], data: Path, out: Path) -> None:
    """Embed rows of users or items between two cycles: new ones have their vector, withdrawn ones lose it, in seconds.

    Publishes both series as deltas and moves the tag if it stood on the versions before. The same command again does
    nothing, or completes what was stopped; the next cycle embeds the rows once more, with its own model.

    Args:
        config: The refresh's TOML config (`recsys config refresh`).
        rows: Parquet file with one row an entity: its id, its features, the time column, as the source's `items` have.
        owner: Whose rows these are.
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the run.
    """
    settings = RefreshConfig.load(config)
    with _loading():
        from recsys.data.objects import located
        from recsys.refresh.on_demand import embed_rows

    embed_rows(settings, rows, owner, located(data), out)


def prior(*, config: Path, data: Path, out: Path, events: str = "") -> None:
    """Count the items' prior anew and publish it, as of the newest event: between two cycles, every hour say.

    Nothing is trained and nothing embedded. Retrieval with it beside the same vectors follows what is popular now.

    Args:
        config: The refresh's TOML config (`recsys config refresh`); [prior] says how far back is counted.
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the run.
        events: Glob pattern of the files to count, relative to the data; left out: the source's and the days' files.
    """
    settings = RefreshConfig.load(config)
    with _loading():
        from recsys.data.objects import located
        from recsys.refresh.counting import refresh_prior

    snapshot = refresh_prior(settings, located(data), out, events=events)
    print(f"{snapshot.series}: version {snapshot.version} of {snapshot.rows:,} items, as of {snapshot.as_of} ms")


def downstream(*, config: Path, data: Path, out: Path, store: str = "") -> None:
    """Train rankers that read the store's vectors, and keep what they predict; one rank of a job.

    Args:
        config: The rankers' TOML config (`recsys config ranker`).
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the run.
        store: The store that they read; left out: the run's own.
    """
    settings = RankerConfig.load(config)
    with _loading():
        from recsys.data.objects import located
        from recsys.downstream.ranking import train_rankers

    train_rankers(settings, located(data), out, store or None)


def ranker(
    *, config: Path, arm: str, data: Path, out: Path, store: str, compiled: bool = False, start: Path | None = None
) -> None:
    """Train one ranker on all ranks together, and leave it as a bundle; one rank of a job.

    Args:
        config: The rankers' TOML config (`recsys config ranker`).
        arm: Name of the arm whose series it reads.
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the work; the bundle is OUT/bundle.
        store: The store that it reads.
        compiled: Also compile the program with AOTInductor.
        start: OUT of an earlier ranker, to go on from.
    """
    settings = RankerConfig.load(config)
    with _loading():
        from recsys.bundle.write import train_bundle
        from recsys.data.objects import located

    train_bundle(settings, arm, located(data), out, store, compiled=compiled, start=start)


def twotower(*, config: Path, data: Path, out: Path, store: str = "") -> None:
    """Train a two-tower retrieval model on all ranks together and publish its vectors; one rank of a job.

    Args:
        config: The model's TOML config (`recsys config towers`).
        data: Folder of the prepared data, or s3://bucket/prefix, gs://bucket/prefix.
        out: Folder of the run.
        store: The store that it reads and writes; left out: the run's own.
    """
    settings = TwoTowerConfig.load(config)
    with _loading():
        from recsys.data.objects import located
        from recsys.downstream.two_tower import train_two_tower

    train_two_tower(settings, located(data), out, store or None)
