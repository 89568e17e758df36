"""A made-up run with every part a report can have."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from recsys.dates import DAY_MS
from recsys.downstream.validation import Validation
from recsys.study.found import Bucket, Measures, RetrievalResult
from recsys.study.latency import Point
from recsys.study.report import RunResults, SeriesRun, UpstreamRun
from recsys.study.scores import TaskScores

ARMS = ("none", "ctr_user", "ctr_user_item", "ctr_cvr_user_item")
SEEDS = (0, 1, 2)
RECALLS = {
    "popularity": {10: 0.0302, 50: 0.1191},
    "popularity_day": {10: 0.0355, 50: 0.1301},
    "ials": {10: 0.0401, 50: 0.1402},
    "prior": {10: 0.0377, 50: 0.1333},
    "vectors": {10: 0.0512, 50: 0.1713},
    "stored_prior": {10: 0.0533, 50: 0.1777},
    "fresh_prior": {10: 0.0699, 50: 0.2002},
    "two_tower": {10: 0.0688, 50: 0.2044},
    "chosen": {10: 0.0712, 50: 0.2113},
}
"""Of a retrieval, by row."""


def example_retrieval() -> RetrievalResult:
    """A retrieval with every row there can be."""
    return RetrievalResult(
        rows={row: _measures(recall) for row, recall in RECALLS.items()},
        validation={row: _measures(recall, 0.01) for row, recall in RECALLS.items()},
        lead={row: _around(RECALLS["chosen"], at) for row, at in RECALLS.items() if row != "chosen"},
        by_day={
            day: {row: {k: value + shift for k, value in recall.items()} for row, recall in RECALLS.items()}
            for day, shift in (("2022-01-08", -0.001), ("2022-01-09", 0.001))
        },
        users_by_day={"2022-01-08": 1300, "2022-01-09": 1250},
        buckets={"head": Bucket(120, 3100), "middle": Bucket(900, 1800), "tail": Bucket(6100, 1450)},
        hours=24.0,
        weight=1.5,
        ials="16 factors, regularization 10, alpha 1",
        two_tower=(6.0, 0.75),
        latency=(
            Point("every item", 0, 0.9, 1.0),
            Point("flat", 0, 0.7, 1.0),
            *(Point("hnsw", width, 0.05 + width / 1000, 1 - 4 / width) for width in (16, 64, 256)),
        ),
        days=2,
        users=2210,
        users_without_vector=0.081,
        items=7412,
        positives_without_vector=0.012,
        positives_not_retrievable=0.004,
        space="ctr-1",
        version=1,
        as_of=19_000 * DAY_MS,
    )


def _measures(recall: dict[int, float], more: float = 0.0) -> Measures:
    """Figures that go with a recall; no positive is of the middle."""

    def scaled(factor: float) -> dict[int, float]:
        return {k: factor * (value + more) for k, value in recall.items()}

    return Measures(
        recall=scaled(1.0),
        ndcg=scaled(0.61),
        hit_rate=scaled(1.32),
        coverage=scaled(0.23),
        recall_of={"head": scaled(1.51), "middle": scaled(math.nan), "tail": scaled(0.42)},
    )


def _around(chosen: dict[int, float], other: dict[int, float]) -> dict[int, tuple[float, float]]:
    """An interval around what is ahead."""
    return {k: (chosen[k] - other[k] - 0.004, chosen[k] - other[k] + 0.004) for k in chosen}


def example_task(
    rows: int = 4000, *, seed: int = 0, gain: float = 0.15, base: float = -0.3, oracle: bool = True
) -> TaskScores:
    """Labels drawn from a known logit, and arms that know more and more of it."""
    rng = np.random.default_rng(seed)
    truth = 1.5 * rng.normal(size=rows) + base
    labels = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    noise = rng.normal(size=rows)
    arms = {}
    for step, arm in enumerate(ARMS):
        known = 0.45 + gain * step
        lines = [known * truth + 0.5 * noise + 0.1 * rng.normal(size=rows) for _ in SEEDS]
        arms[arm] = np.stack(lines).astype(np.float32)
    return TaskScores(
        labels=labels,
        users=rng.integers(0, max(1, rows // 5), rows),
        arms=arms,
        seeds=SEEDS,
        oracle=truth if oracle else None,
        **example_facts(rows, tuple(arms)),
    )


def example_validation(ne: float, *, reads: bool = True) -> Validation:
    """A ranker's figures on its validation rows."""
    figures = {"auc": 0.7, "calibration": 1.0, "raw_calibration": 0.93, "scale": 0.9, "bias": 0.1}
    passes = {"best_pass": 3, "most_passes": 8}
    tried = {"with": ne, "without": 0.9, "error": 0.001}
    return Validation(ne=ne, rows=1000, positives=300, reads=reads, tried=tried, **figures, **passes)


def example_facts(rows: int, arms: tuple[str, ...]) -> dict[str, Any]:
    """What goes with predictions: each arm better than the one before on the validation rows, two test days, a tenth of
    the rows of new items and users, a third of the tail's."""
    number = np.arange(rows)
    segment = np.where(number % 10 == 0, 0, np.where(number % 3 == 0, 1, 2)).astype(np.int8)
    return {
        "validation": {arm: [example_validation(0.9 - 0.01 * step)] * len(SEEDS) for step, arm in enumerate(arms)},
        "days": 19_000 + 2 * number // max(1, rows),
        "segments": {"item": segment, "user": segment},
    }


def example_upstream(task: str, steps: int = 1200) -> UpstreamRun:
    rng = np.random.default_rng(steps)
    curves = []
    for step in range(20, steps + 1, 20):
        fade = np.exp(-step / 300)
        wobble = 0.006 * rng.normal(size=5)
        curves.append(
            {
                "step": step,
                "loss": 6.1 + 1.9 * fade + 5 * wobble[0],
                f"loss.{task}": 0.58 + 0.1 * fade + wobble[0],
                "loss.contrastive": 5.5 + 1.8 * fade + 4 * wobble[0],
                f"ne.{task}": 0.86 + 0.14 * fade + wobble[1],
                f"auc.{task}": 0.73 - 0.2 * fade + wobble[2],
                "ne.is_like": 0.93 + 0.1 * fade + wobble[3],
                "auc.is_like": 0.69 - 0.17 * fade + wobble[4],
                "samples_per_second": 21_000.0,
            }
        )
    passes = {"done": 2, "most": 4, "best": 1, "held_out": 900, "validation_ne": [0.91, 0.92]}
    speed = {"samples_per_second": 20_650.3, "input_wait_fraction": 0.013}
    return UpstreamRun(steps=steps, **speed, batch_size=512, collisions={}, passes=passes, curves=curves)


def example_results(**changes: Any) -> RunResults:
    """The whole run; `changes` replace fields."""
    day = 86_400_000
    series = {
        f"{entity}_{upstream}": SeriesRun(
            entity=entity,
            space=f"{upstream}-1",
            version=1,
            as_of=19_000 * day,
            rows=25_310 if entity == "user" else 7_412,
            dim=64,
            dtype="float16",
            coverage=0.912 if entity == "user" else 0.987,
        )
        for upstream in ("ctr", "cvr")
        for entity in ("user", "item")
    }
    results = RunResults(
        name="demo",
        note="A synthetic market: users, items and clicks are drawn from planted factors. Days 0-6 train the "
        "upstreams, days 7-10 the rankers, day 11 chooses the epoch, days 12-13 are tested on once.",
        tasks={"ctr": example_task(), "cvr": example_task(1500, seed=1, gain=0.05, base=-2.0)},
        fragment={
            "ctr": example_task(2500, seed=2, oracle=False),
            "cvr": example_task(700, seed=3, gain=0.0, base=-2.0, oracle=False),
        },
        upstreams={"ctr": example_upstream("is_click"), "cvr": example_upstream("is_buy", 800)},
        series=series,
        entropies={"ctr": {"ctr": 0.85}, "cvr": {"cvr": 2.0}},
        retrieval=example_retrieval(),
        rows={"train": 160_000, "validation": 40_000, "test": 4_000},
        screened={"upstream-ctr": {"rows": 400_000, "quarantined": 3, "read_as_0": {"price": 1_200}}},
        publish_delay_ms=21_600_000,
        seconds={"prepare": 11.2, "upstream ctr": 61.0, "upstream cvr": 33.4, "refresh": 4.1, "downstream": 95.0},
        peak_rss_bytes=3_412_000_000,
        config={
            "name": "demo",
            "ranks": 2,
            "fragment": None,
            "upstreams": [{"name": "ctr", "training": {"epochs": 2}}],
        },
    )
    return replace(results, **changes)
