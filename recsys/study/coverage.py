"""For how much of the traffic there was a vector to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.study.arms import series_read
from recsys.study.findings import OWNERS

HALF = 0.5
"""Share of the events below which a coverage is remarked on."""


def covered(report: Mapping[str, Any], arm: str) -> dict[str, float]:
    """Owner -> share of the test events whose entity has a vector in what an arm reads: the least of its series."""
    store = report["store"]
    series = [name for name in series_read(arm, report["upstreams"]) if name in store]
    return {
        owner: min(store[name]["coverage"] for name in series if store[name]["entity"] == owner)
        for owner in OWNERS
        if any(store[name]["entity"] == owner for name in series)
    }


def covered_by_day(document: Mapping[str, Any]) -> dict[str, float]:
    """Owner -> share of the last day's events whose entity the snapshot of the day before had."""
    found = {}
    for owner in OWNERS:
        series = f"{owner}_{document['upstream']}"
        shares = [day.get(series, {}).get("by_event") for day in document["coverage"].values()]
        known = [share for share in shares if share is not None]
        if known:
            found[owner] = known[-1]
    return found
