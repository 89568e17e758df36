"""Where the time of a training step goes, from the profiler's trace."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
KINDS = {
    "communication": r"nccl|gloo|c10d::|all_?to_?all|all_?reduce|all_?gather",
    "input": r"memcpy htod|pin_memory",
    "embedding": r"embedding|fbgemm|tbe_|bounds_check|permute_|jagged|_bag|radix|linearize|adagrad|segment|dedup",
}
"""What an operation's name says that it is for; every other one is the dense layers', their losses' and optimizers'."""
STEP = re.compile(r"ProfilerStep#\d+")

Event = dict[str, Any]


def shares(path: Path) -> dict[str, Any]:
    """Of a Chrome trace, gzipped: the share of each kind in the device's time, milliseconds a step by the clock, and
    the share of them in which the device was busy. On the CPU the operations' own time is the device's."""
    with gzip.open(path, "rt") as file:
        events = [x for x in json.load(file)["traceEvents"] if x.get("ph") == "X"]
    steps = [x for x in events if STEP.fullmatch(x["name"]) and x.get("cat") == "user_annotation"]
    if not steps:
        raise ValueError(f"{path.name} has no step: the training was shorter than what was to be profiled")
    begin, end = min(x["ts"] for x in steps), max(x["ts"] + x["dur"] for x in steps)
    device = [x for x in events if x.get("cat") in ON_DEVICE]
    done = device or [x for x in events if x.get("cat") == "cpu_op"]
    spent: dict[str, float] = defaultdict(float)
    # Nothing on a device is part of another, though one may seem to begin before the one before it ends.
    for event, own in ((x, x["dur"]) for x in device) if device else own_times(done):
        spent[kind_of(event["name"])] += own
    total = sum(spent.values())
    return {
        **{kind: round(spent[kind] / total, 3) if total else 0.0 for kind in (*KINDS, "dense")},
        "step_ms": round((end - begin) / len(steps) / 1e3, 3),
        "busy": round(covered(device or done, begin, end) / (end - begin), 3),
    }


def kind_of(name: str) -> str:
    """Of an operation, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "dense")


def own_times(events: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Each event with its microseconds but for those of the events within it, on the same track."""
    tracks: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    for event in events:
        tracks[event["pid"], event["tid"]].append(event)
    for track in tracks.values():
        within: list[tuple[float, Event, list[float]]] = []  # end, event, what its children took
        for event in sorted(track, key=lambda x: (x["ts"], -x["dur"])):
            while within and within[-1][0] <= event["ts"]:
                _, parent, taken = within.pop()
                yield parent, parent["dur"] - sum(taken)
            if within:
                within[-1][2].append(event["dur"])
            within.append((event["ts"] + event["dur"], event, []))
        for _, parent, taken in within:
            yield parent, parent["dur"] - sum(taken)


def covered(events: Sequence[Event], begin: float, end: float) -> float:
    """Microseconds between `begin` and `end` in which at least one event lasts."""
    total, until = 0.0, begin
    for event in sorted(events, key=lambda x: x["ts"]):
        first, last = max(event["ts"], until), min(event["ts"] + event["dur"], end)
        if last > first:
            total, until = total + last - first, last
    return total
