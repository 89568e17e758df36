"""A made-up replay with every part a daily report can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np

from recsys.config import STUDIED
from recsys.study.daily_report import DailyResults
from recsys.study.scores import TaskScores
from tests.recsys.study.example import SEEDS, example_facts, example_retrieval

PAPERS_ORDER = {"latest": 0.02, "ma_0.2": 0.03, "ma_0.5": 0.06, "ma_0.8": 0.09, "average": 0.04}
PAPERS_ORDER |= {"cross": 0.2, "once": 0.0}
DAYS = tuple((date(2024, 2, 26) + timedelta(days=day)).isoformat() for day in range(12) if day != 6)


def example_scores(gains: dict[str, float], rows: int = 4000, seed: int = 0) -> TaskScores:
    """Labels drawn from a known logit; every arm knows 0.45 of it, and its gain on top."""
    rng = np.random.default_rng(seed)
    truth, noise = 1.5 * rng.normal(size=rows) - 0.3, rng.normal(size=rows)
    arms = {}
    for arm, gain in {"none": -0.1, **gains}.items():
        lines = [(0.45 + gain) * truth + 0.5 * noise + 0.02 * rng.normal(size=rows) for _ in SEEDS]
        arms[arm] = np.stack(lines).astype(np.float32)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    users = rng.integers(0, max(1, rows // 5), rows)
    facts = example_facts(rows, tuple(arms))
    return TaskScores(labels=labels, users=users, arms=arms, seeds=SEEDS, **facts)


def example_pair(number: int) -> dict[str, Any]:
    """How well users and items go together; on the first day nothing had been there to read."""
    auc, recall = (0.56 + 0.002 * number, 0.11) if number else (None, None)
    bounds = [auc - 0.01, auc + 0.01] if auc else None
    return {"worth": {"read_auc": auc, "read_auc_ci95": bounds}, "skew": {"recall": [[0.12, None], [None, recall]]}}


def example_records(days: Sequence[str] = DAYS, *, cosine: float = 0.8) -> list[dict[str, Any]]:
    """What the days leave; `cosine` is that of the daily vectors, the averages move less."""
    records = []
    for number, day in enumerate(days):
        series = {}
        for owner in ("user", "item"):
            wobble = 0.02 * np.sin(number + (owner == "item"))
            plain = f"{owner}_ctr"
            for arm in STUDIED:
                moved = {"latest": 1.0, "ma_0.2": 0.7, "ma_0.5": 0.4, "ma_0.8": 0.15, "average": 2 / (number + 2)}[arm]
                drift = {
                    "day_cosine": {"0.5": 1 - (1 - cosine) * moved + wobble * moved},
                    "neighbour_overlap": 0.9 - 0.3 * moved,
                }
                is_plain = arm == "ma_0.8"
                series[plain if is_plain else f"{plain}.{arm}"] = {
                    "coverage": {"by_event": 0.9 + wobble, "by_entity": 0.8 + wobble} if is_plain else None,
                    "staleness": {"active_today": 0.3, "active_days": {"0.5": 3.0}} if is_plain else None,
                    "drift": drift if number else None,
                }
                if is_plain and not number:
                    series[plain]["coverage"] = {"by_event": None, "by_entity": None}
        records.append(
            {
                "day": day,
                "as_of": 1_708_992_000_000 + number * 86_400_000,
                "versions": dict.fromkeys(series, number + 1),
                "gates": ["user_ctr: too far"] if number == 4 else [],
                "seconds": {"train": 20.0 + number, "embed": 4.0, "aggregate": 0.5, "store": 1.0, "quality": 1.5},
                "quality": {"events": 20_000 + 100 * number, "series": series, "pair": example_pair(number)},
            }
        )
    return records


def example_daily(**changes: Any) -> DailyResults:
    """The whole replay; `changes` replace fields."""
    results = DailyResults(
        name="demo, daily",
        note="A synthetic market of 12 days, one of them missing.",
        upstream="ctr",
        tasks={"ctr": example_scores(PAPERS_ORDER), "cvr": example_scores(PAPERS_ORDER, 1500, seed=1)},
        records=example_records(),
        retrieval=example_retrieval(),
        rows={"train": 160_000, "validation": 40_000, "test": 4_000},
        screened={f"ctr-{DAYS[1]}": {"rows": 20_100, "quarantined": 1, "read_as_0": {"price": 60}}},
        publish_delay_ms=21_600_000,
        seconds={"prepare": 11.2, "replay": 301.0, "downstream": 95.0},
        peak_rss_bytes=3_412_000_000,
        config={"name": "demo", "ranks": 2, "fragment": None, "daily": {"first": DAYS[0], "last": DAYS[-1]}},
    )
    return replace(results, **changes)
