"""Warnings: planted one by one, and where they are read."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from recsys.study.cautions import cautions, daily_cautions
from recsys.study.daily_report import build_daily
from recsys.study.report import build_report
from recsys.study.scores import TaskScores
from recsys.study.terminal import print_report, print_summary
from tests.recsys.study.daily_example import example_daily, example_records
from tests.recsys.study.example import SEEDS, example_results, example_task, example_validation

RNG = np.random.default_rng(0)


def calibrated(scores: TaskScores, shift: float = 0.0) -> TaskScores:
    """The same labels, predicted as they were drawn, all log-odds moved by `shift`; an arm knows more than none, and
    seeds hardly differ."""
    truth = scores.oracle
    assert truth is not None
    arms = {}
    for arm, noise in (("none", 0.8), ("ctr_user", 0.2)):
        said = truth + shift + noise * RNG.normal(size=len(truth))
        arms[arm] = np.stack([said + 0.02 * RNG.normal(size=len(truth)) for _ in SEEDS])
    return replace(scores, arms=arms, validation={arm: scores.validation[arm] for arm in arms}, segments={})


def report(scores: TaskScores, **changes: Any) -> dict[str, Any]:
    return build_report(example_results(tasks={"ctr": scores}, fragment={}, retrieval=None, **changes), samples=5)


def last_pass(scores: TaskScores) -> TaskScores:
    found = [replace(example_validation(0.88), best_pass=8)] * len(SEEDS)
    return replace(scores, validation={**scores.validation, "ctr_user": found})


def unlike_seeds(scores: TaskScores) -> TaskScores:
    noisy = scores.arms["none"].copy()
    noisy[1] += 3 * RNG.normal(size=noisy.shape[1])
    return replace(scores, arms={**scores.arms, "none": noisy})


GOOD = calibrated(example_task())


@pytest.mark.parametrize(
    ("scores", "kind", "text"),
    [
        (
            last_pass(GOOD),
            "passes",
            "was the last of 8 allowed (CTR user), more may be better: raise rankers.training.",
        ),
        (calibrated(example_task(), 3.0), "ne", "normalized entropy on the test rows is above 1 (no vectors 1."),
        (calibrated(example_task(), 0.5), "calibration", "on the test rows is beyond 0.9 to 1.1 (no vectors 1."),
        (unlike_seeds(GOOD), "seeds", "different seeds differ by more ROC-AUC than the vectors are worth (CTR user 0."),
        (calibrated(example_task(400)), "positives", "positive, fewer than 300: they tell little"),
    ],
)
def test_what_is_planted_is_said(scores: TaskScores, kind: str, text: str) -> None:
    document = report(scores)
    (found,) = (entry for entry in document["warnings"] if entry["kind"] == kind)
    assert found["text"].startswith("CTR ranker: ")
    assert text in found["text"]
    assert found["about"] == "ctr"
    for show in (print_report, print_summary):
        out = io.StringIO()
        show(document, Console(file=out, width=1000))
        assert f"warning: {found['text']}\n" in out.getvalue()


def test_nothing_is_said_of_a_good_run() -> None:
    assert report(GOOD)["warnings"] == []


def test_arms_that_read_nothing_are_not_warned_of_again() -> None:
    scores = calibrated(example_task(), 0.5)
    unread = [example_validation(0.91, reads=False)] * len(SEEDS)
    document = report(replace(scores, validation={**scores.validation, "ctr_user": unread}))
    (found,) = (entry for entry in document["warnings"] if entry["kind"] == "calibration")
    assert "CTR user" not in found["text"]


def test_items_that_most_events_have_no_vector_of() -> None:
    base = example_results()
    series = {**base.series, "item_ctr": replace(base.series["item_ctr"], coverage=0.37)}
    (found,) = report(GOOD, series=series)["warnings"]
    assert (found["kind"], found["about"]) == ("coverage", "item_ctr")
    assert found["text"].startswith("37\xa0% of the test events have an item with a vector in item_ctr")


def test_rows_of_which_a_share_is_measured() -> None:
    (found,) = report(GOOD, users_measured=0.25)["warnings"]
    assert (found["kind"], found["about"]) == ("sample", "users")
    assert "test rows are many: measured are those of 25.0\xa0% of the users, chosen by a hash" in found["text"]


def test_documents_of_before_some_users_were_measured_are_read() -> None:
    run, days = report(GOOD), build_daily(example_daily(), samples=5)
    for document, read in ((run, cautions), (days, daily_cautions)):
        found = read(document)
        del document["users_measured"]
        assert read(document) == found


def test_an_upstream_that_might_have_learned_on() -> None:
    document = report(GOOD)
    for best, held_out, said in ((4, 2000, True), (3, 2000, False), (4, 0, False)):
        passes = {"best": best, "most": 4, "held_out": held_out}
        found = cautions({**document, "upstreams": {"ctr": {"passes": passes}}})
        assert bool(found) == said
    assert (
        "raise upstreams.ctr.training.epochs"
        in cautions({**document, "upstreams": {"ctr": {"passes": {"best": 4, "most": 4, "held_out": 2000}}}})[0]["text"]
    )


def test_days_whose_items_are_new_and_vectors_that_rank_by_chance() -> None:
    document = build_daily(example_daily(), samples=5)
    assert {entry["kind"] for entry in document["warnings"]} <= {"passes", "ne", "calibration", "seeds", "positives"}
    records = example_records()
    for record in records:
        record["quality"]["pair"]["worth"] = {"read_auc": 0.502, "read_auc_ci95": [0.48, 0.524]}
    records[-1]["quality"]["series"]["item_ctr"]["coverage"]["by_event"] = 0.37
    found = {
        entry["kind"]: entry["text"] for entry in build_daily(example_daily(records=records), samples=5)["warnings"]
    }
    assert found["coverage"].startswith("37\xa0% of the last day's events had an item with a vector in item_ctr: ")
    assert found["chance"] == (
        "the inner product of ctr's users and items, as it could be read, ranks the last 7 days' traffic at a ROC-AUC "
        "of 0.502 (0.494 to 0.510), no better than chance"
    )
