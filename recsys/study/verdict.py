"""What a report comes to, as one who has read all of its figures would put it: read the stored vectors, yes or no?

`judge` and `judge_daily` answer for each task's ranker, for retrieval, and for refreshing daily. Each answer comes of
reasons, each of which says yes, no or not clear by itself. A ranker's answer is

no         if its vectors do not pay on the validation rows; if ROC-AUC or normalized entropy is worse on the test rows
           by more than chance; or if entropy is worse at all and calibration, or retrieval from the vectors, is so too
yes        if ROC-AUC is better by more than chance, entropy no worse, the seeds agree and the positives are enough
not clear  else

Retrieval is judged by the vectors with the prior, as they would be used, against the ways that need no vectors, at
every cut-off. Where they are not clearly ahead and the inner product alone is far behind popularity, what is found is
the prior's: no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recsys.downstream.validation import REFERENCE
from recsys.evaluate.wording import change, interval, number, percent, title, verdict
from recsys.study.arms import arm_title, judged_arm
from recsys.study.coverage import HALF, covered, covered_by_day
from recsys.study.findings import method_title
from recsys.study.payoff import unpaid

YES, NO, UNCLEAR = "yes", "no", "not clear"
FEW = 300
"""Positives below which figures say little."""
CALIBRATED = (0.9, 1.1)
"""Mean prediction over mean label that passes for calibrated."""
MOVED = 0.02
"""How much further from 1 calibration must be to be called worse."""
WAYS = {
    "popularity": "popularity",
    "popularity_day": "popularity of the last day",
    "ials": "iALS",
    "prior": "the prior alone",
}
"""Rows of a retrieval that read no vectors of ours -> in running text."""
FAR = 2.0
"""How many times as much popularity must find to be far ahead of the inner product alone."""
OTHERS = ("refresh", "retrieval")
"""What is judged besides the tasks."""
_SAYS = {"up": YES, "down": NO, "unclear": UNCLEAR}


@dataclass(frozen=True)
class Reason:
    """What one measure says."""

    measure: str
    """validation, auc, ne, calibration, seeds, positives, coverage, retrieval; of a retrieval lead, alone."""
    says: str
    """YES, NO or UNCLEAR."""
    text: str


@dataclass(frozen=True)
class Part:
    """The verdict on one thing."""

    what: str
    answer: str
    reasons: list[Reason]
    brief: str
    """The figures that matter most."""
    arm: str | None = None
    opening: str = ""
    """Of the sentence's reasons."""

    @property
    def sentence(self) -> str:
        """The answer, and what decided it."""
        telling = [reason.text for reason in self.reasons if self._tells(reason)]
        return f"{_capital(self.answer)} for {self.what}: {self.opening}{'; '.join(telling)}."

    def _tells(self, reason: Reason) -> bool:
        main = reason.measure in ("auc", "ne", "lead")
        return main or reason.says == NO or self.answer == reason.says == UNCLEAR

    def document(self) -> dict[str, Any]:
        """As it stands in the report."""
        reasons = [asdict(reason) for reason in self.reasons]
        named = {"what": self.what, "answer": self.answer, "brief": self.brief}
        return {**named, "sentence": self.sentence, "reasons": reasons}


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """`verdict` of report.json, from its other keys."""

    def named(arm: str) -> str:
        return arm_title(arm, report["upstreams"])

    retrieval = _retrieval(report)
    tasks = {}
    for task, arms in report["tasks"].items():
        arm = judged_arm(arms)
        shares = {} if arm is None else covered(report, arm)
        tasks[task] = _ranker(task, arms, arm, named, shares, retrieval)
    return _document(tasks, {"retrieval": retrieval})


def judge_daily(document: Mapping[str, Any]) -> dict[str, Any]:
    """`verdict` of daily.json, from its other keys: of the configured arm."""
    retrieval, configured = _retrieval(document), document["configured"]
    tasks = {}
    for task, arms in document["tasks"].items():
        measured = configured in arms and arms[configured].get("auc_lift") is not None
        arm = configured if measured and configured not in unpaid(arms) else None
        chosen = {name: arms[name] for name in (REFERENCE, configured) if name in arms}
        tasks[task] = _ranker(task, chosen, arm, method_title, covered_by_day(document), retrieval)
    return _document(tasks, {"refresh": _refresh(document, tasks[document["task"]]), "retrieval": retrieval})


def parts_of(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The answers of a verdict, in the order to show."""
    return [*verdict["tasks"].values(), *(verdict[name] for name in OTHERS if name in verdict)]


def _document(tasks: Mapping[str, Part], others: Mapping[str, Part | None]) -> dict[str, Any]:
    known = {name: part for name, part in others.items() if part is not None}
    answers = "; ".join(f"{part.answer} for {part.what} ({part.brief})" for part in (*tasks.values(), *known.values()))
    return {
        "sentence": f"{_capital(answers)}." if answers else "There is nothing to judge.",
        "tasks": {task: {"arm": part.arm, **part.document()} for task, part in tasks.items()},
        **{name: part.document() for name, part in known.items()},
    }


def _ranker(
    task: str,
    arms: Mapping[str, Mapping[str, Any]],
    arm: str | None,
    named: Callable[[str], str],
    shares: Mapping[str, float],
    retrieval: Part | None,
) -> Part:
    what = f"the {title(task)} ranker"
    if arm is None:
        return _without_arm(what, arms, named)
    none, read = arms[REFERENCE], arms[arm]
    found = [_auc(none, read), _entropy(none, read), _calibration(none, read), _seeds(none, read), _positives(read)]
    reasons = [reason for reason in (*found, _coverage(shares)) if reason is not None]
    answer = _weigh({reason.measure: reason.says for reason in reasons}, none, read, retrieval)
    if answer == NO and retrieval is not None and retrieval.answer == NO:
        reasons.append(Reason("retrieval", NO, "retrieval from the vectors is no better than without them either"))
    return Part(what, answer, reasons, _brief(answer, reasons, none, read), arm, f"with {named(arm)}, ")


def _brief(answer: str, reasons: Sequence[Reason], none: Mapping[str, Any], read: Mapping[str, Any]) -> str:
    """ROC-AUC and entropy, and what else spoke against a yes."""
    short = {
        "calibration": f"calibration {_moved(none['calibration'], read['calibration'], 3)}",
        "positives": f"{read['positives']:,} positives",
        **({"seeds": "seeds disagree"} if len(read["auc_by_seed"]) > 1 else {}),
    }
    against = {YES: (), NO: (NO,), UNCLEAR: (NO, UNCLEAR)}[answer]
    others = [short[reason.measure] for reason in reasons if reason.measure in short and reason.says in against]
    main = f"ROC-AUC {percent(read['auc_lift'], signed=True)}, normalized entropy {_moved(none['ne'], read['ne'])}"
    return ", ".join([main, *others])


def _without_arm(what: str, arms: Mapping[str, Mapping[str, Any]], named: Callable[[str], str]) -> Part:
    """The verdict where no arm stands for the others."""
    tried = {arm: arms[arm]["validation"]["tried"] for arm in unpaid(arms)}
    if not tried:
        text = "no lift could be measured: the test events hold one class only, or no arm reads stored vectors"
        return Part(what, UNCLEAR, [Reason("auc", UNCLEAR, text)], "nothing could be measured")
    best = min(tried, key=lambda arm: tried[arm]["with"])
    text = (
        f"no set of stored vectors pays on the validation rows, where the normalized entropy is "
        f"{number(tried[best]['without'])} without vectors and at best {number(tried[best]['with'])} with them "
        f"({named(best)}; standard error of the difference {number(tried[best]['error'])}), so the ranker reads none"
    )
    return Part(what, NO, [Reason("validation", NO, text)], "no vectors pay on the validation rows")


def _weigh(says: Mapping[str, str], none: Mapping[str, Any], read: Mapping[str, Any], retrieval: Part | None) -> str:
    """The rule at the top of this module."""
    worse = None not in (none["ne"], read["ne"]) and read["ne"] > none["ne"]
    others = says.get("calibration") == NO or (retrieval is not None and retrieval.answer == NO)
    if NO in (says["auc"], says.get("ne")) or (worse and others):
        return NO
    agreed = says["seeds"] == YES or len(read["auc_by_seed"]) < 2  # of one seed nobody knows
    enough = says["positives"] == YES
    return YES if says["auc"] == YES and not worse and agreed and enough else UNCLEAR


def _auc(none: Mapping[str, Any], read: Mapping[str, Any]) -> Reason:
    text = (
        f"ROC-AUC {_moved(none['auc'], read['auc'])}, {change(read['auc'] - none['auc'])} or "
        f"{percent(read['auc_lift'], signed=True)} (95 % interval {interval(read['auc_lift_ci95'])})"
    )
    return Reason("auc", _SAYS[verdict(read)], text)


def _entropy(none: Mapping[str, Any], read: Mapping[str, Any]) -> Reason | None:
    if None in (none["ne"], read["ne"]):
        return None
    lift, bounds = read["ne"] / none["ne"] - 1, read.get("ne_lift_ci95", (None, None))
    says = {"up": NO, "down": YES, "unclear": UNCLEAR}[verdict(read, "ne")]
    text = f"normalized entropy {_moved(none['ne'], read['ne'])}, {percent(lift, signed=True)}, where less is better"
    if None not in bounds:
        text += f" (95 % interval {interval(bounds)})"
    if read["ne"] > 1:
        says, text = NO, f"{text}, and above 1 is worse than always predicting the positive rate"
    return Reason("ne", says, text)


def _calibration(none: Mapping[str, Any], read: Mapping[str, Any]) -> Reason | None:
    before, after = none["calibration"], read["calibration"]
    if None in (before, after):
        return None
    low, high = CALIBRATED
    further = abs(after - 1) - abs(before - 1)
    text = f"calibration {_moved(before, after, 3)}"
    if further > MOVED:
        return Reason("calibration", NO, f"{text}, further from 1")
    if not low <= after <= high:
        return Reason("calibration", UNCLEAR, f"{text}, beyond {low} to {high} as it is without vectors")
    return Reason("calibration", YES, text)


def _seeds(none: Mapping[str, Any], read: Mapping[str, Any]) -> Reason:
    pairs = zip(none["auc_by_seed"], read["auc_by_seed"], strict=True)
    lifts = [b / a - 1 for a, b in pairs if None not in (a, b) and a]
    if len(lifts) < 2:
        return Reason("seeds", UNCLEAR, "one seed, so that how differently two trainings come out is in no interval")
    listed = ", ".join(percent(lift, signed=True) for lift in lifts)
    agree = min(lifts) > 0 or max(lifts) < 0
    return Reason("seeds", YES if agree else UNCLEAR, f"by seed the lift is {listed}")


def _positives(read: Mapping[str, Any]) -> Reason:
    few, text = read["positives"] < FEW, f"{read['positives']:,} positive test events"
    return Reason("positives", UNCLEAR if few else YES, f"{text}, fewer than {FEW}" if few else text)


def _coverage(shares: Mapping[str, float]) -> Reason | None:
    if not shares:
        return None
    known = " and ".join(f"the {owner} of {percent(share, 0)}" for owner, share in shares.items())
    few = min(shares.values()) < HALF
    return Reason("coverage", UNCLEAR if few else YES, f"a vector was there for {known} of the events")


def _refresh(document: Mapping[str, Any], ranker: Part) -> Part | None:
    """Whether daily vectors are worth more than the first ones."""
    found = document["comparisons"].get(f"{document['configured']}_over_once")
    if ranker.arm is None or not found or found["auc_lift"] is None:
        return None
    daily, once = (document["cadence"][name]["auc_lift"] for name in ("daily", "once"))
    by = percent(found["auc_lift"], signed=True)
    text = (
        f"over no vectors the {title(document['task'])} ranker's ROC-AUC is {percent(daily, signed=True)} with those "
        f"refreshed daily and {percent(once, signed=True)} with those never refreshed, a difference of {by} "
        f"(95 % interval {interval(found['auc_lift_ci95'])})"
    )
    says = _SAYS[verdict(found)]
    return Part("refreshing daily", says, [Reason("auc", says, text)], f"ROC-AUC {by} over never")


def _retrieval(document: Mapping[str, Any]) -> Part | None:
    """At every cut-off: one where the vectors lead by chance alone, or do not, is no yes."""
    if "retrieval" not in document:
        return None
    found = document["retrieval"]
    cuts = sorted(int(key.removeprefix("recall@")) for key in found["rows"]["chosen"] if key.startswith("recall@"))
    leads = [_lead(found, k) for k in cuts]
    answer = next((says for says in (NO, UNCLEAR) if any(lead.says == says for lead in leads)), YES)
    telling = next(k for k, lead in zip(cuts[::-1], leads[::-1], strict=True) if lead.says == answer)
    times = {k: _behind(_recalls(found, k)) for k in cuts}
    worst = max(cuts, key=times.__getitem__)
    if answer == UNCLEAR and times[worst] > FAR:
        answer = NO
    at = _recalls(found, telling)
    best = _best(at)
    brief = f"recall at {telling} {percent(at['chosen'], 1)}, {WAYS[best]} {percent(at[best], 1)}"
    return Part("retrieval", answer, [*leads, _alone(_recalls(found, worst), worst)], brief)


def _recalls(found: Mapping[str, Any], k: int) -> dict[str, float]:
    """Row -> recall at k."""
    return {row: recall[f"recall@{k}"] for row, recall in found["rows"].items()}


def _best(at: Mapping[str, float]) -> str:
    """The best of the ways without vectors."""
    return max((row for row in WAYS if row in at), key=at.__getitem__)


def _popular(at: Mapping[str, float]) -> str:
    """The better of the two popularities."""
    return max((row for row in ("popularity", "popularity_day") if row in at), key=at.__getitem__)


def _behind(at: Mapping[str, float]) -> float:
    """How many times as much popularity finds as the inner product alone."""
    return at[_popular(at)] / at["vectors"] if at["vectors"] else math.inf


def _lead(found: Mapping[str, Any], k: int) -> Reason:
    """Whether vectors and prior are ahead of every way without vectors by more than chance."""
    at, bounds = _recalls(found, k), {row: lead.get(f"recall@{k}") for row, lead in found.get("lead", {}).items()}
    judged = [_SAYS[verdict({"lead_lift_ci95": bounds.get(row)}, "lead")] for row in WAYS if row in at]
    says, best = next((each for each in (NO, UNCLEAR) if each in judged), YES), _best(at)
    text = (
        f"of a user's positives the first {k} items by vectors and prior hold {percent(at['chosen'], 1)}, those by "
        f"{WAYS[best]}, the best of the ways without vectors, {percent(at[best], 1)}"
    )
    if (known := bounds.get(best)) and None not in known:
        text += f" (95 % interval of the difference {interval(known)})"
    return Reason("lead", says, text)


def _alone(at: Mapping[str, float], k: int) -> Reason:
    """The inner product alone against popularity."""
    popular, times = _popular(at), _behind(at)
    text = (
        f"the first {k} by inner product alone hold {percent(at['vectors'], 1)}, those by {WAYS[popular]} "
        f"{percent(at[popular], 1)}"
    )
    if times <= 1:
        return Reason("alone", YES, text)
    factor = f", {times:.1f} times as much" if math.isfinite(times) else ""
    return Reason("alone", NO, f"{text}{factor}: without the prior retrieve nothing by these vectors")


def _moved(before: float | None, after: float | None, digits: int = 4) -> str:
    return f"{number(before, digits)} → {number(after, digits)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
