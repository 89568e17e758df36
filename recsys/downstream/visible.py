"""Whether a ranker could read the vectors of the series that it is given, at the times of its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedding_store import EmbeddingStore
from recsys.config import RankerConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import Quarantine
from recsys.data.stream import EventStream
from recsys.dates import UNTIMED
from recsys.source import ranker_schema


def check_visible(
    names: Sequence[str], config: RankerConfig, data: Path, store: EmbeddingStore, skip: Quarantine
) -> None:
    """Refuse to train on events that all lie before the first snapshot, since no training row could read a vector, and
    to join a log with event times with one without: each would read all of the other, or nothing."""
    schema = ranker_schema(config, data, ()).select(features=())
    stream = EventStream(find_files(data, config.train), schema, batch_size=65_536, drop_last=False, skip=skip)
    newest = max(int(batch.timestamps.max()) for batch in stream) if schema.timed else UNTIMED
    for name in names:
        times = [snapshot.as_of for snapshot in store.series(name).history(refused=False)]
        if any((as_of == UNTIMED) != (newest == UNTIMED) for as_of in times):
            raise DataError(_unlike(name, max(times), newest))
        first = min(times, default=None)
        if first is not None and newest < first + config.publish_delay_ms:
            raise DataError(
                f"the newest training event is of {newest} ms, but series {name!r} begins with as_of = {first} ms (and "
                f"publish_delay_ms = {config.publish_delay_ms}): no ranker could read it. Let the upstream's events "
                "end before the ranker's begin, or publish_delay_ms be 0 if nothing is published by days"
            )


def _unlike(name: str, as_of: int, newest: int) -> str:
    """What to say of a series and training events of which one has event times and the other none."""
    if newest == UNTIMED:
        return (
            f"series {name!r} is as of {as_of} ms, but the training events have no times: none could read it. Name the "
            "column of their times in the rankers' schema"
        )
    return (
        f"series {name!r} was published without event times (as_of = {UNTIMED}), but the newest training event is of "
        f"{newest} ms: every event would read it, whatever its upstream has seen. Name the column of the times in the "
        "upstream's schema; a counter begins with 1"
    )
