import io
import json
import os
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import recsys.study.daily_report as daily_module
from recsys.config import STUDIED
from recsys.evaluate.bootstrap import paired_bootstrap
from recsys.study.daily_report import build_daily, load_daily, write_daily
from recsys.study.findings import findings, method_title
from recsys.study.scores import ReportError, TaskScores, measure_arms
from recsys.study.terminal import print_daily
from recsys.study.verdict import judge_daily
from tests.recsys.evaluate.page import Page
from tests.recsys.study.daily_example import DAYS, PAPERS_ORDER, example_daily, example_records, example_scores
from tests.recsys.study.test_report import leaves


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return build_daily(example_daily(), samples=60)


def documented() -> list[re.Pattern[str]]:
    patterns = []
    for line in re.findall(r"^    (\S+(?:, \S+)*)  +\S", daily_module.__doc__ or "", re.MULTILINE):
        for key in line.split(", "):
            text = re.escape(re.sub(r"<\w+>", "\0", key.removesuffix(".*"))).replace("\0", r".+?")
            patterns.append(re.compile(text + (r"\..+" if key.endswith(".*") else "")))
    return patterns


def test_every_key_is_documented_and_every_documented_key_exists(full: dict[str, Any]) -> None:
    found, patterns = leaves(full), documented()
    assert len(patterns) > 30
    for leaf in found:
        assert any(pattern.fullmatch(leaf) for pattern in patterns), f"{leaf} is not documented"
    for pattern in patterns:
        assert any(pattern.fullmatch(leaf) for leaf in found), f"{pattern.pattern} is documented but not written"


def test_the_keys_that_others_read(full: dict[str, Any]) -> None:
    assert list(full["aggregation"]) == list(STUDIED)
    measured = measure_arms(example_scores(PAPERS_ORDER), samples=60)
    for arm in STUDIED:
        assert full["aggregation"][arm]["auc_lift"] == pytest.approx(measured[arm]["auc_lift"])
        assert full["aggregation"][arm]["auc_lift_ci95"] == pytest.approx(measured[arm]["auc_lift_ci95"])
    assert full["cadence"] == {"daily": full["aggregation"]["ma_0.8"], "once": full["tasks"]["ctr"]["once"]}
    assert full["cross"] == full["tasks"]["ctr"]["cross"]
    assert full["baseline"]["auc"] == pytest.approx(measured["none"]["auc"])
    assert full["seeds"] == [0, 1, 2]
    assert list(full["tasks"]) == ["ctr", "cvr"]


def test_comparisons_are_the_paired_bootstrap_of_the_two_arms(full: dict[str, Any]) -> None:
    scores = example_scores(PAPERS_ORDER)
    named = ("ma_0.2_over_latest", "once_over_latest", "ma_0.8_over_once", "ma_0.8_over_average", "cross_over_ma_0.8")
    for name in named:
        a, b = name.split("_over_")
        slow = paired_bootstrap(scores.labels, scores.users, scores.arms[b], scores.arms[a], samples=60)
        found = full["comparisons"][name]
        assert found["auc_lift"] == pytest.approx(slow.lift)
        assert found["auc_lift_ci95"] == pytest.approx([slow.low, slow.high])
    assert "ma_0.8_over_none" not in full["comparisons"]
    assert "ma_0.8_over_cross" not in full["comparisons"]
    assert len(full["comparisons"]) == len(set(full["comparisons"])) == 6 + 4 + 1


def test_figures_of_the_days(full: dict[str, Any]) -> None:
    assert list(full["coverage"]) == list(full["days"]) == list(DAYS)
    assert full["coverage"][DAYS[0]]["user_ctr"] == {"by_event": None, "by_entity": None}
    assert full["coverage"][DAYS[3]]["item_ctr"]["by_event"] == pytest.approx(0.9 + 0.02 * np.sin(4))
    assert set(full["coverage"][DAYS[3]]) == {"user_ctr", "item_ctr"}
    assert full["drift"][DAYS[0]]["user_ctr.latest"] == {"cosine": None, "neighbour_overlap": None}
    assert full["drift"][DAYS[1]]["user_ctr.latest"]["cosine"] == pytest.approx(0.8 + 0.02 * np.sin(1))
    assert full["days"][DAYS[4]]["gates"] == ["user_ctr: too far"]
    seconds = [20.0 + number for number in range(len(DAYS))]
    whole = sum(seconds) + 7 * len(DAYS)
    assert full["time_shares"]["train"] == pytest.approx(sum(seconds) / whole)
    assert full["time_shares"]["store"] == pytest.approx(len(DAYS) / whole)
    assert sum(full["time_shares"].values()) == pytest.approx(1.0)


def test_written_files_are_strict_json_and_read_back(full: dict[str, Any], tmp_path: Any) -> None:
    write_daily(full, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["daily.html", "daily.json"]
    assert load_daily(tmp_path) == full == json.loads((tmp_path / "daily.json").read_text(), parse_constant=pytest.fail)
    (tmp_path / "daily.json").write_text('{"format_version": 7}')
    with pytest.raises(ReportError, match=r"daily\.json: format_version is 7; this code reads 1"):
        load_daily(tmp_path)


def test_page_is_self_contained_and_complete(full: dict[str, Any], tmp_path: Any) -> None:
    write_daily(full, tmp_path)
    text = (tmp_path / "daily.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    # lifts and differences; two tasks' reliability and entropy by day; recall of the test days and latency; inner
    # product's, coverage, activity, two cosines, seconds
    assert len(page.addresses) == 2 + 4 + 2 + 2 + 5
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    flat = " ".join(page.text.split())
    over = full["comparisons"]["ma_0.8_over_latest"]
    for wanted in (
        full["verdict"]["sentence"],
        full["verdict"]["retrieval"]["sentence"],
        *(reason["text"] for reason in full["verdict"]["refresh"]["reasons"]),
        *findings(full).values(),
        f"{100 * over['auc_lift']:+.2f}",
        "moving average 0.5",
        "never refreshed",
        "with cross representations",
        "of its events",
        "CVR ranker",
        DAYS[-1],
        "refused",
        "11 days",
        "vectors read from 6 h 00 min after their as_of",
        full["commit"],
        'name = "demo" ranks = 2',
    ):
        assert " ".join(wanted.split()) in flat, wanted


def test_the_papers_order_is_recognised_and_a_reversed_one_is_not_hidden() -> None:
    reversed_order = dict(zip(PAPERS_ORDER, (0.09, 0.06, 0.03, 0.02, 0.06, 0.1, 0.0), strict=True))
    theirs = findings(build_daily(example_daily(), samples=40))
    ours = findings(build_daily(example_daily(tasks={"ctr": example_scores(reversed_order)}), samples=40))
    assert "Its order came out; of 4 comparisons" in theirs["The order"]
    assert "Its order did not come out: latest overwrites is ahead, not moving average 0.8;" in ours["The order"]
    assert ours["The order"].startswith("Here, best first: latest overwrites (+")
    assert "moving average 0.2 = average pooling > latest overwrites" in ours["The order"]
    assert "4 stand out from chance" in ours["The order"]


def test_a_small_test_set_is_said_to_be_one() -> None:
    same = dict.fromkeys(PAPERS_ORDER, 0.05)
    text = findings(build_daily(example_daily(tasks={"ctr": example_scores(same, rows=300)}), samples=60))
    assert re.search(r"none stand|1 stands", text["The order"])
    assert text["What the test can tell apart"].startswith("300 test events of ")
    assert "which this test could not see if it were there" in text["What the test can tell apart"]


@pytest.mark.parametrize(("cosine", "still"), [(0.99, True), (0.8, False)])
def test_vectors_that_hardly_jump_are_named_as_a_cause(cosine: float, still: bool) -> None:
    document = build_daily(example_daily(records=example_records(cosine=cosine)), samples=5)
    text = findings(document)["How much there is to smooth"]
    assert ("they hardly jump" in text) == still
    assert text.startswith(f"A user's vector of one day has a median cosine of {cosine:.2f}")


def test_memory_of_the_moving_average() -> None:
    text = findings(build_daily(example_daily(), samples=5))["How often a vector is blended"]
    assert " ".join(text.split()).startswith(
        "The median user's vector is made of 3 days, so that the first still makes up 64 % of its moving average 0.8;"
    )


def test_one_seed_is_said_to_be_too_few() -> None:
    scores = example_scores(PAPERS_ORDER, rows=300)
    alone = replace(scores, arms={arm: lines[:1] for arm, lines in scores.arms.items()}, seeds=(0,))
    few, several = (
        findings(build_daily(example_daily(tasks={"ctr": task}), samples=10))["What the test can tell apart"]
        for task in (alone, scores)
    )
    assert " and 1 training seed put " in few
    assert "With one seed the intervals leave out" in few
    assert "With one seed" not in several


@pytest.mark.parametrize(
    ("bounds", "answer"),
    [((0.01, 0.03), "yes"), ((-0.03, -0.01), "no"), ((-0.01, 0.03), "not clear"), ((None, None), "not clear")],
)
def test_refreshing_is_judged_by_its_interval(
    full: dict[str, Any], bounds: tuple[float | None, float | None], answer: str
) -> None:
    arms = {"daily": {"auc_lift": 0.03, "auc_lift_ci95": [0.0, 0.1]}, "once": {"auc_lift": 0.01}}
    found = {"auc_lift": 0.02, "auc_lift_ci95": bounds}
    judged = judge_daily({**full, "cadence": arms, "comparisons": {"ma_0.8_over_once": found}})["refresh"]
    assert judged["answer"] == answer
    assert " ".join(judged["sentence"].split()).startswith(
        f"{answer.capitalize()} for refreshing daily: over no vectors the CTR ranker's ROC-AUC is +3.00 % with those "
        "refreshed daily and +1.00 % with those never refreshed, a difference of +2.00 % (95 % interval "
    )


def test_without_refreshed_arms_days_or_both_classes(tmp_path: Any) -> None:
    scores = example_scores(PAPERS_ORDER, rows=50)
    alone = replace(scores, arms={"none": scores.arms["none"]})
    one_class = replace(scores, labels=np.zeros(50))
    nobody = TaskScores(
        labels=np.zeros(0), users=np.zeros(0, np.int64), arms={a: np.zeros((1, 0)) for a in scores.arms}, seeds=(0,)
    )
    for task in (alone, one_class, nobody):
        document = build_daily(example_daily(tasks={"ctr": task}, records=[], note=""), samples=5)
        write_daily(document, tmp_path)
        print_daily(document, Console(file=io.StringIO()))
        assert document["verdict"]["tasks"]["ctr"]["answer"] == "not clear"
        assert "refresh" not in document["verdict"]
        assert findings(document) == {}
    document = build_daily(example_daily(records=example_records(DAYS[:1])), samples=5)
    write_daily(document, tmp_path)
    assert "How much there is to smooth" not in findings(document)


def test_never_refreshed_may_be_left_out(full: dict[str, Any]) -> None:
    scores = example_scores(PAPERS_ORDER, rows=500)
    without = replace(scores, arms={arm: lines for arm, lines in scores.arms.items() if arm != "once"})
    document = build_daily(example_daily(tasks={"ctr": without}), samples=20)
    assert list(document["cadence"]) == ["daily"]
    assert "refresh" not in document["verdict"]
    assert "refresh" in full["verdict"]


def test_cross_representations_may_be_left_out(full: dict[str, Any]) -> None:
    """And the verdict, which is of the configured way, is not theirs."""
    gains = {arm: gain for arm, gain in PAPERS_ORDER.items() if arm != "cross"}
    document = build_daily(example_daily(tasks={"ctr": example_scores(gains, rows=500)}), samples=20)
    assert "cross" not in document
    assert not any("cross" in name for name in document["comparisons"])
    assert "What cross representations add" not in findings(document)
    assert full["verdict"]["tasks"]["ctr"]["arm"] == "ma_0.8"


def test_a_weight_that_the_paper_does_not_have_may_be_the_configured_one() -> None:
    gains = {"latest": 0.02, "ma_0.8": 0.05, "ma_0.9": 0.09, "once": 0.0}
    document = build_daily(
        example_daily(tasks={"ctr": example_scores(gains, rows=1000)}, configured="ma_0.9", records=[]), samples=20
    )
    assert list(document["aggregation"]) == ["latest", "ma_0.8", "ma_0.9"]
    assert document["cadence"]["daily"] == document["aggregation"]["ma_0.9"]
    text = findings(document)["The order"]
    assert "moving average 0.9 is ahead, not moving average 0.8; of 2 comparisons of moving average 0.9" in text


def test_arms_of_other_names_and_no_task_are_refused() -> None:
    with pytest.raises(ReportError, match=r"task 'ctr': arm 'ma_0.9'; use none, latest, "):
        build_daily(example_daily(tasks={"ctr": example_scores({"ma_0.9": 0.1}, rows=20)}))
    with pytest.raises(ReportError, match="the daily report has no task"):
        build_daily(example_daily(tasks={}))


def test_terminal_shows_tables_and_findings_in_80_columns(full: dict[str, Any]) -> None:
    out = io.StringIO()
    print_daily(full, Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("moving average 0.5"))
    for value in (full["aggregation"]["ma_0.5"], full["comparisons"]["ma_0.5_over_latest"]):
        assert f"{100 * value['auc_lift']:+.2f}" in row
    assert f"{DAYS[4]} 20,400" in text
    assert text.count("refused") == 1
    assert "events read vectors from 6 h 00 min after their as_of (publish_delay_ms)" in text
    assert "The order. Here, best first" in text
    over = full["comparisons"]["cross_over_ma_0.8"]
    told = " ".join(text.split()).partition("What cross representations add. ")[2]
    assert told.startswith("Read beside the vectors of moving average 0.8 they change the ranker's ROC-AUC by +")
    assert f"{100 * over['auc_lift']:+.2f}" in told
    assert "): worth reading." in told


def test_names_are_escaped(tmp_path: Any) -> None:
    evil = "<script>alert('x')</script>[bold]&"
    document = build_daily(
        example_daily(name=evil, note=evil, tasks={evil: example_scores(PAPERS_ORDER, rows=200)}), samples=5
    )
    write_daily(document, tmp_path)
    page = Page((tmp_path / "daily.html").read_text())
    assert "script" not in page.tags
    assert page.text.count(evil) >= 3
    out = io.StringIO()
    print_daily(document, Console(file=out, width=300))
    assert out.getvalue().count(evil) >= 3


def test_titles() -> None:
    assert [method_title(arm) for arm in ("none", "ma_0.25", "average", "once")] == [
        "no vectors",
        "moving average 0.25",
        "average pooling",
        "never refreshed",
    ]
