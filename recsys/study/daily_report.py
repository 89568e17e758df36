"""`daily.json`: what refreshing vectors day by day was worth, by way of aggregation and by cadence, under stable keys.

`build_daily` makes the document from a `DailyResults`, `write_daily` stores it beside `daily.html`, which is rendered
from the document alone. Keys (`<...>` stands for a name; `.*` for anything below; a value that is undefined is null):

    format_version                          int; raised when a key goes or changes its meaning
    name, note, created, commit             as in report.json
    hardware.*, config.*                    as in report.json
    seconds.<stage>                         number; wall time of each stage; `start`: of imports, checks, starting
                                            ranks and waiting for days; `report`: of measuring all this
    peak_rss_bytes                          int; greatest resident memory
    seeds                                   list of int; training seeds of the rankers
    rows.<split>                            int; events of each split
    users_measured                          number; share of the users whose test rows are measured, see
                                            recsys/study/sample.py
    screened.*                              as in report.json, of each day too
    publish_delay_ms                        as in report.json
    upstream                                str; whose vectors the rankers read
    configured                              str; the arm whose series is the plain one, `user_<upstream>`
    task                                    str; the task that `aggregation`, `cadence` and `comparisons` are of

    baseline.*                              the ranker without vectors: keys as tasks.<task>.<arm>
    aggregation.<arm>.*                     by way of aggregation, refreshed daily: keys as tasks.<task>.<arm>
    cross.*                                 the configured arm with cross representations beside it: the same keys;
                                            absent where these are not published
    cadence.daily.*                         the configured arm again, refreshed daily
    cadence.once.*                          the first snapshot for all days
    comparisons.<a>_over_<b>.auc_lift       number; ROC-AUC of a / that of b - 1, mean over seeds; every arm over
                                            `latest`, the configured one over every other, and `cross` over it
    comparisons.<a>_over_<b>.auc_lift_ci95  [low, high]; paired bootstrap over users and seeds
    tasks.<task>.<arm>.*                    as in report.json
    segments.<task>.*                       as in report.json, of `none`, the configured arm and `once`
    retrieval.*                             as in report.json: each day from the vectors and the prior of its own time
    verdict.sentence                        as in report.json
    verdict.tasks.<task>.*                  as in report.json, of the configured arm
    verdict.refresh.*                       whether to refresh daily: the same keys; absent without `cadence.once`
    verdict.retrieval.*                     as in report.json
    warnings                                as in report.json

    coverage.<day>.<series>.by_event        number; share of the day's events whose entity the snapshot before had
    coverage.<day>.<series>.by_entity       number; the same by distinct entity
    drift.<day>.<series>.cosine             number; between an entity's vectors in this version and the one before,
                                            median over the day's entities
    drift.<day>.<series>.neighbour_overlap  number; share of nearest neighbours that stayed
    activity.<day>.<series>.today           number; share of stored entities that were active
    activity.<day>.<series>.days            number; median number of days on which a stored entity was active so far
    days.<day>.versions.<series>            int; published that day
    days.<day>.events                       int
    days.<day>.inner_product.auc            number; ROC-AUC of the inner product of the vectors that the day's traffic
                                            could read, which have not learned from it, for the contrastive label
    days.<day>.inner_product.auc_ci95       [low, high]; bootstrap over users
    days.<day>.inner_product.recall@10      number; recall of the day's positives by these vectors, among the items that
                                            its neighbouring versions had too
    days.<day>.gates                        list of str; why the publish did not take the tag, empty if it did
    days.<day>.seconds.<stage>              number; of that day's cycle
    time_shares.<stage>                     number; share of all cycles' time: train, embed, cross, aggregate, store,
                                            quality

Arms: `none` (no vectors), `latest` (today's vector overwrites), `ma_<w>` (moving average, w on the previous), `average`
(mean of all days), `cross` (cross representations beside the configured one), `once` (never refreshed).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.atomic import write_text
from recsys.config import STUDIED
from recsys.downstream.validation import REFERENCE
from recsys.evaluate.bootstrap import Resampled
from recsys.monitor.skew import CUT_OFF
from recsys.monitor.worth import read_by
from recsys.study.cautions import daily_cautions
from recsys.study.daily_page import render_daily
from recsys.study.environment import commit, hardware
from recsys.study.found import RetrievalResult
from recsys.study.report import load_document, plain
from recsys.study.retrieval_report import retrieval_document
from recsys.study.scores import ReportError, TaskScores, measure_arms, resample_arms
from recsys.study.segments import measure_segments
from recsys.study.verdict import judge_daily
from recsys.study.ways import CROSSED, ONCE

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DailyResults:
    """Everything the daily report says."""

    name: str
    note: str
    upstream: str
    """Whose vectors the rankers read."""
    tasks: Mapping[str, TaskScores]
    """The rankers' test predictions, arms `none`, ways of aggregation, `cross`, `once`; the first task is the
    study's."""
    records: Sequence[Mapping[str, Any]]
    """`days/<day>.json` of every day, oldest first."""
    retrieval: RetrievalResult | None = None
    """From the configured arm's vectors."""
    configured: str = "ma_0.8"
    """The arm whose series is the plain one."""
    rows: Mapping[str, int]
    """Split -> events."""
    users_measured: float = 1.0
    """The share of the users whose test rows are measured, see `recsys.study.sample`."""
    screened: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was found to be wrong with rows before the work began, see `recsys.screening.summaries`."""
    publish_delay_ms: int
    """Of the rankers."""
    seconds: Mapping[str, float]
    """Stage -> wall time."""
    peak_rss_bytes: int
    config: Mapping[str, Any]


def build_daily(results: DailyResults, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The document described at the top of this module, ready for `json.dumps`.

    Args:
        results: the replay.
        samples: draws of the paired bootstrap.
        seed: of the bootstrap.

    Raises:
        ReportError: no task, or an arm that is none of those above.
    """
    _check(results)
    drawn = {task: resample_arms(scores, samples, seed) for task, scores in results.tasks.items()}
    tasks = {task: measure_arms(scores, resampled=drawn[task]) for task, scores in results.tasks.items()}
    task, arms = next(iter(tasks.items()))
    shown = (REFERENCE, results.configured, ONCE)
    segments = {
        name: measure_segments(
            scores.labels,
            scores.users,
            {arm: lines for arm, lines in scores.arms.items() if arm in shown},
            scores.segments,
            samples=samples,
            seed=seed,
        )
        for name, scores in results.tasks.items()
        if scores.segments
    }
    cadence = {"daily": arms.get(results.configured), ONCE: arms.get(ONCE)}
    document = {
        "format_version": FORMAT_VERSION,
        "name": results.name,
        "note": results.note,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "seeds": list(results.tasks[task].seeds),
        "rows": results.rows,
        "users_measured": results.users_measured,
        "screened": results.screened,
        "publish_delay_ms": results.publish_delay_ms,
        "upstream": results.upstream,
        "configured": results.configured,
        "task": task,
        "baseline": arms[REFERENCE],
        "aggregation": {arm: measured for arm, measured in arms.items() if arm not in (REFERENCE, CROSSED, ONCE)},
        **({"cross": arms[CROSSED]} if CROSSED in arms else {}),
        "cadence": {name: measured for name, measured in cadence.items() if measured},
        "comparisons": _comparisons(drawn[task], results.configured),
        "tasks": tasks,
        **({"segments": segments} if segments else {}),
        **({"retrieval": retrieval_document(results.retrieval)} if results.retrieval else {}),
        **_by_day(results.records),
        "time_shares": _time_shares(results.records),
        "seconds": results.seconds,
        "peak_rss_bytes": results.peak_rss_bytes,
        "config": results.config,
    }
    document = plain(document)
    return document | {"verdict": judge_daily(document), "warnings": daily_cautions(document)}


def write_daily(document: Mapping[str, Any], folder: str | Path) -> None:
    """Write `daily.json` and `daily.html` into `folder`, each whole or not at all."""
    write_text(Path(folder) / "daily.json", json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    write_text(Path(folder) / "daily.html", render_daily(document))


def load_daily(folder: str | Path) -> dict[str, Any]:
    """Read `daily.json` of a run's folder.

    Raises:
        ReportError: not JSON, or of another format version; the message starts with the path.
        FileNotFoundError: there is none.
    """
    return load_document(Path(folder) / "daily.json", FORMAT_VERSION)


def _comparisons(arms: Mapping[str, Mapping[str, Resampled]], configured: str) -> dict[str, dict[str, Any]]:
    """Every arm over `latest`, and the configured one over every other, but `cross` over it."""
    pairs = [(arm, "latest") for arm in arms if arm not in (REFERENCE, "latest")] if "latest" in arms else []
    pairs += (
        [
            (arm, configured) if arm == CROSSED else (configured, arm)
            for arm in arms
            if arm not in (REFERENCE, configured, "latest")
        ]
        if configured in arms
        else []
    )
    compared = {}
    for a, b in pairs:
        found = arms[a]["auc"].lift_over(arms[b]["auc"])
        compared[f"{a}_over_{b}"] = {"auc_lift": found.lift, "auc_lift_ci95": [found.low, found.high]}
    return compared


def _by_day(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`coverage`, `drift`, `activity` and `days` of the document."""
    parts: dict[str, dict[str, Any]] = {"coverage": {}, "drift": {}, "activity": {}, "days": {}}
    for record in records:
        day, series = record["day"], record["quality"]["series"]
        parts["days"][day] = {
            "versions": record["versions"],
            "events": record["quality"]["events"],
            "inner_product": _inner_product(record),
            "gates": record["gates"],
            "seconds": record["seconds"],
        }
        for name, measured in series.items():
            covered, drift, stale = (measured[key] or {} for key in ("coverage", "drift", "staleness"))
            if covered:
                figures = {key: covered[key] for key in ("by_event", "by_entity")}
                parts["coverage"].setdefault(day, {})[name] = figures
                figures = {"today": stale.get("active_today"), "days": (stale.get("active_days") or {}).get("0.5")}
                parts["activity"].setdefault(day, {})[name] = figures
            parts["drift"].setdefault(day, {})[name] = {
                "cosine": (drift.get("day_cosine") or {}).get("0.5"),
                "neighbour_overlap": drift.get("neighbour_overlap"),
            }
    return parts


def _inner_product(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a day's traffic could get by the inner product of what it could read: of the version before the day's."""
    auc, bounds = read_by(record)
    recall = (record["quality"].get("pair") or {}).get("skew", {}).get("recall", [[None] * 2] * 2)
    return {"auc": auc, "auc_ci95": bounds or [None, None], f"recall@{CUT_OFF}": recall[1][1]}


def _time_shares(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for record in records:
        for stage, seconds in record["seconds"].items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    whole = sum(totals.values())
    return {stage: seconds / whole for stage, seconds in totals.items()} if whole else {}


def _check(results: DailyResults) -> None:
    if not results.tasks:
        raise ReportError("the daily report has no task: give the predictions of at least one")
    for task, scores in results.tasks.items():
        known = (REFERENCE, *STUDIED, results.configured, CROSSED, ONCE)
        unknown = [arm for arm in scores.arms if arm not in known]
        if unknown:
            raise ReportError(f"task {task!r}: arm {unknown[0]!r}; use {', '.join(dict.fromkeys(known))}")
