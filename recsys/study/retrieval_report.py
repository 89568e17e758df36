"""What both reports say of retrieval: below `retrieval` of their documents, in a table on the page and in the terminal.

Keys:

    recall@<k>                      number; mean over users of the share of their test positives among the
                                    top k of row `chosen`
    popularity_recall@<k>           number; that of row `popularity`
    rows.<row>.recall@<k>           number; by way to retrieve, see recsys/study/retrieval.py: popularity,
                                    popularity_day, ials, prior, vectors, stored_prior, fresh_prior, two_tower,
                                    chosen
    rows.<row>.ndcg@<k>             number; mean over lists, what a user got on a day with a positive, of the
                                    normalised discounted cumulative gain of the top k
    rows.<row>.hit_rate@<k>         number; share of these lists whose top k hold a positive
    rows.<row>.coverage@<k>         number; share of the catalogue, the items with a vector or with an event before the
                                    day, that was in anybody's top k on a day; mean over days
    rows.<row>.recall_<bucket>@<k>  number; recall of the positives whose item is of the head, middle or tail, mean over
                                    users that have such; null: nobody has. By the items' rows in the rankers'
                                    training files, see BUCKETS_DEFINITION in recsys/study/segments.py
    validation.<row>.<figure>@<k>   number; the same figures on the validation days, by whose recall weight, window and
                                    the settings of iALS were chosen; empty without such days
    lead.<row>.recall@<k>           [low, high]; of the recall of row `chosen` less that of another one: the 95 %
                                    interval over users, by the normal distribution
    by_day.<day>.<row>.recall@<k>   number; of the positives of that day alone; without event times there is none
    users_by_day.<day>              int; test users with a positive on that day
    buckets.<bucket>.items          int; items of the rankers' training rows in the head, middle or tail
    buckets.<bucket>.positives      int; test positives in it; of the tail also those without a training row
    hours                           number; chosen window of the prior, 0: everything
    weight                          number; chosen weight of the prior
    ials                            str; chosen settings of iALS; empty: it was not run, for want of the extra
    two_tower.hours                 number; chosen window of the prior for the two-tower model, where there is one
    two_tower.weight                number; chosen weight of it
    latency                         list of {way, width, milliseconds, recall}: of one user's request for the greatest k
                                    on the last day, by `every item` or an index of a kind (width: of HNSW's search,
                                    else 0): median, and the share of the exact answer found, see latency.py
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

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recsys.dates import iso
from recsys.study.found import Measures, RetrievalResult
from recsys.study.segments import BUCKETS, BUCKETS_DEFINITION

LIST_FIGURES = {"ndcg": "NDCG", "hit_rate": "hit rate", "coverage": "coverage"}
"""What a row has beside recall -> its title."""
NO_IALS = "iALS was not run: it needs pip install 'recsys-derm[study]'."


def retrieval_document(result: RetrievalResult) -> dict[str, Any]:
    """The keys above."""
    return {
        **_by_cutoff("recall", result.rows["chosen"].recall),
        **_by_cutoff("popularity_recall", result.rows["popularity"].recall),
        "rows": {name: _figures(measures) for name, measures in result.rows.items()},
        "validation": {name: _figures(measures) for name, measures in result.validation.items()},
        "lead": {row: {f"recall@{k}": list(bounds) for k, bounds in lead.items()} for row, lead in result.lead.items()},
        "by_day": {
            day: {row: _by_cutoff("recall", recall) for row, recall in rows.items()}
            for day, rows in result.by_day.items()
        },
        "users_by_day": dict(result.users_by_day),
        "buckets": {name: asdict(bucket) for name, bucket in result.buckets.items()},
        "hours": result.hours,
        "weight": result.weight,
        "ials": result.ials,
        "latency": [asdict(point) for point in result.latency],
        **({"two_tower": dict(zip(("hours", "weight"), result.two_tower, strict=True))} if result.two_tower else {}),
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
    figures: Mapping[str, str]
    """Key of what a row has beside recall, without its cut-off -> its title."""
    buckets: str
    """What head, middle and tail are."""
    note: str
    """What is missing; empty: nothing."""


def retrieval_table(document: Mapping[str, Any]) -> RetrievalTable | None:
    """Of a report's document; None where retrieval was not run."""
    if "retrieval" not in document:
        return None
    found = document["retrieval"]
    window, towers = _window(found["hours"]), found.get("two_tower", {"hours": 0, "weight": 0})
    configured = document["config"].get("refresh", {}).get("prior", {}).get("hours")
    titles = {
        "popularity": "popularity, all of training",
        "popularity_day": "popularity, last 24 hours",
        "ials": f"iALS, {found['ials']}",
        "prior": f"prior alone, {window}",
        "vectors": "u.v alone",
        "stored_prior": "u.v / tau + prior of the vectors' time",
        "fresh_prior": f"u.v / tau + newest prior{f', {configured:g} hours' if configured else ''}",
        "two_tower": f"two-tower + {towers['weight']:g} x newest prior, {_window(towers['hours'])}",
        "chosen": f"u.v / tau + {found['weight']:g} x newest prior, {window}",
    }
    return RetrievalTable(
        found,
        tuple(key.removeprefix("recall@") for key in found if key.startswith("recall@")),
        {row: titles[row] for row in found["rows"]},
        LIST_FIGURES | {f"recall_{bucket}": f"recall, {bucket}" for bucket in BUCKETS},
        BUCKETS_DEFINITION,
        "" if found["ials"] else NO_IALS,
    )


def _window(hours: float) -> str:
    return f"{hours:g} hours" if hours else "all times"


def _figures(measures: Measures) -> dict[str, float | None]:
    """All figures of a row."""
    named = {"recall": measures.recall, **{key: getattr(measures, key) for key in LIST_FIGURES}}
    named |= {f"recall_{bucket}": measures.recall_of[bucket] for bucket in BUCKETS}
    return {key: value for name, values in named.items() for key, value in _by_cutoff(name, values).items()}


def _by_cutoff(name: str, values: Mapping[int, float]) -> dict[str, float | None]:
    return {f"{name}@{k}": None if math.isnan(value) else value for k, value in values.items()}
