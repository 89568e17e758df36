"""The reports' tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recsys.evaluate.wording import delay, duration, moment, number, percent, points, size, title, verdict
from recsys.study.arms import arm_title, drawn, judged_arm
from recsys.study.cautions import Caution, cautions, daily_cautions
from recsys.study.daily_page import shown_arms
from recsys.study.findings import findings, method_title
from recsys.study.payoff import calibration_line, payoff_note, segment_line
from recsys.study.report_page import POPULATIONS
from recsys.study.retrieval_report import RetrievalTable, retrieval_table
from recsys.study.transfer import transfer_lines
from recsys.study.verdict import judge, judge_daily, parts_of

COLORS = {"up": "green", "down": "red", "unclear": "yellow"}


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables, the warnings and the verdict of a report (`recsys.study.report` describes the document)."""
    console = console or Console()
    console.print(f"\n[bold]{escape(report['name'])}[/bold]  {escape(report['note'])}")
    for part, population in POPULATIONS.items():
        for task, arms in report.get(part, {}).items():
            console.print(
                _ablation(f"{title(task)} ranker, {population}", arms, report, task if part == "tasks" else "")
            )
    for line in _ranker_lines(report):
        console.print(escape(line))
    if retrieval := retrieval_table(report):
        console.print(_retrieval(retrieval))
    if report["store"]:
        console.print(_series(report["store"]))
    stages = " · ".join(f"{stage} {duration(seconds)}" for stage, seconds in report["seconds"].items())
    console.print(f"[dim]{escape(stages)} · peak memory {size(report['peak_rss_bytes'])}[/dim]")
    console.print(f"[dim]{_delay(report)}\nintervals over {drawn(report)}[/dim]")
    _judged(console, judge(report), cautions(report))


def print_summary(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the lifts of a report in one table, arms by tasks, the warnings and the verdict."""
    console = console or Console()
    table = _table(escape(report["name"]))
    table.add_column("vectors read")
    for task in report["tasks"]:
        for column in (f"{title(task)} AUC", "lift %", "95 % interval"):
            table.add_column(escape(column), justify="right", no_wrap=True)
    for arm in next(iter(report["tasks"].values()), {}):
        entries = [arms[arm] for arms in report["tasks"].values()]
        cells = [text for entry in entries for text in (number(entry["auc"]), _colored(entry), _bounds(entry))]
        table.add_row(escape(arm_title(arm, report["upstreams"])), *cells)
    if oracle := report.get("oracle"):
        cells = [text for task in report["tasks"] for text in (number(oracle[task]["auc"]), "", "")]
        table.add_row("the oracle", *cells, style="dim")
    console.print(table)
    for task, arms in report["tasks"].items():
        for line in _payoff_lines(report, task, arms):
            console.print(escape(line))
    _judged(console, judge(report), cautions(report))


def print_daily(document: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables, findings, warnings and verdict of a daily report (described in `recsys.study.daily_report`)."""
    console = console or Console()
    console.print(f"\n[bold]{escape(document['name'])}[/bold]  {escape(document['note'])}")
    console.print(_aggregation(document))
    console.print(_days(document))
    for task, arms in document["tasks"].items():
        note = payoff_note(arms, method_title)
        for line in filter(None, (note, segment_line(document, task, document["configured"]))):
            console.print(escape(line))
        if known := calibration_line(arms.get(document["configured"], {})):
            console.print(escape(f"{title(task)} calibration: {known}"))
    if retrieval := retrieval_table(document):
        console.print(_retrieval(retrieval))
    for heading, text in findings(document).items():
        console.print(f"[bold]{escape(heading)}.[/bold] {escape(text)}")
    shares = " · ".join(f"{stage} {percent(share, 0)}" for stage, share in document["time_shares"].items())
    memory = size(document["peak_rss_bytes"])
    console.print(f"[dim]of the cycles' time: {escape(shares)} · peak memory {memory}\n{_delay(document)}[/dim]")
    _judged(console, judge_daily(document), daily_cautions(document))


def _judged(console: Console, verdict: Mapping[str, Any], warnings: Iterable[Caution]) -> None:
    """The warnings, and each answer with what decided it."""
    for warning in warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning['text'])}")
    for part in parts_of(verdict):
        console.print(f"[bold]{escape(part['sentence'])}[/bold]")


def _ranker_lines(report: Mapping[str, Any]) -> list[str]:
    """What pays on the validation rows and for whom, and how calibration moves, for each task."""
    lines = []
    for task, arms in report["tasks"].items():
        lines += _payoff_lines(report, task, arms)
        for arm in dict.fromkeys(("none", judged_arm(arms) or "none")):
            if known := calibration_line(arms[arm]):
                lines.append(f"{title(task)} calibration, {arm_title(arm, report['upstreams'])}: {known}")
    return lines + transfer_lines(report)


def _payoff_lines(report: Mapping[str, Any], task: str, arms: Mapping[str, Any]) -> list[str]:
    note = payoff_note(arms, lambda arm: arm_title(arm, report["upstreams"]))
    arm = judged_arm(arms)
    return [*filter(None, (f"{title(task)}: {note}" if note else "", segment_line(report, task, arm) if arm else ""))]


def _delay(document: Mapping[str, Any]) -> str:
    return f"events read vectors {delay(document['publish_delay_ms'])}"


def _aggregation(document: Mapping[str, Any]) -> Table:
    base = document["baseline"]
    table = _table(f"{escape(title(document['task']))} ranker · {number(base['rows'], 0)} test events")
    table.add_column("vectors")
    for column in ("AUC", "lift %", "95 % interval", "over latest", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for arm, entry in shown_arms(document).items():
        over = document["comparisons"].get(f"{arm}_over_latest", {})
        table.add_row(
            escape(method_title(arm)),
            number(entry["auc"]),
            *(text for found in (entry, over) for text in (_colored(found), _bounds(found))),
        )
    return table


def _days(document: Mapping[str, Any]) -> Table:
    table = _table("Days")
    for heading in ("day", "events", "users covered", "items covered", "cosine of users", "of items", "gates"):
        table.add_column(heading, justify="left" if heading in ("day", "gates") else "right")
    pair = [f"{owner}_{document['upstream']}" for owner in ("user", "item")]
    for day, entry in document["days"].items():
        table.add_row(
            day,
            number(entry["events"], 0),
            *(percent(document["coverage"][day][series]["by_event"], 1) for series in pair),
            *(number(document["drift"][day][series]["cosine"], 3) for series in pair),
            "[red]refused[/red]" if entry["gates"] else "[green]passed[/green]",
        )
    return table


def _colored(entry: Mapping[str, Any]) -> str:
    if "auc_lift" not in entry:
        return ""
    color = COLORS[verdict(entry)]
    return f"[{color}]{points(entry['auc_lift'], signed=True)}[/{color}]"


def _bounds(entry: Mapping[str, Any]) -> str:
    return " ".join(points(bound, signed=True) for bound in entry.get("auc_lift_ci95", ()))


def _ablation(heading: str, arms: Mapping[str, Any], report: Mapping[str, Any], task: str) -> Table:
    table = _table(f"{heading} · {number(arms['none']['rows'], 0)} test events")
    table.add_column("vectors read")
    for column in ("AUC", "lift %", "95 % interval", "PR-AUC", "lift %", "NE", "calib."):
        table.add_column(column, justify="right", no_wrap=True)
    for arm, entry in arms.items():
        table.add_row(
            escape(arm_title(arm, report["upstreams"])),
            number(entry["auc"]),
            _colored(entry),
            _bounds(entry),
            number(entry["pr_auc"]),
            points(entry["pr_auc_lift"], signed=True) if arm != "none" else "",
            number(entry["ne"]),
            number(entry["calibration"], 3),
        )
    if oracle := report.get("oracle", {}).get(task):
        closed = [
            f"{arm_title(arm, report['upstreams'])} {percent(value, 0)}" for arm, value in oracle["gap_closed"].items()
        ]
        table.caption = escape(f"Gap to the oracle ({number(oracle['auc'])}) closed: {' · '.join(closed)}")
    return table


def _retrieval(shown: RetrievalTable) -> Table:
    found = shown.found
    table = _table(f"Retrieval, space {escape(found['space'])} · {number(found['users'], 0)} users")
    table.add_column("by")
    for k in shown.cutoffs:
        table.add_column(f"recall@{k}", justify="right")
    last = shown.cutoffs[-1]
    table.add_column(f"ndcg@{last}", justify="right")
    table.add_column(f"covers@{last}", justify="right")
    for row, heading in shown.titles.items():
        figures = found["rows"][row]
        cells = [number(figures[f"recall@{k}"]) for k in shown.cutoffs]
        cells += [number(figures[f"ndcg@{last}"]), percent(figures[f"coverage@{last}"], 0)]
        table.add_row(escape(heading), *cells, style="bold" if row == "chosen" else None)
    table.caption = shown.note or None
    return table


def _series(store: Mapping[str, Any]) -> Table:
    table = _table("Series the rankers read")
    for heading in ("series", "version", "as of", "vectors", "stored as", "coverage"):
        table.add_column(heading, justify="left" if heading in ("series", "as of", "stored as") else "right")
    for name, entry in store.items():
        table.add_row(
            escape(name),
            str(entry["version"]),
            moment(entry["as_of"]),
            number(entry["rows"], 0),
            f"{entry['dim']} x {entry['dtype']}",
            percent(entry["coverage"], 1),
        )
    return table


def _table(heading: str) -> Table:
    return Table(
        title=heading,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=SIMPLE_HEAD,
        header_style="dim",
        padding=0,  # with a reference and three arms of two upstreams this fits 80 columns
        show_edge=False,
    )
