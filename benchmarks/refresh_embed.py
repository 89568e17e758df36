"""Embedding a log's entities beside the bare forward pass of their tower on the same rows.

    python -m benchmarks.refresh_embed

Makes the demo's market (SYNTHETIC), finds the last event of every user and item, and runs the refresh's `embed` over
them: reading, converting and the tower. The bare forward runs the tower alone on the same batches, converted before.
One rank, one thread, an untrained model (speed does not depend on weights); they take turns, medians. Prints a line of
JSON, then the ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.common import in_turn, print_record
from recsys.config import UpstreamConfig
from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.last_events import LastEvents, last_events, read_rows
from recsys.data.schema import Schema, entity_schema
from recsys.data.synthetic import prepare_synthetic
from recsys.models.derm import DERM
from recsys.recipes import synthetic
from recsys.refresh.embed import embed, source_files
from recsys.source import upstream_schema
from recsys.train.distributed import process_group
from recsys.train.tables import draw_tables

BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    users: int = 60_000
    """Users of the market."""
    items: int = 30_000
    """Items of the market."""
    events_per_day: int = 60_000
    """Events of each of its ten days."""
    rounds: int = 7
    """Passes over all entities of each."""


def batches(events: LastEvents, schema: Schema, owner: str) -> Iterator[Batch]:
    """The rows that `embed` reads, converted."""
    narrow = entity_schema(schema, owner)
    for table in read_rows(events, narrow, owner, BATCH):
        yield to_batch(table, narrow)


@torch.no_grad()
def forward(model: DERM, ready: list[Batch], owner: str) -> None:
    """The tower alone."""
    for batch in ready:
        if owner == "user":
            model.user_vector(batch)
        else:
            model.item_vector(batch)


def model_of(upstream: UpstreamConfig, schema: Schema) -> DERM:
    """An untrained upstream model, unsharded."""
    torch.manual_seed(0)
    return draw_tables(DERM(schema, upstream.model, [label.name for label in schema.labels]), 0).eval()


def main(options: Options) -> None:
    """Measure the embedding of users and of items."""
    torch.set_num_threads(1)
    upstream = synthetic().upstreams[0]
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, process_group() as environment:
        data = Path(folder)
        sizes = {"users": options.users, "items": options.items, "events_per_day": options.events_per_day}
        prepare_synthetic(data, **sizes, past_days=0)
        schema = upstream_schema(upstream, data)
        model = model_of(upstream, schema)
        for owner in ("user", "item"):
            events = last_events(source_files(data, upstream.source, owner), schema, owner)
            ready = list(batches(events, schema, owner))
            variants = {
                "forward": lambda _, ready=ready, owner=owner: forward(model, ready, owner),
                "embed": lambda _, events=events, owner=owner: list(embed(model, schema, events, owner, environment)),
            }
            seconds = in_turn(variants, [None], rounds=options.rounds)
            rates = {name: round(len(events) / value) for name, value in seconds.items()}
            figures[owner] = {"entities": len(events), **rates, "ratio": round(rates["embed"] / rates["forward"], 3)}
    print_record("refresh_embed", {"data": "SYNTHETIC market", **figures})
    for owner, found in figures.items():
        print(
            f"{owner}: {found['entities']:,} entities, bare forward {found['forward']:,.0f}/s, embed "
            f"{found['embed']:,.0f}/s: {found['ratio']:.2f} x (target 0.8)"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
