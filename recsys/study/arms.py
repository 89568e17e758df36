"""What rankers read, by the name of their arm, in words; and which arm stands for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recsys.evaluate.wording import title
from recsys.refresh.arms import cross_series
from recsys.study.payoff import unpaid


def arm_title(arm: str, upstreams: Iterable[str]) -> str:
    """What a ranker reads, in words: `ctr_cvr_user_item` -> "CTR + CVR, user + item", `ctr_user_item_cross` ->
    "CTR user + item + cross"; other names stay as they are."""
    named, entities = _parsed(arm, upstreams)
    if not named:
        return "no vectors" if arm == "none" else arm
    return f"{' + '.join(map(title, named))}{',' if len(named) > 1 else ''} {' + '.join(entities)}"


def series_read(arm: str, upstreams: Iterable[str]) -> list[str]:
    """The series that a ranker reads: `ctr_user_item` -> user_ctr, item_ctr; with `_cross` user_ctr_cross,
    item_ctr_cross too."""
    named, entities = _parsed(arm, upstreams)
    read = [f"{entity}_{name}" for name in named for entity in entities if entity != "cross"]
    return read + [series for name in named if "cross" in entities for series in cross_series(name)]


def _parsed(arm: str, upstreams: Iterable[str]) -> tuple[list[str], list[str]]:
    """The upstreams and entities in an arm's name, `cross` behind these; none where it is not made of them."""
    known = ("user_item_cross", "user_item", "user", "item")
    entities = next((e for e in known if arm.endswith(f"_{e}")), "")
    rest, named = arm.removesuffix(f"_{entities}"), []
    for upstream in upstreams:
        if rest == upstream or rest.startswith(f"{upstream}_"):
            named.append(upstream)
            rest = rest[len(upstream) + 1 :]
    return ([], []) if not entities or rest else (named, entities.split("_"))


def judged_arm(arms: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The arm that stands for all: of those that pay, the one of the least normalized entropy on the validation rows,
    so that the test rows did not choose it; where nobody knows that, the one of the greatest lift. None: there is none.
    """
    paid = [arm for arm in arms if arms[arm].get("auc_lift") is not None and arm not in unpaid(arms)]
    if all("validation" in arms[arm] for arm in paid):
        return min(paid, key=lambda arm: arms[arm]["validation"]["ne"], default=None)
    return max(paid, key=lambda arm: arms[arm]["auc_lift"])


def drawn(report: Mapping[str, Any]) -> str:
    """What the intervals are over, in words."""
    seeds, trainings = len(report["seeds"]), len(report.get("upstream_seeds", ()))
    if seeds < 2:
        return "test users alone: no other seed of a ranker, no other training of an upstream"
    if trainings < 2:
        return f"test users and {seeds} ranker seeds, no other training of an upstream"
    return f"test users and {seeds} ranker seeds, which read the vectors of {trainings} trainings of each upstream"
