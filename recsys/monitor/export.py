"""Figures of the daily refresh for machines: Prometheus text and TensorBoard, both made of the days' records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recsys.atomic import write_text
from recsys.dates import day_number, hour_number

DEAD = 1e-4
"""Standard deviation below which a dimension tells no two entities apart."""
Record = Mapping[str, Any]
"""One day's `days/<day>.json`."""

HELP = {
    "as_of_timestamp_seconds": "Event time up to which the newest snapshot knows the world.",
    "version": "Version of the newest snapshot.",
    "rows": "Entities with a vector in the newest snapshot.",
    "events": "Events of the newest day.",
    "coverage_ratio": "Share of the day's traffic whose entity the previous snapshot had a vector for.",
    "staleness_days": "Days since the stored entities were last active, quantiles.",
    "norm": "Lengths of the vectors, quantiles.",
    "dead_dimensions": "Dimensions that do not vary over entities.",
    "drift_cosine": "Cosine between an entity's vectors in the newest and the previous snapshot, quantiles.",
    "neighbour_overlap_ratio": "Share of an entity's nearest neighbours that are the same in both snapshots.",
    "skew_auc": "ROC-AUC of the day's label by inner product, by versions that users and items are behind.",
    "skew_recall": "Recall of the day's positives by inner product, by versions that users and items are behind.",
    "skew_loss_ratio": "Relative loss of ROC-AUC when one side of the pair is a version behind.",
    "ageing_auc": "ROC-AUC of the day's label with vectors of this many days.",
    "progressive_ne": "Normalized entropy of the newest day's events by the model of the day before, by task.",
    "progressive_auc": "ROC-AUC of the newest day's events by the model of the day before, by task.",
    "progressive_deviance": "Normalized deviance of the newest day's values by the model of the day before, by task.",
    "progressive_concordance": "Concordance of the newest day's values with the model of the day before, by task.",
    "progressive_calibration": "Calibration on the newest day's events of the model of the day before, by task.",
    "gates_refused": "Reasons for which the newest publish was kept from the tag; 0: it passed.",
    "rows_quarantined": "Rows of the newest cycle's days that could not be read and were left out.",
    "stage_seconds": "Wall time of the newest cycle's stages.",
}
"""Metric, less the prefix `recsys_refresh_`, to what it means. All are gauges."""

Sample = tuple[str, Mapping[str, str], float]
"""Metric, labels, value."""


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all days of one upstream, `<folder>/days/<day>.json`, by day."""
    records = [json.loads(path.read_text()) for path in (folder / "days").glob("[!.]*.json")]
    return sorted(records, key=lambda record: record["day"])


def write_metrics(folder: Path, upstream: str) -> None:
    """Write `metrics.prom` (the newest day's figures) and the newest day's points of `tensorboard/`.

    Both are functions of the records alone, so doing it twice changes nothing.
    """
    records = read_records(folder)
    if records:
        write_text(folder / "metrics.prom", exposition(samples(records[-1], upstream)))
        write_scalars(folder / "tensorboard", records[-1], upstream)


def samples(record: Record, upstream: str) -> Iterator[Sample]:
    """The figures of one day; what is not defined has no sample.

    Series are labelled `series`; what belongs to the pair or to the cycle is labelled `upstream`.
    """
    quality, of_upstream = record["quality"], {"upstream": upstream}
    found: list[tuple[str, Mapping[str, str], float | None]] = [
        ("events", of_upstream, quality["events"]),
        ("gates_refused", of_upstream, len(record["gates"])),
        ("rows_quarantined", of_upstream, sum(record.get("quarantined", {}).values())),
    ]
    found += [("stage_seconds", {**of_upstream, "stage": name}, value) for name, value in record["seconds"].items()]
    for task, figures in record.get("progressive", {}).items():
        for name in ("ne", "auc", "deviance", "concordance", "calibration"):
            found.append((f"progressive_{name}", {**of_upstream, "task": task}, figures.get(name)))
    for name, measured in quality["series"].items():
        found += _of_series({"series": name}, measured)
    if quality["pair"]:
        found += _of_pair(of_upstream, quality["pair"])
    return ((name, labels, float(value)) for name, labels, value in found if value is not None)


def exposition(found: Iterable[Sample]) -> str:
    """Prometheus' text format, version 0.0.4: families in the order of `HELP`, labels escaped."""
    by_name: dict[str, list[str]] = {}
    for name, labels, value in found:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        by_name.setdefault(name, []).append(f"recsys_refresh_{name}{{{inside}}} {value!r}\n")
    lines = []
    for name, text in HELP.items():
        if name in by_name:
            lines += [f"# HELP recsys_refresh_{name} {text}\n", f"# TYPE recsys_refresh_{name} gauge\n", *by_name[name]]
    return "".join(lines)


def dead_dimensions(measured: Mapping[str, Any]) -> int | None:
    """Dimensions of a series that do not vary over entities; None without entities."""
    return sum(std < DEAD for std in measured["dimensions"]["std"]) if measured["dimensions"] else None


def write_scalars(folder: Path, record: Record, upstream: str) -> None:
    """One day's points, in an event file of its own that replaces the one of an earlier try.

    A point's step is its day's number since 1970-01-01, or the hour's where days are shorter than 24 hours; its wall
    time is the snapshot's `as_of`.
    """
    from torch.utils.tensorboard import SummaryWriter  # half a second, of rank 0 alone

    suffix = f".{record['day']}"
    earlier = list(folder.glob(f"events.out.tfevents.*{suffix}"))
    number = hour_number if "T" in record["day"] else day_number
    step, time = number(record["day"]), record["as_of"] / 1000
    with SummaryWriter(str(folder), filename_suffix=suffix) as board:
        for name, labels, value in samples(record, upstream):
            tag = f"{labels['series']}/{name}" if "series" in labels else name
            detail = "-".join(
                f"{label}_{text}" for label, text in labels.items() if label not in ("series", "upstream")
            )
            board.add_scalar(f"{tag}/{detail}" if detail else tag, value, step, walltime=time)
    for path in earlier:
        path.unlink()


def _of_series(labels: Mapping[str, str], measured: Mapping[str, Any]) -> Iterator[Any]:
    yield "as_of_timestamp_seconds", labels, measured["as_of"] / 1000
    yield "version", labels, measured["version"]
    yield "rows", labels, measured["rows"]
    if covered := measured["coverage"]:
        yield "coverage_ratio", {**labels, "by": "entity"}, covered["by_entity"]
        yield "coverage_ratio", {**labels, "by": "event"}, covered["by_event"]
    yield from _quantiles("staleness_days", labels, (measured["staleness"] or {}).get("quantiles"))
    yield from _quantiles("norm", labels, measured["norms"])
    yield "dead_dimensions", labels, dead_dimensions(measured)
    if drift := measured["drift"]:
        yield from _quantiles("drift_cosine", {**labels, "entities": "all"}, drift["cosine"])
        yield from _quantiles("drift_cosine", {**labels, "entities": "day"}, drift["day_cosine"])
        yield "neighbour_overlap_ratio", labels, drift["neighbour_overlap"]


def _of_pair(labels: Mapping[str, str], pair: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("auc", "recall"):
        for u, row in enumerate(pair["skew"][name]):
            for i, value in enumerate(row):
                yield f"skew_{name}", {**labels, "users_behind": str(u), "items_behind": str(i)}, value
    yield "skew_loss_ratio", labels, pair["skew"]["loss"]
    for age in pair["ageing"]:
        yield "ageing_auc", {**labels, "days": str(age["days"])}, age["auc"]


def _quantiles(name: str, labels: Mapping[str, str], values: Mapping[str, float] | None) -> Iterator[Any]:
    for level, value in (values or {}).items():
        yield name, {**labels, "quantile": level}, value


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
