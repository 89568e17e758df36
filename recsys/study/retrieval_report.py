"""What both reports say of retrieval: below `retrieval` of their documents, in a table on the page and in the terminal.

Keys:

    recall@<k>                      number; mean over users of the share of their test positives among the
                                    top k of row `chosen`
    popularity_recall@<k>           number; that of row `popularity`
    rows.<row>.recall@<k>           number; by way to retrieve, see recsys/study/retrieval.py: popularity,
                                    popularity_day, ials, prior, vectors, stored_prior, fresh_prior, chosen
    validation.<row>.recall@<k>     number; the same on the validation days, by which weight, window and the
                                    settings of iALS were chosen; empty without such days
    lead.<row>.recall@<k>           [low, high]; of the recall of row `chosen` less that of another one: the 95 %
                                    interval over users, by the normal distribution
    by_day.<day>.<row>.recall@<k>   number; of the positives of that day alone; without event times there is none
    users_by_day.<day>              int; test users with a positive on that day
    hours                           number; chosen window of the prior, 0: everything
    weight                          number; chosen weight of the prior
    ials                            str; chosen settings of iALS; empty: it was not run, for want of the extra
    days                            int; times at which vectors and prior were read: days, 1 without event times
    users                           int; test users with a positive
    users_without_vector            number; share of their days on which they had none: the prior alone counts
    items                           int; candidates of the last day: with a vector, or an event in the window
    positives_without_vector        number; share of test positives whose item had no vector
    positives_not_retrievable       number; share of test positives that were no candidates, hence never found
    version                         int; of the vectors of the last day
    as_of                           str; ISO 8601, UTC; null without event times
    space                           str; whose vectors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recsys.dates import iso
from recsys.study.found import RetrievalResult

NO_IALS = "iALS was not run: it needs pip install 'recsys-derm[study]'."


def retrieval_document(result: RetrievalResult) -> dict[str, Any]:
    """The keys above."""
    return {
        **_recalls(result.rows["chosen"]),
        **{f"popularity_{key}": value for key, value in _recalls(result.rows["popularity"]).items()},
        "rows": {name: _recalls(recall) for name, recall in result.rows.items()},
        "validation": {name: _recalls(recall) for name, recall in result.validation.items()},
        "lead": {row: {f"recall@{k}": list(bounds) for k, bounds in lead.items()} for row, lead in result.lead.items()},
        "by_day": {day: {row: _recalls(recall) for row, recall in rows.items()} for day, rows in result.by_day.items()},
        "users_by_day": dict(result.users_by_day),
        "hours": result.hours,
        "weight": result.weight,
        "ials": result.ials,
        "days": result.days,
        "users": result.users,
        "users_without_vector": result.users_without_vector,
        "items": result.items,
        "positives_without_vector": result.positives_without_vector,
        "positives_not_retrievable": result.positives_not_retrievable,
        "version": result.version,
        "as_of": iso(result.as_of),
        "space": result.space,
    }


@dataclass(frozen=True)
class RetrievalTable:
    """How the figures of a document are shown."""

    found: Mapping[str, Any]
    """`retrieval` of the document."""
    cutoffs: tuple[str, ...]
    """The k of every recall@k."""
    titles: Mapping[str, str]
    """Row -> what it is called, in the order of the table."""
    note: str
    """What is missing; empty: nothing."""


def retrieval_table(document: Mapping[str, Any]) -> RetrievalTable | None:
    """Of a report's document; None where retrieval was not run."""
    if "retrieval" not in document:
        return None
    found = document["retrieval"]
    window = f"{found['hours']:g} hours" if found["hours"] else "all times"
    configured = document["config"].get("refresh", {}).get("prior", {}).get("hours")
    titles = {
        "popularity": "popularity, all of training",
        "popularity_day": "popularity, last 24 hours",
        "ials": f"iALS, {found['ials']}",
        "prior": f"prior alone, {window}",
        "vectors": "u.v alone",
        "stored_prior": "u.v / tau + prior of the vectors' time",
        "fresh_prior": f"u.v / tau + newest prior{f', {configured:g} hours' if configured else ''}",
        "chosen": f"u.v / tau + {found['weight']:g} x newest prior, {window}",
    }
    return RetrievalTable(
        found,
        tuple(key.removeprefix("recall@") for key in found if key.startswith("recall@")),
        {row: titles[row] for row in found["rows"]},
        "" if found["ials"] else NO_IALS,
    )


def _recalls(recall: Mapping[int, float]) -> dict[str, float]:
    return {f"recall@{k}": value for k, value in recall.items()}
