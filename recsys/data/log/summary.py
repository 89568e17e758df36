"""What `recsys prepare log` prints when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recsys.config import LogConfig
from recsys.data.log.prepare import RECORD, Prepared
from recsys.data.log.splits import NAMES, RARE

_BAD = 5
"""Kinds of bad rows that are listed."""


def summary(config: LogConfig, prepared: Prepared, out: Path) -> Iterator[str]:
    """The lines, plain."""
    cleaned, splits = prepared.cleaned, prepared.splits
    yield (
        f"{cleaned.read:,} rows read, times as {cleaned.times}: {cleaned.events:,} events of {cleaned.users:,} users "
        f"and {cleaned.items:,} items"
    )
    yield (
        f"left out: {cleaned.duplicates:,} duplicates, {cleaned.ignored:,} of log.ignore, "
        f"{sum(kind.rows for kind in cleaned.bad):,} that cannot be read"
    )
    for kind in cleaned.bad[:_BAD]:
        yield f"  {kind.rows:,} x {kind.column or 'a line'}: {kind.problem}"
    if prepared.repeated:
        yield (
            f"{prepared.repeated:,} {config.row_action} are of an item that the user had before; "
            f"actions.{config.row_action}.once = true keeps the first alone"
        )
    yield from _tables(prepared)
    for owner, rows in prepared.catalogue.items():
        yield (
            f"{owner}s: {rows:,} of the table have no event that the upstreams learn from; {owner}s/part-0.parquet has "
            "their features, so that they have vectors"
        )
    yield from _negatives(config, prepared)
    for name, (ones, rows) in prepared.positives.items():
        rate = f"{ones / rows:.2%}" if rows else "no row"
        task = "" if name in splits.tasks else f"; no task: a split has fewer than {RARE} of one outcome"
        yield f"label {name}: {ones:,} of {rows:,} rows ({rate}){task}"
    for name in NAMES:
        parts = splits.of[name]
        span = f", {parts[0].name} to {parts[-1].name}" if splits.by_day else ""
        yield f"{name}: {splits.rows(name):,} rows{span}"
    yield f"all figures: {out / RECORD}; now: recsys run {out / 'study.toml'} --data {out} --out RUN"


def _tables(prepared: Prepared) -> Iterator[str]:
    for owner, found in prepared.described.items():
        if found.covered < 1:
            yield f"{owner}s: the table has {found.covered:.1%} of the log's"
        if found.left_out:
            yield f"{owner}s: {', '.join(found.left_out)} left out: of no kind of feature"


def _negatives(config: LogConfig, prepared: Prepared) -> Iterator[str]:
    drawn = prepared.drawn
    if not drawn.ratio:
        return
    around = f"{drawn.hours} hours before and after"
    how = f"as others chose them in the {around}" if config.negatives.draw == "popularity" else "evenly, while alive"
    yield (
        f"negatives: {drawn.rows:,}, {drawn.per_row:.2f} a row of {drawn.ratio} asked for, {how}, of {drawn.pool:,.0f} "
        "items on average"
    )
    yield (
        f"  rates are of this sample; odds x {drawn.odds_factor:.3g} are those of one item among all at hand. Does the "
        "log tell what was shown? Then name that action first and say negatives.ratio = 0"
    )
