"""The tables of `benchmarks.worth`, in Markdown, made of the reports of runs alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.evaluate.wording import MISSING, duration, number, percent, points, size
from recsys.study.scores import REFERENCE
from recsys.study.segments import DEFINITION, OWNERS, SEGMENTS

CUTOFFS = (10, 50)
WAYS = {
    "chosen": "vectors + prior",
    "vectors": "vectors",
    "prior": "prior",
    "popularity": "popularity",
    "popularity_day": "popularity, last day",
    "ials": "iALS",
}
"""`retrieval.rows` of a report -> heading; a way that no report has is no column."""
EXPLAINED = """\
Lifts of ROC-AUC over the same ranker without vectors, in %, with 95 % intervals over test users and seeds. Once: the
vectors that, of all a run compares, had the least normalized entropy (NE) on the validation rows; (!): there it was not
below that without vectors by more than its standard error, so none is read. Daily: the newest vectors as of each event,
averaged over the days as the recipe says. NE and calibration: without vectors → with them. Known: share of test events
whose user, item had a vector. Time: of all stages from the raw files to the report, and of the jobs' start."""
RETRIEVED = """\
Vectors: u.v alone. Prior: the log of the items' newest positives, of the window that the validation days chose; with
vectors: u.v / tau + weight x prior, the weight chosen there too. All of the same users, day by day where the log has
times."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of the benchmark."""

    log: str
    """Its name, with what to know about it."""
    way: str
    """once or daily."""
    document: Mapping[str, Any] | None = None
    """report.json or daily.json; None: there is none."""
    reason: str = ""
    """Why."""


def worth_page(entries: Sequence[Entry], assignments: Sequence[str] = ()) -> str:
    """All tables, and where they were measured.

    Args:
        entries: the runs, in the order to show.
        assignments: `path=value` changes of every config.
    """
    done = [entry for entry in entries if entry.document is not None]
    parts = [
        "# What stored vectors were worth",
        EXPLAINED,
        _table(
            [
                "log",
                "way",
                "test events",
                "CTR lift",
                "CVR lift",
                "CTR validation NE",
                "CTR calibration",
                "known",
                "time",
            ],
            [_worth(entry) for entry in done],
        ),
        _retrieval([entry for entry in done if "retrieval" in _of(entry)]),
        f"## CTR lift by entity\n\n{DEFINITION}",
        _table(["log", "way", "by", *SEGMENTS], [row for entry in done for row in _segments(entry)]),
        *_machines(done),
        *(f"{entry.log}, {entry.way}: not here, {entry.reason}." for entry in entries if entry.document is None),
        *([f"Changed in every config: {', '.join(assignments)}."] if assignments else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown_arm(document: Mapping[str, Any], task: str) -> str:
    """The arm whose figures stand for a run: the configured one, or that of the least validation NE."""
    if "configured" in document:
        return str(document["configured"])
    arms = document["tasks"][task]
    return min((arm for arm in arms if arm != REFERENCE), key=lambda arm: arms[arm]["validation"]["ne"])


def known(document: Mapping[str, Any]) -> list[float]:
    """Share of test events whose user, and whose item, had a vector."""
    if "configured" not in document:
        upstream = next(iter(document["upstreams"]))
        return [document["store"][f"{owner}_{upstream}"]["coverage"] for owner in ("user", "item")]
    first, last = document["config"]["spans"]["test"]
    events = {day: entry["events"] for day, entry in document["days"].items() if first <= day <= last}
    return [
        sum(document["coverage"][day][f"{owner}_{document['upstream']}"]["by_event"] * n for day, n in events.items())
        / sum(events.values())
        for owner in ("user", "item")
    ]


def _of(entry: Entry) -> Mapping[str, Any]:
    assert entry.document is not None
    return entry.document


def _worth(entry: Entry) -> list[str]:
    document = _of(entry)
    arms = document["tasks"]["ctr"]
    pair = [arms[REFERENCE], arms[shown_arm(document, "ctr")]]
    return [
        entry.log,
        entry.way,
        number(document["rows"]["test"], 0),
        *(_task_lift(document, task) for task in ("ctr", "cvr")),
        " → ".join(number(arm["validation"]["ne"]) for arm in pair),
        " → ".join(number(arm["calibration"], 3) for arm in pair),
        ", ".join(percent(share, 0) for share in known(document)),
        duration(sum(document["seconds"].values())),
    ]


def _task_lift(document: Mapping[str, Any], task: str) -> str:
    if task not in document["tasks"]:
        return MISSING
    measured = document["tasks"][task][shown_arm(document, task)]
    return _lift(measured) + ("" if measured["pays"] else " (!)")


def _lift(measured: Mapping[str, Any]) -> str:
    if measured.get("auc_lift") is None:
        return MISSING
    low, high = (points(bound, signed=True) for bound in measured["auc_lift_ci95"])
    return f"{points(measured['auc_lift'], signed=True)} ({low}, {high})"


def _retrieval(entries: Sequence[Entry]) -> str:
    found = [(entry, _of(entry)["retrieval"]) for entry in entries]
    ways = [way for way in WAYS if any(way in retrieval["rows"] for _, retrieval in found)]
    rows = [
        [
            entry.log,
            entry.way,
            number(retrieval["users"], 0),
            percent(retrieval["positives_without_vector"], 0),
            *(_cutoffs(retrieval["rows"].get(way)) for way in ways),
        ]
        for entry, retrieval in found
    ]
    heading = f"## Retrieval: recall@{' / @'.join(map(str, CUTOFFS))} of the test positives, mean over users"
    headings = ["log", "way", "users", "positives without vector", *(WAYS[way] for way in ways)]
    return f"{heading}\n\n{RETRIEVED}\n\n{_table(headings, rows)}" if rows else ""


def _cutoffs(recall: Mapping[str, float] | None) -> str:
    return MISSING if recall is None else " / ".join(number(recall.get(f"recall@{k}")) for k in CUTOFFS)


def _segments(entry: Entry) -> Iterable[list[str]]:
    document = _of(entry)
    measured, arm = document["segments"]["ctr"], shown_arm(document, "ctr")
    for owner in OWNERS:
        lifts = [_lift(measured[owner][name].get("arms", {}).get(arm, {})) for name in SEGMENTS]
        yield [entry.log, entry.way, owner, *lifts]


def _machines(entries: Sequence[Entry]) -> list[str]:
    """Day, commit and machine, each with its runs."""
    runs: dict[str, list[str]] = {}
    for entry in entries:
        document = _of(entry)
        machine, commit = document["hardware"], document["commit"]  # 40 digits, then -dirty if it was
        text = (
            f"{document['created'][:10]}, commit {commit[:8]}{commit[40:]}, {machine['cores']} cores of "
            f"{machine['cpu']}, {size(machine['memory_bytes'])}, {', '.join(machine['gpu']) or 'no GPU'}"
        )
        runs.setdefault(text, []).append(f"{entry.log}, {entry.way}")
    return [f"Measured on {text}: {'; '.join(names)}." for text, names in runs.items()]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
