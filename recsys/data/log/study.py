"""A config of a study of what was prepared: as short as it can be, every other key at its default."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import tomli_w

from recsys.atomic import write_text
from recsys.config import LogConfig, StudyConfig, from_dict
from recsys.data.log.negatives import Drawn
from recsys.data.log.splits import SHARES, Splits, late_days, patterns
from recsys.data.schema import Schema

_HEAD = """\
# What is trained on what, made by `recsys prepare log`, which writes it anew: copy it to change it.
# Every key that is left out has its default.
# recsys run   study.toml --data THIS_FOLDER --out runs/mine
"""
_MANY = 500_000
"""Rows of an upstream of which one pass teaches most of what there is to learn; fewer are passed over until held-out
rows say stop."""
_SURE = 200_000
"""Training rows of rankers that come out alike whatever the seed, so that one is enough to begin with."""
_DAILY = "# recsys daily study.toml --data THIS_FOLDER --out runs/mine-daily\n"


def write_study(
    path: Path, name: str, config: LogConfig, schema: Schema, splits: Splits, drawn: Drawn, catalogue: Collection[str]
) -> None:
    """Write the config of a study: an upstream of the first task, one of all where there are more, rankers of each."""
    document = _document(name, config, schema, splits, drawn, catalogue)
    from_dict(StudyConfig, document)
    head = _HEAD + (_DAILY if "spans" in document else "")
    write_text(path, head + "\n" + tomli_w.dumps(document))


def _document(
    name: str, config: LogConfig, schema: Schema, splits: Splits, drawn: Drawn, catalogue: Collection[str]
) -> dict[str, Any]:
    source = {"schema": "schema.toml", "events": list(patterns(splits, "upstream"))}
    source |= {f"{owner}s": [f"{owner}s/*.parquet"] for owner in catalogue}
    tasks = list(splits.tasks)
    upstreams: list[dict[str, Any]] = [{"name": tasks[0], "tasks": tasks[:1], "source": source}]
    if len(tasks) > 1:
        second = tasks[1] if len(tasks) == 2 else "actions"
        second = second if second != tasks[0] else "all_actions"
        # The second upstream's own label first: it is the one whose positives are contrasted.
        upstreams.append({"name": second, "tasks": [*tasks[1:], tasks[0]], "source": source, "training": {"seed": 1}})
    document: dict[str, Any] = {
        "name": name,
        "note": _note(config, splits, drawn),
        "upstreams": upstreams,
        "rankers": {
            "schema": "schema.toml",
            **{part: list(patterns(splits, part)) for part in ("train", "validation", "test")},
            "tasks": {task: task for task in tasks},
            "features": [feature.name for feature in schema.features if feature.kind != "sequence"],
        },
        "retrieval": {"upstream": tasks[0]},
    }
    if splits.rows("upstream") >= _MANY:
        for upstream in upstreams:
            upstream.setdefault("training", {})["epochs"] = 1
    if splits.rows("train") >= _SURE:
        document["rankers"]["seeds"] = [0]
    if splits.by_day:
        _add_days(document, config, splits)
    else:
        document["rankers"]["publish_delay_ms"] = 0  # the splits lie hours apart
    return document


def _add_days(document: dict[str, Any], config: LogConfig, splits: Splits) -> None:
    after = date.fromisoformat(splits.of["upstream"][-1].name) + timedelta(days=1)
    last = splits.of["test"][-1].name
    days = [part for part in splits.parts if after.isoformat() <= part.name <= last]
    offset = {"utc_offset_hours": config.log.utc_offset_hours} if config.log.utc_offset_hours else {}
    document["refresh"] = {
        "days": {"events": "events/{day}/*.parquet", **offset, "first": after.isoformat(), "last": last}
    }
    document["spans"] = {
        name: [splits.of[name][0].name, splits.of[name][-1].name] for name in ("train", "validation", "test")
    }
    if any(part.end - part.begin < StudyConfig.ranks for part in days):
        document["ranks"] = 1  # a day with a single row has none for a second rank


def _note(config: LogConfig, splits: Splits, drawn: Drawn) -> str:
    halves = " : ".join(f"{share:.0%}" for share in SHARES)
    lines = [
        f"A log split by time, {halves} of the rows: upstreams, then the rankers' training, validation and test. "
        "Rankers read no histories: add them to rankers.features to see what vectors are worth beside them."
    ]
    if drawn.ratio:
        how = {"popularity": "as often as others chose them then", "uniform": "evenly among those that were alive"}
        lines.append(
            f"The log does not tell what was shown: beside each {config.row_action} stand {drawn.per_row:.2g} items "
            f"that its user did not choose, drawn {how[config.negatives.draw]}. Rates are of this sample; odds x "
            f"{drawn.odds_factor:.2g} are those of one item among all that were at hand."
        )
    if splits.rows("upstream") >= _MANY:
        lines.append("Upstreams make one pass: more (upstreams.training.epochs) learn a little more, for their time.")
    if splits.rows("train") >= _SURE:
        lines.append("Rankers are trained with one seed: intervals are over users alone; three say how seeds differ.")
    late = late_days(config)
    if late and splits.by_day:
        known = f"Labels are known up to {late} days after their row: "
        gap = "the log is too short to leave as many between the splits"
        if splits.gap:
            gap = f"the last {splits.gap} days of each split are in none"
        by_day = "Day by day the upstreams learn a day's labels at its end, which production could not."
        lines.append(f"{known}{gap}. {by_day}")
    return " ".join(lines)
