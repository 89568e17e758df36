import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import recsys.study.report as report_module
from recsys.evaluate.metrics import calibration, normalized_entropy
from recsys.study.environment import commit, hardware
from recsys.study.report import build_report, load_report, write_report
from recsys.study.report_page import render_page
from recsys.study.scores import ReportError, TaskScores, measure_arms
from recsys.study.segments import DEFINITION
from recsys.study.terminal import print_report, print_summary
from tests.recsys.evaluate.page import Page
from tests.recsys.study.example import ARMS, example_results, example_task, example_validation


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return build_report(example_results(), samples=50)


def without_parts() -> dict[str, Any]:
    """A report of one task of an unusual name, and nothing else."""
    task = example_task(600, gain=0.0, oracle=False)
    results = example_results(
        tasks={"long_view": task},
        fragment={},
        upstreams={},
        series={},
        retrieval=None,
        note="",
        rows={},
        screened={},
        seconds={},
    )
    return build_report(results, samples=20)


def leaves(value: Any, path: str = "") -> list[str]:
    if not isinstance(value, dict) or not value:
        return [path]
    return [leaf for key, entry in value.items() for leaf in leaves(entry, f"{path}.{key}" if path else key)]


def documented() -> dict[str, re.Pattern[str]]:
    keys = re.findall(r"^    (\S+)  +\S", report_module.__doc__ or "", re.MULTILINE)
    patterns = {}
    for key in keys:
        text = re.sub(r"<\w+>", "\0", key.removesuffix(".*"))
        suffix = r"\..+" if key.endswith(".*") else ""
        patterns[key] = re.compile(re.escape(text).replace("\0", r"[^.@]+") + suffix)
    return patterns


def test_every_key_is_documented_and_every_documented_key_exists(full):
    found, patterns = leaves(full), documented()
    assert len(patterns) > 40
    for leaf in found:
        assert any(pattern.fullmatch(leaf) for pattern in patterns.values()), f"{leaf} is not documented"
    for key, pattern in patterns.items():
        assert any(pattern.fullmatch(leaf) for leaf in found), f"{key} is documented but not written"


def test_figures_of_an_arm(full):
    none, best = full["tasks"]["ctr"]["none"], full["tasks"]["ctr"]["ctr_cvr_user_item"]
    assert list(full["tasks"]["ctr"]) == list(ARMS)
    assert "auc_lift" not in none
    assert best["auc"] == pytest.approx(np.mean(best["auc_by_seed"]))
    assert best["auc_lift"] == pytest.approx(best["auc"] / none["auc"] - 1)
    assert best["auc_lift_ci95"][0] < best["auc_lift"] < best["auc_lift_ci95"][1]
    assert best["seeds"] == [0, 1, 2] == full["seeds"]
    assert best["rows"] == 4000
    assert best["positives"] == int(example_task().labels.sum())
    gap = full["oracle"]["ctr"]
    assert gap["gap_closed"]["ctr_user"] == pytest.approx(
        (full["tasks"]["ctr"]["ctr_user"]["auc"] - none["auc"]) / (gap["auc"] - none["auc"])
    )


def test_final_metrics_and_curves_come_from_the_last_rows(full):
    run = example_results().upstreams["ctr"]
    written = full["upstreams"]["ctr"]
    assert written["curves"][-1]["step"] == run.curves[-1]["step"] == 1200
    assert written["ne"]["is_click"] == run.curves[-1]["ne.is_click"]
    gone = {key: value for key, value in run.curves[-1].items() if key != "auc.is_like"}
    rare = build_report(example_results(upstreams={"ctr": replace(run, curves=[*run.curves[:-1], gone])}), samples=1)
    assert rare["upstreams"]["ctr"]["auc"]["is_like"] == run.curves[-2]["auc.is_like"]
    long = replace(run, curves=[{"step": step, "loss": 1.0} for step in range(1, 2002)])
    curves = build_report(example_results(upstreams={"ctr": long}), samples=1)["upstreams"]["ctr"]["curves"]
    assert len(curves) <= report_module.CURVE_POINTS
    assert curves[-1]["step"] == 2001


def test_written_files_are_strict_json_and_read_back(full, tmp_path):
    write_report(full, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]
    assert (
        load_report(tmp_path) == full == json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    )


def test_undefined_figures_are_null_and_still_render(tmp_path):
    empty = TaskScores(
        labels=np.zeros(0),
        users=np.zeros(0, np.int64),
        arms={arm: np.zeros((1, 0)) for arm in ARMS},
        seeds=(0,),
        oracle=np.zeros(0),
    )
    one_class = replace(example_task(50), labels=np.zeros(50))
    report = build_report(example_results(tasks={"ctr": empty, "cvr": one_class}, fragment={}), samples=5)
    assert report["tasks"]["cvr"]["ctr_user"]["auc_lift_ci95"] == [None, None]
    assert report["oracle"]["ctr"] == {"auc": None, "gap_closed": dict.fromkeys(ARMS[1:])}
    assert {entry["answer"] for entry in report["verdict"]["tasks"].values()} == {"not clear"}
    assert "nothing could be measured" in report["verdict"]["sentence"]
    write_report(report, tmp_path)
    print_report(report, Console(file=io.StringIO()))


def test_a_failed_write_leaves_the_previous_report(full, tmp_path, monkeypatch):
    write_report(full, tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report({**full, "name": "other"}, tmp_path)
    assert load_report(tmp_path) == full
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]


def test_unreadable_reports_are_named(tmp_path):
    (tmp_path / "report.json").write_text('{"format_version": 99}')
    with pytest.raises(ReportError, match=r"report\.json: format_version is 99; this code reads 1"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ReportError, match=r"report\.json: not JSON"):
        load_report(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"ctr_user": np.zeros((3, 10))}}, r"arms are \['ctr_user'\]; put 'none' first"),
        ({"arms": {"none": np.zeros((2, 10))}}, r"arm 'none': logits are \(2, 10\); expected .* \(3, 10\)"),
        ({"arms": {"none": np.full((3, 10), np.nan)}}, r"arm 'none': logits hold NaN or infinity"),
        ({"labels": np.full(10, 0.5)}, r"labels hold values besides 0 and 1"),
        ({"users": np.zeros(9)}, r"users has 9 entries for 10 labels"),
        ({"oracle": np.zeros(3)}, r"oracle is \(3,\); expected \[rows\] = \(10,\)"),
    ],
)
def test_scores_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ReportError, match=message):
        replace(example_task(10), **changes)


def test_page_is_self_contained_and_complete(full, tmp_path):
    write_report(full, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    # flow, lifts, reliability, entropy by day, oracle gaps, recall and latency, five curves twice
    assert len(page.addresses) == 1 + 2 + 2 + 2 + 2 + 2 + 10
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    flat = " ".join(page.text.split())
    best = full["tasks"]["ctr"]["ctr_cvr_user_item"]
    for wanted in (
        full["verdict"]["sentence"],
        *(f"{value:.4f}" for key in ("auc_by_seed", "ne_by_seed") for value in best[key]),
        f"{best['auc'] - full['tasks']['ctr']['none']['auc']:+.4f}",
        *(reason["text"] for reason in full["verdict"]["tasks"]["ctr"]["reasons"]),
        *(warning["text"] for warning in full["warnings"]),
        full["verdict"]["retrieval"]["sentence"],
        "Recall over the days",
        "synthetic data",
        "CTR + CVR, user + item",
        f"{100 * best['auc_lift']:+.2f}",
        "one surface alone (2,500 test events)",
        "How far to the oracle",
        "recall at 50",
        "u.v / tau + 1.5 x newest prior, 24 hours",
        "0.1191",
        "item_cvr",
        "64 × float16",  # noqa: RUF001
        "2022-01-08 00:00:00 UTC",
        "1 min 35 s",
        'name = "demo" ranks = 2',
        full["commit"],
        "vectors read from 6 h 00 min after their as_of",
    ):
        assert " ".join(wanted.split()) in flat, wanted


def test_page_shows_who_learned_from_what_and_who_read_it(full):
    config = {"upstreams": [{"name": "ctr", "tasks": ["click"], "source": {"events": ["a/*", "b/*", "c/*"]}}]}
    address = Page(render_page(full | {"config": config})).addresses[0]
    drawn = base64.b64decode(address.partition(",")[2]).decode()
    for wanted in ("a/*", "to c/*", "ctr", "cvr", "up to 2022-01-08", "user v1", "item v1", "CTR + CVR, user + item"):
        assert f">{wanted}<" in drawn


def test_a_log_without_event_times_is_not_of_1970():
    base = example_results()
    results = replace(
        base,
        series={name: replace(run, as_of=0) for name, run in base.series.items()},
        retrieval=replace(base.retrieval, as_of=0),
        publish_delay_ms=None,
    )
    report = build_report(results, samples=5)
    assert {entry["as_of"] for entry in (*report["store"].values(), report["retrieval"])} == {None}
    assert report["publish_delay_ms"] is None
    page = Page(render_page(report))
    drawn = base64.b64decode(page.addresses[0].partition(",")[2]).decode()
    assert ">without event times<" in drawn
    assert " ".join(page.text.split()).count("without event times") == 1 + len(base.series)
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    assert "events read vectors without event times" in out.getvalue()
    for text in (json.dumps(report["store"]), page.text, drawn, out.getvalue()):
        assert "1970" not in text


@pytest.mark.parametrize(
    ("seeds", "trainings", "wanted"),
    [
        ((0,), (), "test users alone: no other seed of a ranker, no other training of an upstream"),
        ((0, 1, 2), (), "test users and 3 ranker seeds, no other training of an upstream"),
        ((0, 1, 2), (4,), "test users and 3 ranker seeds, no other training of an upstream"),
        ((0, 1, 2), (0, 1), "test users and 3 ranker seeds, which read the vectors of 2 trainings of each upstream"),
    ],
)
def test_what_the_intervals_are_over_is_said(seeds: tuple[int, ...], trainings: tuple[int, ...], wanted: str) -> None:
    scores = example_task(300)
    scores = replace(scores, arms={arm: lines[: len(seeds)] for arm, lines in scores.arms.items()}, seeds=seeds)
    results = example_results(tasks={"ctr": scores}, fragment={}, upstream_seeds=trainings, upstreams={}, series={})
    report = build_report(results, samples=5)
    assert report["upstream_seeds"] == list(trainings)
    out = io.StringIO()
    print_report(report, Console(file=out, width=120))
    assert f"intervals over {wanted}\n" in out.getvalue()
    page = " ".join(Page(render_page(report)).text.split())
    assert f"Here they are over {wanted}." in page
    assert ("give the study upstream_seeds" in page) == (len(trainings) < 2)
    assert f"{max(1, len(trainings))} training{'s' if len(trainings) > 1 else ''} of each upstream" in page


def test_absent_parts_are_left_out(tmp_path):
    report = without_parts()
    assert {"fragment", "oracle", "retrieval"}.isdisjoint(report)
    write_report(report, tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    for absent in ("surface alone", "oracle", "Retrieval", "Upstream training", "synthetic", "About the data"):
        assert absent not in text
    assert "long view ranker" in text


def test_names_are_escaped_everywhere(tmp_path):
    evil = "<script>alert('x')</script>[bold]&"
    results = example_results(
        name=evil,
        note=evil,
        tasks={evil: example_task(300)},
        fragment={},
        upstreams={evil: example_results().upstreams["ctr"]},
        series={evil: replace(example_results().series["user_ctr"], space=evil)},
        seconds={evil: 1.0},
        config={"note": evil},
    )
    report = build_report(results, samples=5)
    write_report(report, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert page.text.count(evil) >= 8
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert out.getvalue().count(evil) >= 4


def test_terminal_shows_the_table_in_80_columns(full):
    out = io.StringIO()
    print_report(full, Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    entry = full["tasks"]["cvr"]["ctr_user_item"]
    row = next(line for line in text[text.index("CVR ranker") :].splitlines() if line.startswith("CTR user + item"))
    for value in (f"{entry['auc']:.4f}", f"{entry['ne']:.4f}", f"{entry['calibration']:.3f}"):
        assert value in row
    assert full["verdict"]["tasks"]["cvr"]["sentence"][:40] in text
    assert f"warning: {full['warnings'][0]['text'][:40]}" in text
    assert "events read vectors from 6 h 00 min after their as_of (publish_delay_ms)" in text


def test_summary_is_ten_lines_of_80_columns(full):
    out = io.StringIO()
    print_summary(full, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert len(lines[: next(at for at, line in enumerate(lines) if line.startswith(("warning", "Yes", "No")))]) <= 11
    sentence = full["verdict"]["retrieval"]["sentence"]
    assert " ".join(sentence.split()) in " ".join(out.getvalue().split())
    assert "…" not in out.getvalue()
    best = next(line for line in lines if line.startswith("CTR + CVR, user + item"))
    for task in ("ctr", "cvr"):
        assert f"{full['tasks'][task]['ctr_cvr_user_item']['auc']:.4f}" in best
        assert f"{full['oracle'][task]['auc']:.4f}" in next(line for line in lines if line.startswith("the oracle"))


def test_an_arm_that_does_not_pay_is_named_and_not_sold(tmp_path: Path) -> None:
    """The arm of the greatest lift on the test rows did no better than none on the validation rows."""
    scores = example_task()
    worse = {**scores.validation, ARMS[3]: [example_validation(0.9001, reads=False)] * 3}
    report = build_report(example_results(tasks={"ctr": replace(scores, validation=worse)}), samples=20)
    arms = report["tasks"]["ctr"]
    assert [arms[arm].get("pays") for arm in ARMS] == [None, True, True, False]
    assert arms[ARMS[3]]["auc_lift"] > arms[ARMS[2]]["auc_lift"]
    assert report["verdict"]["tasks"]["ctr"]["arm"] == ARMS[2]
    named = (
        "Does not pay on the validation rows, so the ranker reads none of it (normalized entropy 0.9000 without "
        "vectors, ± the standard error of the difference): CTR + CVR, user + item (0.9001 ± 0.0010)."
    )
    assert named in " ".join(Page(render_page(report)).text.split())
    for show in (print_report, print_summary):
        out = io.StringIO()
        show(report, Console(file=out, width=200))
        assert f"CTR: {named}" in out.getvalue()
    noise = dict.fromkeys(ARMS, [example_validation(0.9, reads=False)] * 3)
    none_pays = build_report(example_results(tasks={"ctr": replace(scores, validation=noise)}), samples=20)
    judged = none_pays["verdict"]["tasks"]["ctr"]
    assert (judged["answer"], judged["arm"]) == ("no", None)
    assert judged["sentence"].startswith("No for the CTR ranker: no set of stored vectors pays on the validation rows")
    assert judged["reasons"][0]["text"] in " ".join(Page(render_page(none_pays)).text.split())
    print_report(none_pays, Console(file=io.StringIO()))


def test_calibration_and_segments_are_where_people_read(full: dict[str, Any]) -> None:
    page = " ".join(Page(render_page(full)).text.split())
    arm = full["tasks"]["ctr"]["ctr_user"]
    assert list(arm["calibration_by_day"]) == ["2022-01-08", "2022-01-09"]
    assert arm["validation"] == {**arm["validation"], "calibration": 1.0, "raw_calibration": 0.93}
    rows = example_task().days == 19_001
    scores = example_task()
    expected = np.mean([calibration(scores.labels[rows], line[rows]) for line in scores.arms["ctr_user"]])
    assert arm["calibration_by_day"]["2022-01-09"] == pytest.approx(expected)
    entropy = np.mean([normalized_entropy(scores.labels[rows], line[rows]) for line in scores.arms["ctr_user"]])
    assert arm["ne_by_day"]["2022-01-09"] == pytest.approx(entropy)
    assert render_page(full).count("Normalized entropy, day by day, with and without vectors") == len(full["tasks"])
    segment = full["segments"]["ctr"]["item"]["tail"]
    assert segment["rows"] == np.sum(example_task().segments["item"] == 1)
    for wanted in (DEFINITION, "2022-01-09", "new items", "head users", f"{segment['arms']['ctr_user']['ne']:.4f}"):
        assert wanted in page, wanted
    assert "too few to tell" in page, "positives of the new ones of the second task"
    out = io.StringIO()
    print_report(full, Console(file=out, width=120))
    assert "CTR calibration, no vectors: validation 1.000; test 2022-01-08 " in out.getvalue()
    assert re.search(r"CTR lift by new / tail / head: item [+\u2212]\d", out.getvalue())


def test_measured_arms_need_no_lift_for_a_lone_reference():
    scores = example_task(100)
    lone = replace(scores, arms={"none": scores.arms["none"]})
    assert "auc_lift" not in measure_arms(lone, samples=5)["none"]


def test_environment():
    found = hardware()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["cpu"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", commit())
    assert Path(report_module.__file__).parent.joinpath("report.html").exists()
