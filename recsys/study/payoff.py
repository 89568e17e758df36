"""Whether vectors pay where they were chosen, on the validation rows, and for whom; in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from recsys.evaluate.wording import MISSING, number, points, title
from recsys.study.segments import OWNERS, SEGMENTS


def unpaid(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Arms whose vectors do not lower the normalized entropy on the validation rows by more than its standard error, so
    that none of them is read."""
    return [arm for arm, measured in arms.items() if measured.get("pays") is False]


def payoff_note(arms: Mapping[str, Mapping[str, Any]], arm_title: Callable[[str], str]) -> str:
    """The arms of a task that do not pay, in a sentence; empty if all do, or nobody knows."""
    tried = {arm_title(arm): arms[arm]["validation"]["tried"] for arm in unpaid(arms)}
    if not tried:
        return ""
    without = number(next(iter(tried.values()))["without"])
    named = ", ".join(f"{arm} ({number(ne['with'])} ± {number(ne['error'])})" for arm, ne in tried.items())
    return (
        f"Does not pay on the validation rows, so the ranker reads none of it (normalized entropy {without} without "
        f"vectors, ± the standard error of the difference): {named}."
    )


def segment_line(report: Mapping[str, Any], task: str, arm: str) -> str:
    """An arm's lifts by new, tail and head entity in a line; empty where they were not measured."""
    measured = report.get("segments", {}).get(task)
    if not measured:
        return ""
    parts = []
    for owner in OWNERS:
        lifts = (measured[owner][name].get("arms", {}).get(arm, {}).get("auc_lift") for name in SEGMENTS)
        parts.append(f"{owner} {' / '.join(MISSING if x is None else points(x, 1, signed=True) for x in lifts)} %")
    return f"{title(task)} lift by new / tail / head: {', '.join(parts)}"


def calibration_line(measured: Mapping[str, Any]) -> str:
    """How calibrated an arm was on the validation rows and is day by day on the test rows; empty if nobody knows."""
    validation = measured.get("validation")
    if not validation:
        return ""
    days = measured["calibration_by_day"].items()
    moved = ", ".join(f"{day} {number(value, 3)}" for day, value in days) or number(measured["calibration"], 3)
    return f"validation {number(validation['calibration'], 3)}; test {moved}"
