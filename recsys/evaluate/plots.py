"""The report's plots, each the text of an SVG image: no files, no global matplotlib state."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from recsys.evaluate.wording import percent

INK, FAINT, GRID = "#1b2733", "#5d6b7a", "#e3e8ee"
FONT = "text { font-family: system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif !important }"
COLORS = ("#0b6e99", "#d1603d", "#5b8c5a", "#8a5a9e", "#b08900", "#3c4f76", "#c2559b", "#2a9d9a")
CONTRASTIVE = "contrastive"
"""The part of a loss that is of no task."""
_ORIGIN = datetime(1970, 1, 1)
STYLE: Any = {
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "svg.fonttype": "none",  # text stays text, see FONT
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
}


def lift_plot(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], over: str = "no vectors") -> str:
    """ROC-AUC lifts with their 95 % intervals, one line an arm, zero marked.

    Args:
        groups: population ("all events", say) -> arm's title -> its entry in the report; only arms that have a lift.
        over: what the lifts are relative to.
    """
    arms = list(next(iter(groups.values())))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.8, 0.75 + len(arms) * (0.2 + 0.26 * len(groups)) + 0.25 * (len(groups) > 1))
        axes.axvline(0, color=INK, linewidth=1)
        axes.grid(axis="x")
        for g, (group, entries) in enumerate(groups.items()):
            offset = (g - (len(groups) - 1) / 2) * 0.42
            rows = [position + offset for position, arm in enumerate(arms) if arm in entries]
            _intervals(axes, rows, [entries[arm] for arm in arms if arm in entries], COLORS[g], group)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)  # first arm on top
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.17 * (high - low))  # room for the last figure
        _share_ticks(axes, figure.get_figwidth(), arms)
        axes.set_xlabel(f"ROC-AUC lift over {over}, 95 % interval", loc="right")
        if len(groups) > 1:
            figure.legend(loc="outside upper left", ncols=len(groups), frameon=False, labelcolor=FAINT)
        return svg(figure)


def gap_plot(gap_closed: Mapping[str, float | None]) -> str:
    """How much of the way from the bare ranker to the oracle each arm went, as bars from 0 to 100 %.

    Args:
        gap_closed: arm's title -> fraction; None is drawn as no bar.
    """
    arms = list(gap_closed)
    values = [value or 0.0 for value in gap_closed.values()]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.8, 0.75 + len(arms) * 0.42)
        axes.barh(range(len(arms)), [1.0] * len(arms), color=GRID, height=0.5)
        axes.barh(range(len(arms)), values, color=COLORS[0], height=0.5)
        for position, value in enumerate(gap_closed.values()):
            axes.annotate(
                percent(value, 0),
                (max(value or 0.0, 0.0), position),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                weight="bold",
            )
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(min(0.0, *values) * 1.1, max(1.0, *values) * 1.02)
        _share_ticks(axes, figure.get_figwidth(), arms)
        axes.set_xlabel("ROC-AUC gap to the oracle closed")
        return svg(figure)


def reliability_plot(models: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Observed against predicted rates of rows of similar predictions, on logarithmic axes; the line is where they are
    equal.

    Args:
        models: name -> `recsys.evaluate.metrics.reliability`; points where nothing was observed are left out.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.8, 3.2)
        points = {
            name: [(x["predicted"], x["observed"]) for x in bins if x["observed"] > 0 and x["predicted"] > 0]
            for name, bins in models.items()
        }
        every = [value for line in points.values() for point in line for value in point] or [0.01, 1.0]
        bounds = min(every) / 1.3, min(1.0, max(every) * 1.3)
        axes.plot(bounds, bounds, color=FAINT, linewidth=1)
        for (name, line), color in zip(points.items(), COLORS, strict=False):
            axes.plot(*np.array(line).reshape(-1, 2).T, "o-", color=color, markersize=3, linewidth=1.2, label=name)
        axes.set(xscale="log", yscale="log", xlim=bounds, ylim=bounds)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(_rate)
            axis.set_minor_formatter(NullFormatter())
        axes.grid()
        axes.set_title("Reliability", loc="left", fontsize=10)
        axes.set_xlabel("predicted")
        axes.set_ylabel("observed")
        _legend(axes)
        return svg(figure)


def latency_plot(ways: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Recall of the exact answer over what a request takes, a line a way to search.

    Args:
        ways: name -> its points, (milliseconds, recall), in the order in which they are joined.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.8, 2.6)
        axes.grid()
        for (name, points), color in zip(ways.items(), COLORS, strict=False):
            axes.plot(*np.array(points).T, "o-", color=color, markersize=4, linewidth=1.2, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(_tick)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(_share)
        axes.set_title("Recall against latency", loc="left", fontsize=10)
        axes.set_xlabel("milliseconds a request")
        _legend(axes)
        return svg(figure)


def loss_colors(names: Iterable[str]) -> dict[str, str]:
    """A color for each part of a loss, the same in every plot that is given them; the whole loss is in ink."""
    tasks = [name for name in dict.fromkeys(names) if name not in (CONTRASTIVE, "")]
    known = dict(zip(tasks, COLORS[1:] * len(tasks), strict=False))
    return {**known, CONTRASTIVE: COLORS[0], "": INK}


def curve_plots(rows: Sequence[Mapping[str, float | None]], colors: Mapping[str, str]) -> dict[str, str]:
    """Training metrics over steps, title -> plot; those that no row has are left out.

    The contrastive loss and the whole have plots of their own: beside them the tasks' curves would be flat.

    Args:
        rows: each with `step`, and `loss`, `loss.<part>`, `ne.<task>`, `auc.<task>` where there is a value.
        colors: of the parts, from `loss_colors`.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    named = {key: key.partition(".")[::2] for key in keys}
    tasks = [key for key, (metric, part) in named.items() if metric == "loss" and part not in ("", CONTRASTIVE)]
    wanted = {
        "Loss by task": tasks,
        "Contrastive loss": [key for key in keys if key == f"loss.{CONTRASTIVE}"],
        "Whole loss": [key for key in keys if key == "loss"],
        "Normalized entropy": [key for key in keys if named[key][0] == "ne"],
        "ROC-AUC": [key for key in keys if named[key][0] == "auc"],
    }
    return {title: _curves(rows, lines, title, colors) for title, lines in wanted.items() if lines}


def _curves(
    rows: Sequence[Mapping[str, float | None]], keys: Sequence[str], title: str, colors: Mapping[str, str]
) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3, 2.1)
        axes.grid()
        for key in keys:
            part = key.partition(".")[2]
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            axes.plot(*zip(*points, strict=True), color=colors[part], linewidth=1.6, label=part)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        if not {key.partition(".")[2] for key in keys} <= {"", CONTRASTIVE}:  # which the title names
            _legend(axes)
        return svg(figure)


def days_plot(
    days: Sequence[str],
    lines: Mapping[str, Sequence[float | None]],
    title: str,
    *,
    bands: Sequence[tuple[str, str]] = (),
    unit: str = "",
    floor: float | None = None,
    wide: bool = False,
) -> str:
    """Figures over days, one line a name; a day without a value interrupts its line.

    Args:
        days: ISO dates or hours, ascending; missing ones leave room.
        lines: name -> one value a day; without any value there is no line.
        title: over the plot.
        bands: pairs of names between which the ground is tinted, the widest first; their lines are not drawn.
        unit: "%" for fractions.
        floor: where the vertical axis starts; None: below the least value.
        wide: whether it stands alone, with room for longer names.

    Returns:
        An empty string if no line has a value.
    """
    at = [_days_since(day) for day in days]
    values = {name: np.array(line, dtype=float) for name, line in lines.items()}  # None becomes NaN
    edges = {name for band in bands for name in band}
    drawn = [name for name, line in values.items() if name not in edges and not np.isnan(line).all()]
    if not drawn:
        return ""
    with matplotlib.rc_context(STYLE):
        aside = len(drawn) > 3  # so many names would hide the lines
        figure, axes = _figure(4.8 if wide else 3.3, 2.6 if aside else 2.1)
        axes.grid()
        for low, high in bands:
            axes.fill_between(at, values[low], values[high], color=COLORS[0], alpha=0.16, linewidth=0)
        for name, color in zip(drawn, COLORS * len(drawn), strict=False):
            dot = 2.4 if len(days) < 40 else 0  # a lone day between two gaps shows as a dot only
            axes.plot(at, values[name], "o-", color=color, linewidth=1.6, markersize=dot, label=name)
        axes.set_title(title, loc="left", fontsize=10)
        _date_axis(axes, at)
        axes.set_ylim(bottom=floor)
        if unit == "%":
            axes.yaxis.set_major_formatter(_share)
        if aside:
            figure.legend(
                loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, labelcolor=FAINT, handlelength=1.2
            )
        elif len(drawn) > 1:
            _legend(axes)
        return svg(figure)


def ageing_plot(days: Sequence[Mapping[int, float]], newest: str) -> str:
    """What vectors of some days' age lose against those that the day's traffic read: every day faint, the newest not.

    Args:
        days: the relative change of ROC-AUC by age in days, a mapping for each publish, oldest first.
        newest: name of the last one.

    Returns:
        An empty string if nothing is known of any age.
    """
    if not any(days):
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.8, 2.4)
        axes.axhline(0, color=INK, linewidth=1)
        axes.grid()
        for changes in days[:-1]:
            axes.plot(*_points(changes), color=FAINT, linewidth=0.9, alpha=0.3)
        if days[-1]:
            axes.plot(*_points(days[-1]), "o-", color=COLORS[0], linewidth=1.8, markersize=5, label=newest)
            _legend(axes)
        ages = sorted({age for changes in days for age in changes})
        axes.set_xticks(ages, [str(age) for age in ages])
        axes.yaxis.set_major_formatter(_tick)
        axes.set_xlabel("age of both vectors, days", loc="right")
        axes.set_title("ROC-AUC against vectors one day old, same events", loc="left", fontsize=10)
        return svg(figure)


def _points(changes: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return sorted(changes), [changes[age] for age in sorted(changes)]


def _days_since(day: str) -> float:
    """Days from the origin of the axis to an ISO date or hour."""
    return (datetime.fromisoformat(day) - _ORIGIN) / timedelta(days=1)


def _date_axis(axes: Axes, at: Sequence[float]) -> None:
    every = max(1, math.ceil(len(at) / 5))
    shown = at[::-1][::every][::-1]  # counted from the newest day
    form = "%d %b" if all(day == int(day) for day in at) else "%d %b %H:00"
    axes.set_xticks(shown, [(_ORIGIN + timedelta(days=day)).strftime(form).lstrip("0") for day in shown])
    room = min([1.0, *np.diff(at)]) / 2
    axes.set_xlim(at[0] - room, at[-1] + room)
    axes.tick_params(axis="x", pad=7)  # clear of the vertical axis' lowest figure


def _rate(value: float, _position: float) -> str:
    return f"{100 * value:g} %"


def _share(value: float, _position: float) -> str:
    if value > 1 + 1e-9:
        return ""  # there is no such share, the axis just has room above its lines
    return f"{100 * round(value, 9):.3g} %".replace("-", "−")  # noqa: RUF001


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _intervals(axes: Axes, rows: Sequence[float], entries: Sequence[Mapping[str, Any]], color: str, name: str) -> None:
    lifts = [entry["auc_lift"] for entry in entries]
    bounds = [
        (lift, lift) if None in entry["auc_lift_ci95"] else tuple(entry["auc_lift_ci95"])
        for lift, entry in zip(lifts, entries, strict=True)
    ]
    axes.hlines(rows, *zip(*bounds, strict=True), color=color, linewidth=2.4, alpha=0.5)
    axes.plot(lifts, rows, "o", color=color, markersize=6.5, markeredgecolor="white", label=name)
    for row, lift, (low, high) in zip(rows, lifts, bounds, strict=True):
        axes.annotate(
            percent(lift, signed=True),
            (max(low, high, lift), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # where it stands on the line at zero
        )


def _share_ticks(axes: Axes, width: float, names: Sequence[str]) -> None:
    """As many shares below a plot `width` inches wide as find room beside the names of its rows."""
    room = width - 0.3 - 0.075 * max(map(len, names))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(1, int(room / 0.72)), steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(_tick)


def _tick(value: float, _position: float) -> str:
    # as many digits as the ticks need: lifts may be 10 % or 0.1 %
    return f"{100 * round(value, 9):+.3g} %".replace("-", "−").replace("+0 %", "0 %")  # noqa: RUF001


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8.5, labelcolor=FAINT, handlelength=1.2)


def svg(figure: Figure) -> str:
    """A figure as text, in the fonts of the page that shows it; the same figure gives the same bytes."""
    buffer = io.StringIO()
    for ground in (figure.patch, *(axes.patch for axes in figure.axes)):
        ground.set_visible(False)  # the page's ground is to be seen
    with matplotlib.rc_context({"svg.hashsalt": "recsys"}):
        # not `savefig`, which draws a figure with a layout twice
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    document = buffer.getvalue()
    return document[document.index("<svg") :].replace("<defs>", f"<defs><style>{FONT}</style>", 1)
