"""`daily.html`: one self-contained page, rendered from the document of `daily.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w
from markupsafe import Markup

from recsys.evaluate import plots
from recsys.evaluate.html import image, render
from recsys.monitor.skew import CUT_OFF
from recsys.study.arms import judged_arm
from recsys.study.cautions import daily_cautions
from recsys.study.findings import OWNERS, findings, method_title, series_of
from recsys.study.payoff import payoff_note
from recsys.study.report_page import data_notes, latency_image, ranker_images, recall_image, without_none
from recsys.study.retrieval_report import retrieval_table
from recsys.study.segments import DEFINITION
from recsys.study.verdict import judge_daily, parts_of


def render_daily(document: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        document: what `recsys.study.daily_report` describes; parts that are absent are left out of the page.
    """
    arms, verdict, retrieval = shown_arms(document), judge_daily(document), retrieval_table(document)
    return render(
        "recsys.study",
        "daily.html",
        report=document,
        data_notes=data_notes(document),
        headline=verdict["sentence"],
        parts=parts_of(verdict),
        warnings=daily_cautions(document),
        findings=findings(document),
        arms=arms,
        best=judged_arm(document["aggregation"]),
        method_title=method_title,
        payoff_notes={task: payoff_note(measured, method_title) for task, measured in document["tasks"].items()},
        segment_definition=DEFINITION,
        retrieval=retrieval,
        retrieval_sentence=verdict.get("retrieval", {}).get("sentence", ""),
        recall_image=recall_image(retrieval),
        latency_image=latency_image(retrieval),
        ranker_images={task: ranker_images(measured, method_title) for task, measured in document["tasks"].items()},
        over_latest={arm: document["comparisons"].get(f"{arm}_over_latest") for arm in arms},
        lift_image=_lift_image(arms),
        difference_image=_difference_image(document),
        day_images=_day_images(document),
        config=tomli_w.dumps(without_none(document["config"])),
    )


def shown_arms(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The study's arms in the order of the tables: `none`, the ways of aggregation, `cross`, `once`."""
    others = {"cross": document.get("cross"), "once": document["cadence"].get("once")}
    found = {arm: measured for arm, measured in others.items() if measured}
    return {"none": document["baseline"], **document["aggregation"], **found}


def _lift_image(arms: Mapping[str, Mapping[str, Any]]) -> Markup:
    lifts = {method_title(arm): entry for arm, entry in arms.items() if entry.get("auc_lift") is not None}
    return image(plots.lift_plot({"": lifts}), "ROC-AUC lifts with 95 % intervals") if lifts else Markup()


def _difference_image(document: Mapping[str, Any]) -> Markup:
    found = {
        method_title(name.removesuffix("_over_latest")): entry
        for name, entry in document["comparisons"].items()
        if name.endswith("_over_latest") and entry["auc_lift"] is not None
    }
    if not found:
        return Markup()
    return image(plots.lift_plot({"": found}, "latest overwrites"), "ROC-AUC against latest overwrites")


def _day_images(document: Mapping[str, Any]) -> list[Markup]:
    days, upstream = list(document["days"]), document["upstream"]

    def line(part: str, series: str, key: str) -> list[float | None]:
        return [document[part].get(day, {}).get(series, {}).get(key) for day in days]

    coverage = {f"{owner}s": line("coverage", f"{owner}_{upstream}", "by_event") for owner in OWNERS}
    active = {f"{owner}s": line("activity", f"{owner}_{upstream}", "today") for owner in OWNERS}
    measured = [entry.get("inner_product", {}) for entry in document["days"].values()]
    auc = {"ROC-AUC": [each.get("auc") for each in measured]}
    for at, bound in enumerate(("low", "high")):
        auc[bound] = [each.get("auc_ci95", (None, None))[at] for each in measured]
    recall = {"recall": [each.get(f"recall@{CUT_OFF}") for each in measured]}
    wanted: list[tuple[dict[str, list], str, dict[str, Any]]] = [
        (auc, "Inner product: ROC-AUC", {"bands": [("low", "high")]}),
        (recall, f"Inner product: recall at {CUT_OFF}", {"unit": "%", "floor": 0.0}),
        (coverage, "Day's events covered", {"unit": "%"}),
        (active, "Stored entities active that day", {"unit": "%", "floor": 0.0}),
    ]
    for owner in OWNERS:
        names = {arm: series_of(document, arm, owner) for arm in document["aggregation"]}
        cosines = {method_title(arm): line("drift", series, "cosine") for arm, series in names.items()}
        wanted.append((cosines, f"{owner.capitalize()}s: cosine to the day before", {}))
    stages = list(document["time_shares"])
    seconds = {stage: [document["days"][day]["seconds"].get(stage) for day in days] for stage in stages}
    wanted.append((seconds, "Seconds of a cycle", {"floor": 0.0}))
    drawn = ((title, plots.days_plot(days, lines, title, **options)) for lines, title, options in wanted if days)
    return [image(svg, title) for title, svg in drawn if svg]
