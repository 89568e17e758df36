"""The verdicts of made-up figures; where they are read is in test_report.py and test_daily_report.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from recsys.study.verdict import judge

Bounds = tuple[float, float]


def figures(
    auc: float, ne: float, calibration: float, *, seeds: Sequence[float] = (0.0, 0.0, 0.0), positives: int = 2000
) -> dict[str, Any]:
    """Of one arm; `seeds` are added to the ROC-AUC."""
    measured = {"auc": auc, "ne": ne, "calibration": calibration, "positives": positives, "rows": 20_000}
    by_seed = [auc + moved for moved in seeds]
    return {**measured, "auc_by_seed": by_seed, "seeds": list(range(len(seeds)))}


def report(
    read: dict[str, Any],
    lift: float,
    bounds: Bounds | tuple[None, None],
    ne_bounds: Bounds,
    *,
    none: dict[str, Any] | None = None,
    rows: dict[str, float] | None = None,
    leads: dict[str, Bounds] | None = None,
) -> dict[str, Any]:
    """A task of two arms; `rows`, `leads` of a retrieval at 50."""
    none = none or figures(0.7, 0.89, 0.94)
    read = {**read, "auc_lift": lift, "auc_lift_ci95": bounds, "ne_lift_ci95": ne_bounds}
    document: dict[str, Any] = {"tasks": {"ctr": {"none": none, "ctr_user": read}}, "upstreams": {"ctr": {}}}
    document["store"] = {"user_ctr": {"entity": "user", "coverage": 0.97}}
    if rows:
        lead = {row: {"recall@50": bounds} for row, bounds in (leads or {}).items()}
        document["retrieval"] = {"rows": {row: {"recall@50": at} for row, at in rows.items()}, "lead": lead}
    return document


def test_a_little_more_auc_does_not_hide_what_is_worse() -> None:
    """ROC-AUC +0.13 %, though by more than chance; entropy 0.890 -> 0.903; calibration 0.94 -> 0.90; the inner product
    finds a fifteenth of what popularity finds, and beside the prior adds nothing."""
    rows = {"chosen": 0.542, "prior": 0.543, "popularity": 0.45, "vectors": 0.03, "ials": 0.04}
    leads = {"prior": (-0.01, 0.01), "popularity": (0.05, 0.13), "ials": (0.4, 0.6)}
    read = figures(0.70091, 0.903, 0.9)
    for bounds in ((0.0005, 0.0021), (-0.001, 0.004)):
        for ne_bounds in ((0.011, 0.018), (-0.01, 0.04)):
            judged = judge(report(read, 0.0013, bounds, ne_bounds, rows=rows, leads=leads))
            task, retrieval = judged["tasks"]["ctr"], judged["retrieval"]
            assert (task["answer"], retrieval["answer"]) == ("no", "no")
            for wanted in (
                "No for the CTR ranker: with CTR user, ROC-AUC 0.7000 → 0.7009, +0.0009 or +0.13\xa0% (95 % interval ",
                "normalized entropy 0.8900 → 0.9030, +1.46\xa0%, where less is better",
                "calibration 0.940 → 0.900, further from 1",
            ):
                assert wanted in task["sentence"]
            assert "hold 3.0\xa0%, those by popularity 45.0\xa0%, 15.0 times as much" in retrieval["sentence"]
            for wanted in ("+0.13\xa0%", "0.8900 → 0.9030", "0.940 → 0.900", "no for retrieval", "3.0\xa0%"):
                assert wanted in judged["sentence"] + retrieval["sentence"]


GOOD, BAD, SAME = (-0.02, -0.01), (0.01, 0.02), (-0.01, 0.01)


@pytest.mark.parametrize(
    ("read", "bounds", "ne_bounds", "answer", "because"),
    [
        (figures(0.71, 0.88, 0.95), (0.01, 0.02), GOOD, "yes", "ROC-AUC 0.7000 → 0.7100, +0.0100 or +1.43"),
        (figures(0.71, 0.8899, 0.95), (0.01, 0.02), SAME, "yes", "normalized entropy 0.8900 → 0.8899"),
        (figures(0.71, 0.8905, 0.95), (0.01, 0.02), SAME, "not clear", "normalized entropy 0.8900 → 0.8905"),
        (figures(0.71, 0.8905, 0.85), (0.01, 0.02), SAME, "no", "calibration 0.940 → 0.850, further from 1"),
        (figures(0.71, 0.9, 0.95), (0.01, 0.02), BAD, "no", "normalized entropy 0.8900 → 0.9000"),
        (figures(0.69, 0.88, 0.95), (-0.02, -0.01), GOOD, "no", "ROC-AUC 0.7000 → 0.6900"),
        (figures(0.701, 0.885, 0.95), (-0.01, 0.02), SAME, "not clear", "ROC-AUC 0.7000 → 0.7010"),
        (figures(0.71, 0.88, 0.95, positives=120), (0.01, 0.02), GOOD, "not clear", "120 positive test events, fewer"),
        (figures(0.71, 1.02, 0.95), (0.01, 0.02), SAME, "no", "above 1 is worse than always predicting"),
        (
            figures(0.71, 0.88, 0.95, seeds=(0.03, -0.04, 0.01)),
            (0.01, 0.02),
            GOOD,
            "not clear",
            "by seed the lift is +5.71\xa0%, −4.29\xa0%, +2.86\xa0%",  # noqa: RUF001
        ),
        (figures(0.71, 0.88, 0.95), (None, None), (None, None), "not clear", "ROC-AUC 0.7000 → 0.7100"),
    ],
)
def test_a_rankers_answer(read: dict[str, Any], bounds: Bounds, ne_bounds: Bounds, answer: str, because: str) -> None:
    task = judge(report(read, read["auc"] / 0.7 - 1, bounds, ne_bounds))["tasks"]["ctr"]
    assert task["answer"] == answer
    assert task["arm"] == "ctr_user"
    assert because in task["sentence"]


def test_one_seed_is_no_obstacle_and_is_said() -> None:
    none, read = figures(0.7, 0.89, 0.94, seeds=(0.0,)), figures(0.71, 0.88, 0.95, seeds=(0.0,))
    task = judge(report(read, 0.0143, (0.01, 0.02), GOOD, none=none))["tasks"]["ctr"]
    assert task["answer"] == "yes"
    assert any(reason["text"].startswith("one seed, ") for reason in task["reasons"])


@pytest.mark.parametrize(
    ("rows", "leads", "answer", "because"),
    [
        (
            {"chosen": 0.3, "prior": 0.2, "popularity": 0.1, "popularity_day": 0.2, "vectors": 0.25},
            {"prior": (0.08, 0.12), "popularity": (0.1, 0.3), "popularity_day": (0.05, 0.15)},
            "yes",
            "hold 30.0\xa0%, those by popularity of the last day, the best of the ways without vectors, 20.0\xa0%",
        ),
        (
            {"chosen": 0.3, "prior": 0.2, "popularity": 0.1, "ials": 0.4, "vectors": 0.25},
            {"prior": (0.08, 0.12), "popularity": (0.1, 0.3), "ials": (-0.12, -0.08)},
            "no",
            "those by iALS, the best of the ways without vectors, 40.0\xa0%",
        ),
        (
            {"chosen": 0.3, "prior": 0.29, "popularity": 0.2, "vectors": 0.15},
            {"prior": (-0.01, 0.03), "popularity": (0.05, 0.15)},
            "not clear",
            "by inner product alone hold 15.0\xa0%, those by popularity 20.0\xa0%, 1.3 times as much",
        ),
        (
            {"chosen": 0.3, "prior": 0.29, "popularity": 0.2, "vectors": 0.0},
            {"prior": (-0.01, 0.03), "popularity": (0.05, 0.15)},
            "no",
            "by inner product alone hold 0.0\xa0%, those by popularity 20.0\xa0%: without the prior retrieve nothing",
        ),
    ],
)
def test_retrieval_is_judged_against_the_best_way_without_vectors(
    rows: dict[str, float], leads: dict[str, Bounds], answer: str, because: str
) -> None:
    judged = judge(report(figures(0.71, 0.88, 0.95), 0.01, (0.01, 0.02), GOOD, rows=rows, leads=leads))["retrieval"]
    assert judged["answer"] == answer
    assert because in judged["sentence"]


def test_vectors_that_lead_at_one_cut_off_alone_are_no_yes() -> None:
    """Deskdrop, day by day."""
    document = report(figures(0.71, 0.88, 0.95), 0.01, (0.01, 0.02), GOOD)
    rows = {
        "chosen": (0.451, 0.547),
        "prior": (0.452, 0.542),
        "popularity_day": (0.448, 0.539),
        "vectors": (0.029, 0.087),
    }
    leads = {"prior": ((-0.006, 0.005), (0.001, 0.01)), "popularity_day": ((0.0005, 0.006), (0.003, 0.014))}
    document["retrieval"] = {
        name: {row: dict(zip(("recall@10", "recall@50"), at, strict=True)) for row, at in each.items()}
        for name, each in (("rows", rows), ("lead", leads))
    }
    judged = judge(document)["retrieval"]
    assert [reason["says"] for reason in judged["reasons"]] == ["not clear", "yes", "no"]
    assert judged["answer"] == "no"
    assert (
        "the first 10 by inner product alone hold 2.9\xa0%, those by popularity of the last day 44.8\xa0%, 15.4 times"
        in (judged["sentence"])
    )


def test_the_arm_is_chosen_on_the_validation_rows() -> None:
    document = report(figures(0.71, 0.88, 0.95), 0.0143, (0.01, 0.02), GOOD)
    arms = document["tasks"]["ctr"]
    lower = {**arms["ctr_user"], "auc_lift": 0.001, "auc_lift_ci95": (-0.001, 0.003), "validation": {"ne": 0.8}}
    arms["ctr_user"]["validation"] = {"ne": 0.81}
    arms["ctr_user_item"] = lower
    task = judge(document)["tasks"]["ctr"]
    assert (task["arm"], task["answer"]) == ("ctr_user_item", "not clear")
