"""What a run came to in one sentence, and its arms in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recsys.evaluate.wording import interval, number, percent, title, verdict
from recsys.study.payoff import unpaid


def arm_title(arm: str, upstreams: Iterable[str]) -> str:
    """What a ranker reads, in words: `ctr_cvr_user_item` -> "CTR + CVR, user + item"; other names stay as they are."""
    named, entities = _parsed(arm, upstreams)
    if not named:
        return "no vectors" if arm == "none" else arm
    return f"{' + '.join(map(title, named))}{',' if len(named) > 1 else ''} {' + '.join(entities)}"


def series_read(arm: str, upstreams: Iterable[str]) -> list[str]:
    """The series that a ranker reads: `ctr_user_item` -> user_ctr, item_ctr."""
    named, entities = _parsed(arm, upstreams)
    return [f"{entity}_{name}" for name in named for entity in entities]


def _parsed(arm: str, upstreams: Iterable[str]) -> tuple[list[str], list[str]]:
    """The upstreams and entities in an arm's name; none where it is not made of them."""
    entities = next((e for e in ("user_item", "user", "item") if arm.endswith(f"_{e}")), "")
    rest, named = arm.removesuffix(f"_{entities}"), []
    for upstream in upstreams:
        if rest == upstream or rest.startswith(f"{upstream}_"):
            named.append(upstream)
            rest = rest[len(upstream) + 1 :]
    return ([], []) if not entities or rest else (named, entities.split("_"))


def best_arm(arms: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The arm of greatest ROC-AUC lift among those that pay on the validation rows; None if none has one."""
    lifts = _lifts(arms)
    paid = [arm for arm in lifts if arm not in unpaid(arms)]
    return max(paid, key=lifts.__getitem__) if paid else None


def _lifts(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {arm: measured["auc_lift"] for arm, measured in arms.items() if measured.get("auc_lift") is not None}


def drawn(report: Mapping[str, Any]) -> str:
    """What the intervals are over, in words."""
    seeds, trainings = len(report["seeds"]), len(report.get("upstream_seeds", ()))
    if seeds < 2:
        return "test users alone: no other seed of a ranker, no other training of an upstream"
    if trainings < 2:
        return f"test users and {seeds} ranker seeds, no other training of an upstream"
    return f"test users and {seeds} ranker seeds, which read the vectors of {trainings} trainings of each upstream"


def headline(report: Mapping[str, Any]) -> str:
    """The run's best lift in one sentence, with its interval, and said so when it may be chance."""
    best = {task: arm for task, arms in report["tasks"].items() if (arm := best_arm(arms))}
    if not best and any(_lifts(arms) for arms in report["tasks"].values()):
        return (
            "No set of stored vectors pays: on the validation rows no ranker with them had a lower normalized entropy "
            "than the one without."
        )
    if not best:
        return "No lift could be measured: the test events hold one class only, or no arm reads stored vectors."
    task = max(best, key=lambda task: report["tasks"][task][best[task]]["auc_lift"])
    arms, arm = report["tasks"][task], best[task]
    measured, vectors = arms[arm], arm_title(arm, report["upstreams"])
    bounds = f"95 % interval {interval(measured['auc_lift_ci95'])}"
    moved = f"from {number(arms['none']['auc'])} to {number(measured['auc'])}"
    lift = percent(measured["auc_lift"], signed=True)
    match verdict(measured):
        case "up":
            return (
                f"Reading stored vectors ({vectors}) raised the {title(task)} ranker's ROC-AUC {moved}: "
                f"{lift} ({bounds})."
            )
        case "down":
            return (
                f"Every set of stored vectors lowered ROC-AUC; the best one ({vectors}, {title(task)} ranker) "
                f"moved it {moved}: {lift} ({bounds})."
            )
    return (
        f"No gain that stands out from chance: the best set of stored vectors ({vectors}, {title(task)} ranker) "
        f"moved ROC-AUC {moved}: {lift} ({bounds})."
    )
