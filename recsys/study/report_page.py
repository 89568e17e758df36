"""`report.html`: one self-contained page, rendered from the document of `report.json` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tomli_w
from markupsafe import Markup

from recsys.downstream.validation import REFERENCE
from recsys.evaluate import plots, wording
from recsys.evaluate.flow import Model, flow_plot
from recsys.evaluate.html import image, render
from recsys.refresh.arms import cross_series
from recsys.study.arms import arm_title, drawn, judged_arm, series_read
from recsys.study.cautions import cautions
from recsys.study.payoff import payoff_note
from recsys.study.retrieval_report import RetrievalTable, retrieval_table
from recsys.study.segments import DEFINITION
from recsys.study.verdict import WAYS, judge, parts_of

POPULATIONS = {"tasks": "all events", "fragment": "one surface alone"}


def render_page(report: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        report: the document that `recsys.study.report` describes; parts that are absent are left out of the page.
    """

    def titled(arm: str) -> str:
        return arm_title(arm, report["upstreams"])

    verdict, retrieval = judge(report), retrieval_table(report)
    colors = plots.loss_colors(_parts_of_losses(report["upstreams"]))
    return render(
        "recsys.study",
        "report.html",
        report=report,
        data_notes=data_notes(report),
        headline=verdict["sentence"],
        parts=parts_of(verdict),
        warnings=cautions(report),
        drawn=drawn(report),
        trainings=len(report.get("upstream_seeds", ())) or 1,
        best={task: judged_arm(arms) for task, arms in report["tasks"].items()},
        populations=POPULATIONS,
        arm_title=titled,
        payoff_notes={task: payoff_note(arms, titled) for task, arms in report["tasks"].items()},
        segment_definition=DEFINITION,
        retrieval=retrieval,
        retrieval_sentence=verdict.get("retrieval", {}).get("sentence", ""),
        recall_image=recall_image(retrieval),
        latency_image=latency_image(retrieval),
        ranker_images={task: ranker_images(arms, titled) for task, arms in report["tasks"].items()},
        flow_image=_flow_image(report),
        lift_images={task: _lift_image(report, task) for task in report["tasks"]},
        gap_images={task: _gap_image(report, task) for task in report.get("oracle", {})},
        curve_images={name: _curve_images(name, run, colors) for name, run in report["upstreams"].items()},
        config=tomli_w.dumps(without_none(report["config"])),
    )


def data_notes(report: Mapping[str, Any]) -> list[str]:
    """What was wrong with rows and values of a run, as sentences; empty: nothing."""
    screened, zeros = report["screened"], dict[str, int]()
    gone = [f"{x['quarantined']:,} of {x['rows']:,} in {name}" for name, x in screened.items() if x["quarantined"]]
    for each in screened.values():
        for feature, count in each["read_as_0"].items():
            zeros[feature] = zeros.get(feature, 0) + count
    missing = [f"{feature} {count:,}" for feature, count in zeros.items()]
    notes = [f"Rows that were left out: {', '.join(gone)}; quarantine/ says which and why."] if gone else []
    notes += [f"Values null or NaN, read as 0, over all that was read: {', '.join(missing)}."] if missing else []
    return notes


def without_none(value: Any) -> Any:
    """A copy of nested dicts and lists without None, which TOML cannot hold."""
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    return [without_none(entry) for entry in value if entry is not None] if isinstance(value, list) else value


def _flow_image(report: Mapping[str, Any]) -> Markup:
    """What each upstream learned from, what it published, and which rankers read that."""
    configs = {entry["name"]: entry for entry in report["config"].get("upstreams", ())}
    models = []
    for name in report["upstreams"]:
        published = {f"{owner}_{name}": owner for owner in ("user", "item")}
        published |= {series: f"{series.partition('_')[0]} cross" for series in cross_series(name)}
        series = {entry: what for entry, what in published.items() if entry in report["store"]}
        stored = [report["store"][entry] for entry in series]
        config = configs.get(name, {})
        notes = [
            ", ".join(config.get("tasks", ())) or "all labels",
            *dict.fromkeys(f"up to {as_of[:10]}" if (as_of := entry["as_of"]) else wording.UNTIMED for entry in stored),
        ]
        events = config.get("source", {}).get("events", ())
        labels = {entry: f"{what} v{report['store'][entry]['version']}" for entry, what in series.items()}
        models.append(Model(name=name, notes=notes, source=_first_and_last(events), series=labels))
    arms: Mapping[str, Any] = next(iter(report["tasks"].values()), {})
    readers = {arm_title(arm, report["upstreams"]): series_read(arm, report["upstreams"]) for arm in arms}
    drawn = flow_plot(models, readers)
    if not drawn:
        return Markup()
    return image(drawn, "Events, the upstreams that learned from them, and the rankers that read their vectors")


def _first_and_last(patterns: Sequence[str]) -> list[str]:
    """Patterns of files in two lines."""
    if len(patterns) < 3:
        return list(patterns) or ["events"]
    return [patterns[0], f"to {patterns[-1]}"]


def _lift_image(report: Mapping[str, Any], task: str) -> Markup:
    groups = {}
    for part, population in POPULATIONS.items():
        arms = report.get(part, {}).get(task, {})
        lifts = {arm: entry for arm, entry in arms.items() if entry.get("auc_lift") is not None}
        if lifts:
            groups[population] = {arm_title(arm, report["upstreams"]): entry for arm, entry in lifts.items()}
    if not groups:
        return Markup()
    return image(plots.lift_plot(groups), f"ROC-AUC lifts of the {wording.title(task)} ranker with 95 % intervals")


def _gap_image(report: Mapping[str, Any], task: str) -> Markup:
    closed = report["oracle"][task]["gap_closed"]
    if not closed:
        return Markup()
    titled = {arm_title(arm, report["upstreams"]): value for arm, value in closed.items()}
    return image(plots.gap_plot(titled), f"Share of the gap to the oracle that was closed, {wording.title(task)}")


def _parts_of_losses(upstreams: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of all upstreams: the tasks, `contrastive`."""
    keys = [key for run in upstreams.values() for row in run["curves"] for key in row]
    return list(dict.fromkeys(key.partition(".")[2] for key in keys))


def _curve_images(name: str, run: Mapping[str, Any], colors: Mapping[str, str]) -> list[Markup]:
    drawn = plots.curve_plots(run["curves"], colors)
    return [image(svg, f"{title} of upstream {name} over training steps") for title, svg in drawn.items()]


def ranker_images(arms: Mapping[str, Mapping[str, Any]], arm_title: Callable[[str], str]) -> list[Markup]:
    """Without vectors, and of the arm that stands for all: reliability; and the normalized entropy of every test day,
    before anybody has been trained on it, where there are several."""
    shown = {arm: arm_title(arm) for arm in dict.fromkeys((REFERENCE, judged_arm(arms) or list(arms)[-1]))}
    bins = {title: arms[arm].get("reliability", []) for arm, title in shown.items()}
    days, heading = list(arms[REFERENCE].get("ne_by_day", {})), "Normalized entropy, day by day"
    lines = {title: [arms[arm]["ne_by_day"][day] for day in days] for arm, title in shown.items()}
    drawn = {
        "Reliability": plots.reliability_plot(bins) if all(bins.values()) else "",
        heading: plots.days_plot(days, lines, heading, wide=True) if len(days) > 1 else "",
    }
    return [image(svg, f"{title}, with and without vectors") for title, svg in drawn.items() if svg]


def latency_image(table: RetrievalTable | None) -> Markup:
    """Recall against latency of one user's request; nothing where there was nothing to compare."""
    ways: dict[str, list[tuple[float, float]]] = {}
    for point in table.found.get("latency", ()) if table else ():
        ways.setdefault(point["way"], []).append((point["milliseconds"], point["recall"]))
    if len(ways) < 2:
        return Markup()
    return image(plots.latency_plot(ways), "Recall of the exact answer over the time of a request")


def recall_image(table: RetrievalTable | None) -> Markup:
    """Recall of the test days, by way to retrieve; nothing where there is one day."""
    if table is None or len(by_day := table.found.get("by_day", {})) < 2:
        return Markup()
    k = table.cutoffs[-1]
    lines = {
        name: [rows.get(row, {}).get(f"recall@{k}") for rows in by_day.values()]
        for row, name in {"chosen": "vectors and prior", "vectors": "the inner product alone", **WAYS}.items()
    }
    title = f"Recall at {k}"
    svg = plots.days_plot(list(by_day), lines, title, unit="%", floor=0.0, wide=True)
    return image(svg, f"{title} over the test days") if svg else Markup()
