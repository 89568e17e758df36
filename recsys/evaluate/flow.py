"""How data flowed, as an SVG image: events, the models that learned from them, and who read what came out of those.

From top to bottom, narrow enough for a telephone: a box for each source of events, below it the models that learned
from it, below each of those a line for every series it published, and across the lines a row for each reader, with a
dot where it reads the series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from recsys.evaluate.plots import COLORS, FAINT, GRID, INK, STYLE, svg

WIDTH = 262.0
"""Of the image, in points (like all measures here): 350 pixels, what a telephone shows without shrinking it."""
_FONT, _LINE, _GAP = 8.0, 11.0, 22.0
_LABELS = 128.0
"""For the readers' names, left of the series."""
_COLUMN, _ROW = 36.0, 17.0
"""Greatest distance of two series' lines; distance of two readers."""
_GLYPH = 0.6
"""Width of a letter, as a share of the font's size: no browser's sans-serif is much wider on average."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Something that learned from events and published series."""

    name: str
    notes: Sequence[str]
    """Lines below the name."""
    source: Sequence[str]
    """What it learned from, in lines; models of the same lines share a box."""
    series: Mapping[str, str]
    """Name -> what its line is called, say `user v1`."""


def flow_plot(models: Sequence[Model], readers: Mapping[str, Sequence[str]]) -> str:
    """The way from events to readers. Names that are too long for their place are cut.

    Args:
        models: from left to right; those of one source side by side.
        readers: title -> names of the series it reads, from top to bottom.

    Returns:
        An empty string if there is no model.
    """
    if not models:
        return ""
    sources = list(dict.fromkeys(tuple(model.source) for model in models))
    ordered = [model for source in sources for model in models if tuple(model.source) == source]
    tops = _tops(ordered)
    height = tops["readers"] + _ROW * len(readers)
    with matplotlib.rc_context(STYLE | {"font.size": _FONT}):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        columns = _columns(ordered)
        _draw_readers(axes, readers, columns, tops["readers"])
        for number, model in enumerate(ordered):
            _draw_model(axes, model, (number, len(ordered)), columns, tops)
        for number, source in enumerate(sources):
            first = next(i for i, model in enumerate(ordered) if tuple(model.source) == source)
            count = sum(tuple(model.source) == source for model in ordered)
            left, right = _span(first, len(ordered))[0], _span(first + count - 1, len(ordered))[1]
            edges = (left, right, tops["sources"], tops["models"] - _GAP)
            _box(axes, edges, source, COLORS[2 + number % 3], bold=False)
        return svg(figure)


def _tops(models: Sequence[Model]) -> dict[str, float]:
    """Where each level begins."""
    sources = 1.0
    below = sources + _box_height(max(len(model.source) for model in models))
    boxes = below + _GAP
    series = boxes + _box_height(1 + max(len(model.notes) for model in models))
    longest = max((len(label) for model in models for label in model.series.values()), default=0)
    return {
        "sources": sources,
        "models": boxes,
        "series": series + _GAP,
        "readers": series + _GAP + _FONT * _GLYPH * min(longest, 14) + 8,
    }


def _columns(models: Sequence[Model]) -> dict[str, float]:
    """Series -> where its line is."""
    names = [name for model in models for name in model.series]
    room = WIDTH - _LABELS - 6
    step = min(_COLUMN, room / max(1, len(names)))
    return {name: _LABELS + (room - step * len(names)) / 2 + step * (i + 0.5) for i, name in enumerate(names)}


def _span(number: int, count: int) -> tuple[float, float]:
    """Left and right edge of a model's box."""
    width = WIDTH / count
    return number * width + 3, (number + 1) * width - 3


def _draw_model(
    axes: Axes, model: Model, place: tuple[int, int], columns: Mapping[str, float], tops: Mapping[str, float]
) -> None:
    left, right = _span(*place)
    middle, bottom = (left + right) / 2, tops["series"] - _GAP
    _arrow(axes, middle, tops["models"] - _GAP, middle, tops["models"])
    _box(axes, (left, right, tops["models"], bottom), (model.name, *model.notes), COLORS[place[0] % 2], bold=True)
    for name, label in model.series.items():
        _arrow(axes, middle, bottom, columns[name], tops["series"])
        axes.text(
            columns[name], tops["series"] + 3, _cut(label, 14), rotation=90, ha="center", va="top", parse_math=False
        )


def _draw_readers(axes: Axes, readers: Mapping[str, Sequence[str]], columns: Mapping[str, float], top: float) -> None:
    bottom = top + _ROW * len(readers)
    for x in columns.values():
        axes.plot([x, x], [top - 4, bottom - _ROW / 2], color=GRID, linewidth=1.5, zorder=0)
    for row, (title, names) in enumerate(readers.items()):
        y = top + _ROW * (row + 0.5)
        axes.text(3, y, _fitting(title, _LABELS - 8), va="center", parse_math=False)
        read = [columns[name] for name in names if name in columns]
        for x in columns.values():
            axes.plot([x], [y], "o", color="white", markeredgecolor=GRID, markersize=6)
        if read:
            axes.plot([_LABELS - 4, max(read)], [y, y], color=INK, linewidth=1)
            axes.plot(read, [y] * len(read), "o", color=INK, markersize=6.5)


def _box(axes: Axes, edges: tuple[float, float, float, float], lines: Sequence[str], color: str, *, bold: bool) -> None:
    """A frame of these edges, left, right, top and bottom, with lines of text; `bold`: the first is a heading."""
    left, right, top, bottom = edges
    shape = "round,pad=0,rounding_size=4"
    frame = FancyBboxPatch((left, top), right - left, bottom - top, boxstyle=shape, facecolor="white", edgecolor=color)
    axes.add_patch(frame)
    first = (top + bottom - _LINE * len(lines)) / 2
    for number, line in enumerate(lines):
        heading = bold and number == 0
        axes.text(
            (left + right) / 2,
            first + _LINE * (number + 0.5),
            _fitting(line, right - left - 8),
            ha="center",
            va="center",
            color=color if heading else FAINT if bold else INK,
            weight="bold" if heading else "normal",
            parse_math=False,
        )


def _box_height(lines: int) -> float:
    return 10 + _LINE * lines


def _arrow(axes: Axes, x: float, y: float, to_x: float, to_y: float) -> None:
    axes.annotate(
        "",
        (to_x, to_y),
        (x, y),
        arrowprops={"arrowstyle": "-|>", "color": FAINT, "linewidth": 1, "shrinkA": 0, "shrinkB": 0},
        annotation_clip=False,
    )


def _fitting(text: str, width: float) -> str:
    return _cut(text, max(2, int(width / (_FONT * _GLYPH))))


def _cut(text: str, letters: int) -> str:
    """At most so many letters; what is left out stands in the middle, where a path or a name says least."""
    if len(text) <= letters:
        return text
    kept = letters - 1
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
