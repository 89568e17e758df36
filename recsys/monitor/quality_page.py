"""`quality.html`: one self-contained page per series, how it fared from day to day, made of the days' records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from recsys.atomic import write_text
from recsys.evaluate.html import image, render
from recsys.monitor.export import Record, dead_dimensions, read_records
from recsys.monitor.skew import CUT_OFF
from recsys.monitor.worth import ranking, read_by

HALF = 0.5
"""Share of the day's events below which the coverage is remarked on."""
OUTER, INNER = ("0.05", "0.95"), ("0.25", "0.75")
"""Quantiles that bound the tinted bands."""


def write_pages(folder: Path, upstream: str) -> None:
    """Write `<folder>/<series>/quality.html` for the user and the item series of an upstream; nothing without records.

    Args:
        folder: of the upstream; its records lie in `days/`.
        upstream: its name.
    """
    records = read_records(folder)
    for series in (f"user_{upstream}", f"item_{upstream}"):
        if any(series in record["quality"]["series"] for record in records):
            (folder / series).mkdir(exist_ok=True)
            write_text(folder / series / "quality.html", render_quality(records, series))


def render_quality(records: Sequence[Record], series: str) -> str:
    """The page of one series as HTML.

    Args:
        records: of the days, oldest first; days on which the series was not published are left out.
        series: `user_<upstream>` or `item_<upstream>`.
    """
    kept = [record for record in records if series in record["quality"]["series"]]
    rows = [{**record, "measured": record["quality"]["series"][series]} for record in kept]
    newest = rows[-1]
    return render(
        "recsys.monitor",
        "quality.html",
        series=series,
        headline=headline(rows),
        days=rows,
        newest=newest["measured"],
        newest_day=newest["day"],
        dead=dead_dimensions(newest["measured"]),
        pair=newest["quality"]["pair"],
        cut_off=CUT_OFF,
        versions=["X", "X − 1", "X − 2"],  # noqa: RUF001
        verdict_of=verdict_of,
        notes={
            row["day"]: notes for before, row in pairwise([None, *rows]) if row and (notes := notes_of(row, before))
        },
        images=day_images(rows),
        ageing_image=_ageing_image(rows),
    )


def headline(rows: Sequence[Record]) -> str:
    """How many publishes took the tag, why the newest did not if it did not, and what the vectors are worth: first of
    all if that is nothing."""
    passed, newest = sum(not row["gates"] for row in rows), rows[-1]
    version, count = newest["measured"]["version"], f"{passed} of {len(rows)} publishes passed"
    tag = f"passed the gates ({count})"
    if newest["gates"]:
        tag = f"was kept from the tag: {newest['gates'][0]} ({count})"
    sentences = [f"Version {version} {tag}."]
    if known := ranking([read_by(row) for row in rows]):
        worth = f"By inner product it {known}{': retrieve nothing by it alone' if known.is_chance else ''}."
        sentences.insert(0 if known.is_chance else 1, worth)
    covered = _at(newest, "measured", "coverage", "by_event")
    if covered is not None and covered < HALF:
        sentences.append(f"On the last day {covered:.0%} of the events had a vector to read.")
    return " ".join(sentences)


def verdict_of(record: Record) -> str:
    """`passed` or `refused`."""
    return "refused" if record["gates"] else "passed"


def notes_of(record: Record, before: Record | None = None) -> list[str]:
    """What else a day's record says: why it was refused, late and missing days, a space that began with it.

    Args:
        record: the day's, with `measured`.
        before: that of the day before.
    """
    notes = [f"refused: {reason}" for reason in record["gates"]]
    for key, what in (("late", "late days taken in"), ("gap", "days missing before it")):
        if days := record.get(key):
            notes.append(f"{what}: {', '.join(days)}")
    if gone := sum(record.get("quarantined", {}).values()):
        notes.append(f"rows quarantined: {gone:,}")
    if record["quality"].get("tagged"):
        notes.append("the gates held it against what the tag points to, which is older than the version before")
    if record.get("corrects"):
        notes.append("delivered again with corrections")
    if before is not None and before["measured"]["space"] != record["measured"]["space"]:
        notes.append(f"a new space begins: {record['measured']['space']}")
    return notes


def day_images(rows: Sequence[Record]) -> list[Markup]:
    """The plots over days that have something to show."""
    from recsys.evaluate import plots  # matplotlib: half a second, of who draws alone

    days = [row["day"] for row in rows]
    cosine = _bands(rows, lambda row: _at(row, "measured", "drift", "day_cosine"))
    every = _bands(rows, lambda row: _at(row, "measured", "drift", "cosine"))
    norms = _bands(rows, lambda row: row["measured"]["norms"])
    bands = {"bands": (OUTER, INNER)}
    wanted: list[tuple[dict[str, list], str, dict[str, Any]]] = [
        (
            {
                "events": _line(rows, "measured", "coverage", "by_event"),
                "entities": _line(rows, "measured", "coverage", "by_entity"),
            },
            "Day's traffic covered",
            {"unit": "%"},
        ),
        (_progressive(rows), "Day's events by the model before: NE", {}),
        (cosine, "Cosine to before, day's entities", bands),
        (every, "Cosine to before, all shared", bands),
        (
            {"overlap": _line(rows, "measured", "drift", "neighbour_overlap")},
            "Nearest neighbours that stayed",
            {"unit": "%"},
        ),
        (
            _named(_bands(rows, lambda row: _at(row, "measured", "staleness", "quantiles"), ("0.5", "0.75", "0.95"))),
            "Days since last activity",
            {"floor": 0.0},
        ),
        (
            {"active": _line(rows, "measured", "staleness", "active_today")},
            "Stored entities active that day",
            {"unit": "%", "floor": 0.0},
        ),
        (norms, "Lengths of the vectors", bands),
        (
            {
                "most varied": [_spread(row, max) for row in rows],
                "least varied": [_spread(row, min) for row in rows],
            },
            "Standard deviation of the dimensions",
            {"floor": 0.0},
        ),
        ({"rows": _line(rows, "measured", "rows")}, "Entities with a vector", {"floor": 0.0}),
        ({"loss": _line(rows, "quality", "pair", "skew", "loss")}, "ROC-AUC lost one version apart", {"unit": "%"}),
        (_seconds(rows), "Seconds of the cycle", {"floor": 0.0}),
    ]
    drawn = ((title, plots.days_plot(days, lines, title, **options)) for lines, title, options in wanted)
    return [image(svg, title) for title, svg in drawn if svg]


def ageing_changes(record: Record) -> dict[int, float | None]:
    """Age in days -> relative change of ROC-AUC against what the day's traffic read, on the same events."""
    ages = (record["quality"]["pair"] or {}).get("ageing", ())
    return {
        age["days"]: age["auc"] / age["current_auc"] - 1 if age["auc"] is not None and age["current_auc"] else None
        for age in ages
    }


def _ageing_image(rows: Sequence[Record]) -> Markup:
    from recsys.evaluate import plots

    # age 0 has learned from these events: no fair line to draw
    changes = [
        {age: change for age, change in ageing_changes(row).items() if age > 0 and change is not None} for row in rows
    ]
    svg = plots.ageing_plot(changes, rows[-1]["day"]) if any(set(day) - {1} for day in changes) else ""
    return image(svg, "ROC-AUC by age of the vectors") if svg else Markup()


def _at(record: Any, *path: str) -> Any:
    for key in path:
        record = None if record is None else record.get(key)
    return record


def _line(rows: Sequence[Record], *path: str) -> list[float | None]:
    return [_at(row, *path) for row in rows]


def _bands(
    rows: Sequence[Record],
    quantiles_of: Callable[[Record], Mapping[str, float] | None],
    levels: tuple[str, ...] = (*OUTER, *INNER, "0.5"),
) -> dict[str, list[float | None]]:
    return {level: [(quantiles_of(row) or {}).get(level) for row in rows] for level in levels}


def _named(lines: Mapping[str, list]) -> dict[str, list]:
    return {f"{float(level):.0%}".replace("%", " %"): values for level, values in lines.items()}


def _spread(row: Record, of: Callable[[Sequence[float]], float]) -> float | None:
    dimensions = row["measured"]["dimensions"]
    return of(dimensions["std"]) if dimensions else None


def _progressive(rows: Sequence[Record]) -> dict[str, list]:
    tasks = dict.fromkeys(task for row in rows for task in row.get("progressive", {}))
    found = {}
    for task in tasks:
        value = any("deviance" in row.get("progressive", {}).get(task, {}) for row in rows)
        name, figure = (f"{task} (deviance)", "deviance") if value else (task, "ne")
        found[name] = _line(rows, "progressive", task, figure)
    return found


def _seconds(rows: Sequence[Record]) -> dict[str, list]:
    stages = dict.fromkeys(stage for row in rows for stage in row["seconds"])
    return {stage: [row["seconds"].get(stage) for row in rows] for stage in stages}
