"""What a daily report's figures say in plain sentences: whether the paper's order came out, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise
from statistics import median
from typing import Any

from recsys.evaluate.wording import interval, number, percent, verdict

PAPER = {"latest": 0.0002, "ma_0.2": 0.0003, "ma_0.5": 0.0006, "ma_0.8": 0.0009, "average": 0.0003}
"""Lifts by way of aggregation as the paper reports them (arXiv 2509.04337)."""
PAPER_SPREAD = max(PAPER.values()) - min(PAPER.values())
ONE_SEED = (
    "With one seed the intervals leave out how differently two trainings of the same ranker come out, so that some "
    "differences seem certain which are not."
)
STEADY = 0.95
"""Median cosine from day to day above which vectors hardly jump."""
OWNERS = ("user", "item")


def method_title(arm: str) -> str:
    """An arm in words: `ma_0.8` -> "moving average 0.8"."""
    named = {
        "none": "no vectors",
        "latest": "latest overwrites",
        "average": "average pooling",
        "cross": "with cross representations",
        "once": "never refreshed",
        "daily": "refreshed daily",
    }
    return named.get(arm) or arm.replace("ma_", "moving average ")


def series_of(document: Mapping[str, Any], arm: str, owner: str) -> str:
    """The series that an arm reads: the plain one if the arm is the configured one."""
    plain = f"{owner}_{document['upstream']}"
    return plain if arm == document["configured"] else f"{plain}.{arm}"


def findings(document: Mapping[str, Any]) -> dict[str, str]:
    """Heading -> sentences, for those things that were measured."""
    parts = {
        "The order": _order(document),
        "What the test can tell apart": _resolution(document),
        "How much there is to smooth": _drift(document),
        "How often a vector is blended": _memory(document),
        "Who has a vector at all": _coverage(document),
        "What cross representations add": _cross(document),
    }
    return {heading: text for heading, text in parts.items() if text}


def _order(document: Mapping[str, Any]) -> str:
    lifts = _lifts(document)
    if len(lifts.keys() & PAPER) < 2:
        return ""
    ours, papers = _ranked(lifts), _ranked({arm: PAPER[arm] for arm in lifts if arm in PAPER})
    found = ", ".join(f"{method_title(arm)} ({percent(lifts[arm], signed=True)})" for arm in ours)
    text = f"Here, best first: {found}. The paper has {_chain(papers)}. "
    if ours[0] == papers[0]:
        same = all(lifts[a] >= lifts[b] for a, b in combinations(papers, 2) if PAPER[a] > PAPER[b])
        text += (
            "Its order came out" if same else f"Its best, {method_title(papers[0])}, is best here too, the rest differs"
        )
    else:
        text += f"Its order did not come out: {method_title(ours[0])} is ahead, not {method_title(papers[0])}"
    compared = [c for c in _against_configured(document) if verdict(c) != "unclear"]
    among = len(_against_configured(document))
    if among:
        text += (
            f"; of {among} comparisons of {method_title(document['configured'])} with another way of aggregation, "
            f"{len(compared) or 'none'} {'stands' if len(compared) == 1 else 'stand'} out from chance"
        )
    return f"{text}."


def _resolution(document: Mapping[str, Any]) -> str:
    widths = [
        (bounds[1] - bounds[0]) / 2
        for compared in _against_configured(document)
        if None not in (bounds := compared["auc_lift_ci95"])
    ]
    lifts, base = _lifts(document), document["baseline"]
    if not widths or len(lifts) < 2:
        return ""
    half, spread = median(widths), max(lifts.values()) - min(lifts.values())
    told = "less than" if spread < half else "more than"
    seeds = len(document["seeds"])
    text = (
        f"{number(base['rows'], 0)} test events of {number(base['users'], 0)} users and {seeds} training "
        f"seed{'s' if seeds > 1 else ''} put ± {percent(half)} around a difference between two ways of aggregation. "
        f"All of them lie within {percent(spread)} of each other, {told} that; the paper's lie within "
        f"{percent(PAPER_SPREAD)}{', which this test could not see if it were there' if half > PAPER_SPREAD else ''}."
    )
    return text if seeds > 1 else f"{text} {ONE_SEED}"


def _drift(document: Mapping[str, Any]) -> str:
    parts = []
    for owner, article in zip(OWNERS, ("a", "an"), strict=True):
        daily, kept = (
            _median(document, "drift", series_of(document, arm, owner), "cosine")
            for arm in ("latest", document["configured"])
        )
        if daily is None:
            continue
        text = (
            f"{article} {owner}'s vector of one day has a median cosine of {number(daily, 3)} to that of its day before"
        )
        if kept is not None and document["configured"] != "latest":
            text += f", after {method_title(document['configured'])} of {number(kept, 3)}"
        parts.append(f"{text} (they hardly jump: there is little to smooth)" if daily > STEADY else text)
    return f"{_capital('; '.join(parts))}." if parts else ""


def _memory(document: Mapping[str, Any]) -> str:
    parts: list[str] = []
    method, _, weight = document["configured"].partition("_")
    for owner in OWNERS:
        days = _newest(document, "activity", f"{owner}_{document['upstream']}", "days")
        if days is None:
            continue
        text = f"the median {owner}'s vector is made of {number(days, 0)} day{'s' if days != 1 else ''}"
        if method == "ma" and days > 1:
            kept = float(weight) ** (days - 1)
            text += f", so that the first still makes up {percent(kept, 0)} of its moving average {weight}"
        parts.append(text)
    return f"{_capital('; '.join(parts))}. A first snapshot counts as a day." if parts else ""


def _coverage(document: Mapping[str, Any]) -> str:
    parts = []
    for owner in OWNERS:
        series = f"{owner}_{document['upstream']}"
        known, newest = (of(document, "coverage", series, "by_event") for of in (_median, _newest))
        if known is not None:
            parts.append(
                f"the day before's snapshot had the {owner} of {percent(known, 1)} of a day's events "
                f"(median over days; {percent(newest, 1)} on the last)"
            )
    if not parts:
        return ""
    return f"{_capital('; '.join(parts))}. For the others every way of aggregation reads the same nothing."


def _chain(papers: list[str]) -> str:
    """`a > b = c`, by the paper's figures."""
    signs = [" > " if PAPER[a] > PAPER[b] else " = " for a, b in pairwise(papers)]
    return "".join(sign + method_title(arm) for sign, arm in zip(["", *signs], papers, strict=True))


def _cross(document: Mapping[str, Any]) -> str:
    configured = document["configured"]
    found = document["comparisons"].get(f"cross_over_{configured}")
    if not found or found["auc_lift"] is None:
        return ""
    told = {"up": "worth reading", "down": "better not read"}.get(verdict(found), "not clear of chance")
    return (
        f"Read beside the vectors of {method_title(configured)} they change the ranker's ROC-AUC by "
        f"{percent(found['auc_lift'], signed=True)} ({interval(found['auc_lift_ci95'])}): {told}."
    )


def _against_configured(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configured arm over each other way of aggregation."""
    names = [f"{document['configured']}_over_{arm}" for arm in document["aggregation"]]
    return [document["comparisons"][name] for name in names if name in document["comparisons"]]


def _lifts(document: Mapping[str, Any]) -> dict[str, float]:
    arms = document["aggregation"]
    return {arm: entry["auc_lift"] for arm, entry in arms.items() if entry.get("auc_lift") is not None}


def _ranked(lifts: Mapping[str, float]) -> list[str]:
    return sorted(lifts, key=lifts.__getitem__, reverse=True)


def _values(document: Mapping[str, Any], part: str, series: str, key: str) -> list[float]:
    found = (day.get(series, {}).get(key) for day in document[part].values())
    return [value for value in found if value is not None]


def _median(document: Mapping[str, Any], part: str, series: str, key: str) -> float | None:
    values = _values(document, part, series, key)
    return median(values) if values else None


def _newest(document: Mapping[str, Any], part: str, series: str, key: str) -> float | None:
    values = _values(document, part, series, key)
    return values[-1] if values else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
