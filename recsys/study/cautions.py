"""What a reader of a report must be warned of: `warnings` of report.json and daily.json, a list of {kind, about, text}.

passes       the best pass over the training rows was the last one allowed
ne           a normalized entropy above 1: always predicting the positive rate is better
calibration  mean prediction beyond 0.9 .. 1.1 of the mean label
seeds        trainings of the same ranker differ by more than the vectors are worth
positives    too few positives to tell
coverage     less than half of the events have an item with a vector
chance       the inner product of a pair ranks the last days' events no better than chance
sample       there are so many test rows that those of a share of the users are measured
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recsys.downstream.validation import REFERENCE
from recsys.evaluate.wording import number, percent, title
from recsys.monitor.worth import ranking
from recsys.study.arms import arm_title
from recsys.study.coverage import HALF, covered_by_day
from recsys.study.findings import method_title
from recsys.study.payoff import unpaid
from recsys.study.verdict import CALIBRATED, FEW

Arms = Mapping[str, Mapping[str, Any]]
Caution = dict[str, str]
Found = tuple[str, dict[str, str]] | None
"""What to say, with {} for the arms that it is said of, and what to say of each."""


def cautions(report: Mapping[str, Any]) -> list[Caution]:
    """`warnings` of report.json, from its other keys."""
    found = [
        *_of_sample(report),
        *_of_upstreams(report["upstreams"]),
        *_of_tasks(report["tasks"], lambda arm: arm_title(arm, report["upstreams"])),
    ]
    for name, entry in report["store"].items():
        if entry["entity"] == "item" and entry["coverage"] < HALF:
            text = f"{percent(entry['coverage'], 0)} of the test events have an item with a vector in {name}"
            found.append(_caution("coverage", name, f"{text}: for the others the ranker reads nothing"))
    return found


def daily_cautions(document: Mapping[str, Any]) -> list[Caution]:
    """`warnings` of daily.json, from its other keys."""
    found = [*_of_sample(document), *_of_tasks(document["tasks"], method_title)]
    series = f"item_{document['upstream']}"
    share = covered_by_day(document).get("item")
    if share is not None and share < HALF:
        text = (
            f"{percent(share, 0)} of the last day's events had an item with a vector in {series}: deliver the rows of "
            "new items with the days ([refresh.days] items), or between them (recsys embed)"
        )
        found.append(_caution("coverage", series, text))
    measured = [day.get("inner_product", {}) for day in document["days"].values()]
    known = ranking([(each.get("auc"), each.get("auc_ci95")) for each in measured])
    if known is not None and known.is_chance:
        text = f"the inner product of {document['upstream']}'s users and items, as it could be read, {known}"
        found.append(_caution("chance", document["upstream"], text))
    return found


def _of_sample(document: Mapping[str, Any]) -> Iterator[Caution]:
    if (share := document.get("users_measured", 1)) < 1:  # documents of earlier versions have all
        text = (
            f"{document['rows']['test']:,} test rows are many: measured are those of {percent(share, 1)} of the users"
        )
        yield _caution("sample", "users", f"{text}, chosen by a hash, the same for every arm")


def _of_upstreams(upstreams: Mapping[str, Mapping[str, Any]]) -> Iterator[Caution]:
    for name, run in upstreams.items():
        passes = run.get("passes")
        if passes and passes["held_out"] and passes["best"] == passes["most"]:
            text = (
                f"upstream {name}: the best pass over the training rows was the last of {passes['most']} allowed, more "
                f"may be better: raise upstreams.{name}.training.epochs"
            )
            yield _caution("passes", name, text)


def _of_tasks(tasks: Mapping[str, Arms], named: Callable[[str], str]) -> Iterator[Caution]:
    for task, every in tasks.items():
        unread = unpaid(every)  # they have the figures of the ranker without vectors
        arms = {arm: measured for arm, measured in every.items() if arm not in unread}
        for kind, found in (
            ("passes", _passes(arms)),
            ("ne", _entropies(arms)),
            ("calibration", _calibrations(arms)),
            ("seeds", _seeds(arms)),
            ("positives", _positives(arms)),
        ):
            if found is not None:
                text, values = found
                listed = ", ".join(f"{named(arm)} {value}".strip() for arm, value in values.items())
                yield _caution(kind, task, f"{title(task)} ranker: {text.format(listed)}")


def _caution(kind: str, about: str, text: str) -> Caution:
    return {"kind": kind, "about": about, "text": text}


def _passes(arms: Arms) -> Found:
    passes = {arm: measured.get("validation", {}).get("passes") for arm, measured in arms.items()}
    last = {arm: "" for arm, each in passes.items() if each and each["most"] and each["most"] in each["best"]}
    if not last:
        return None
    most = max(each["most"] for each in passes.values() if each)
    text = f"the best pass over the training rows was the last of {most} allowed ({{}}), more may be better: raise "
    return f"{text}rankers.training.epochs", last


def _entropies(arms: Arms) -> Found:
    above = {arm: number(measured["ne"]) for arm, measured in arms.items() if (measured["ne"] or 0) > 1}
    text = "normalized entropy on the test rows is above 1 ({}): always predicting the positive rate is better"
    return (text, above) if above else None


def _calibrations(arms: Arms) -> Found:
    low, high = CALIBRATED
    values = {arm: measured["calibration"] for arm, measured in arms.items()}
    beyond = {arm: number(value, 3) for arm, value in values.items() if value and not low <= value <= high}
    return (f"calibration on the test rows is beyond {low} to {high} ({{}})", beyond) if beyond else None


def _seeds(arms: Arms) -> Found:
    spreads = {arm: _spread(measured["auc_by_seed"]) for arm, measured in arms.items()}
    wider = {}
    for arm, measured in arms.items():
        gain, spread = measured.get("auc_gain"), max(spreads[arm], spreads[REFERENCE])
        if gain and spread > abs(gain):
            wider[arm] = f"{number(spread)} against {number(abs(gain))}"
    text = "trainings with different seeds differ by more ROC-AUC than the vectors are worth ({})"
    return (text, wider) if wider else None


def _spread(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else 0.0


def _positives(arms: Arms) -> Found:
    none = arms[REFERENCE]
    counts = {"test": none["positives"], "validation": none.get("validation", {}).get("positives", FEW)}
    few = [f"{count:,} {split} rows" for split, count in counts.items() if count < FEW]
    return (f"{' and '.join(few)} are positive, fewer than {FEW}: they tell little", {}) if few else None
