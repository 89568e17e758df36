"""What a reader of the plots must be able to rely on."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from recsys.evaluate import plots

CHARACTER = 0.62
"""Width of a character of the widest fonts that a browser may choose, in ems."""


def texts(svg: str) -> list[tuple[float, float, str]]:
    """Horizontal place, size in points, content of every text."""
    found = []
    for attributes, inside in re.findall(r"<text ([^>]*)>([^<]*)</text>", svg):
        size = re.search(r"font(?:-size)?: ?(?:normal )?([\d.]+)px", attributes)
        place = re.search(r'x="([\d.-]+)"', attributes)
        if size and place:
            found.append((float(place.group(1)), float(size.group(1)), inside))
    return found


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.012, 0.0007])
@pytest.mark.parametrize("name", ["CTR user", "CTR + CVR + saves + shares, user + item"])
def test_ticks_of_a_forest_plot_do_not_overlap(scale: float, name: str) -> None:
    lifts = {name: (0.5, 0.2, 0.9), "b": (-0.4, -1.0, 0.1)}
    entries = {
        arm: {"auc_lift": scale * lift, "auc_lift_ci95": [scale * low, scale * high]}
        for arm, (lift, low, high) in lifts.items()
    }
    ticks = [each for each in texts(plots.lift_plot({"": entries})) if re.fullmatch(r"[+\u2212]?[\d.]+ %", each[2])]
    axis = sorted(each for each in ticks if each[1] > 9)  # the arms' own figures are smaller
    assert len(axis) >= 2
    for (left, size, text), (right, _, other) in pairwise(axis):
        assert right - left > CHARACTER * size * (len(text) + len(other)) / 2


def test_a_part_of_the_loss_has_one_color_and_the_tasks_a_plot_of_their_own() -> None:
    losses = {"loss": 5.0, "loss.click": 0.4, "loss.buy": 0.1, "loss.contrastive": 4.5}
    rows = [{"step": step, **losses, "ne.buy": 1.0, "auc.click": 0.6} for step in (1, 2)]
    colors = plots.loss_colors(["click", "", "contrastive", "buy", "click"])
    assert len(set(colors.values())) == 4
    drawn = plots.curve_plots(rows, colors)
    assert list(drawn) == ["Loss by task", "Contrastive loss", "Whole loss", "Normalized entropy", "ROC-AUC"]
    of_plot = {
        title: {part for part, color in colors.items() if f"stroke: {color}; stroke-width: 1.6" in svg}
        for title, svg in drawn.items()
    }
    assert of_plot == {
        "Loss by task": {"click", "buy"},
        "Contrastive loss": {"contrastive"},
        "Whole loss": {""},
        "Normalized entropy": {"buy"},
        "ROC-AUC": {"click"},
    }
