"""benchmarks/worth.py: its table from reports that the reports' own code made, and what it runs again."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import worth
from benchmarks.worth import Options, Run, main
from benchmarks.worth_table import Entry, known, worth_page
from recsys.atomic import write_json
from recsys.config import ConfigError, to_dict
from recsys.evaluate.wording import MISSING
from recsys.stages import record
from recsys.study.daily_report import build_daily
from recsys.study.report import build_report, plain
from tests.recsys.study.daily_example import DAYS, example_daily
from tests.recsys.study.example import example_results


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    return build_report(example_results(), samples=20)


@pytest.fixture(scope="module")
def daily() -> dict[str, Any]:
    config = {"spans": {"test": [DAYS[-2], DAYS[-1]]}}
    return build_daily(example_daily(config=config), samples=20)


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every table, headings first."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    starts = [number - 1 for number, line in enumerate(lines) if set("".join(line)) == {"-"}]
    found = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    assert all(len(row) == len(table[0]) for table in found for row in table)
    return found


def signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")


def test_a_run_is_a_row_of_each_table(once: dict[str, Any], daily: dict[str, Any]) -> None:
    page = worth_page(
        [
            Entry(log="a log", way="once", document=once),
            Entry(log="a log", way="daily", document=daily),
            Entry(log="another", way="once", reason="data/another is not there"),
        ],
        ("rankers.seeds=[0]",),
    )
    lifts, retrieval, segments = tables(page)
    best = once["tasks"]["ctr"]["ctr_cvr_user_item"]  # the least validation NE
    low, high = best["auc_lift_ci95"]
    row = dict(zip(lifts[0], lifts[2], strict=True))
    assert row["CTR lift"] == f"{signed(best['auc_lift'])} ({signed(low)}, {signed(high)})"
    assert row["CTR validation NE"] == "0.9000 → 0.8700"
    assert row["known"] == "91\N{NO-BREAK SPACE}%, 99\N{NO-BREAK SPACE}%"
    assert row["time"] == "3 min 25 s"
    assert row["test events"] == "4,000"
    configured = daily["tasks"]["ctr"]["ma_0.8"]
    assert lifts[3][:2] == ["a log", "daily"]
    assert signed(configured["auc_lift"]) in lifts[3][3]
    assert len(lifts) == 4
    assert retrieval[0][-3:] == ["popularity", "popularity, last day", "iALS"]
    assert retrieval[2][:5] == ["a log", "once", "2,210", "1\N{NO-BREAK SPACE}%", "0.0712 / 0.2113"]
    assert [row[:3] for row in segments[2:]] == [
        ["a log", way, owner] for way in ("once", "daily") for owner in ("item", "user")
    ]
    tail = once["segments"]["ctr"]["item"]["tail"]["arms"]["ctr_cvr_user_item"]
    assert signed(tail["auc_lift"]) in segments[2][4]
    assert "another, once: not here, data/another is not there." in page
    assert once["hardware"]["cpu"] in page
    assert once["commit"][:8] + once["commit"][40:] in page
    assert "Changed in every config: rankers.seeds=[0]." in page


def test_what_the_validation_rows_do_not_bear_out_is_marked(once: dict[str, Any]) -> None:
    worse = copy.deepcopy(once)
    for arm, measured in worse["tasks"]["ctr"].items():
        measured["validation"]["ne"] = 0.95 if arm == "ctr_user" else 0.96
        measured |= {} if arm == "none" else {"pays": arm == "ctr_user"}
    (_, _, marked), *_ = tables(worth_page([Entry(log="x", way="once", document=worse)]))
    assert marked[3].startswith(signed(worse["tasks"]["ctr"]["ctr_user"]["auc_lift"]))
    assert "(!)" not in marked[3]
    worse["tasks"]["ctr"]["ctr_user"]["pays"] = False
    (_, _, marked), *_ = tables(worth_page([Entry(log="x", way="once", document=worse)]))
    assert marked[3].endswith(" (!)")


def test_a_way_to_retrieve_is_a_column_where_a_report_has_it(once: dict[str, Any]) -> None:
    less = copy.deepcopy(once)
    less["retrieval"]["rows"] = {row: once["retrieval"]["rows"][row] for row in ("vectors", "popularity")}
    (headings, *_), (_, _, *rows) = (
        tables(worth_page([Entry(log=name, way="once", document=document) for name, document in shown.items()]))[1]
        for shown in ({"less": less}, {"less": less, "all": once})
    )
    assert headings[4:] == ["vectors", "popularity"]
    assert rows[0][4:] == [MISSING, "0.0512 / 0.1713", MISSING, "0.0302 / 0.1191", MISSING, MISSING]
    assert rows[1][4:6] == ["0.0712 / 0.2113", "0.0512 / 0.1713"]
    assert rows[1][-1] == "0.0401 / 0.1402"


def test_known_of_test_days_is_by_event(daily: dict[str, Any]) -> None:
    changed = copy.deepcopy(daily)
    for day, share, events in ((DAYS[-2], 0.5, 300), (DAYS[-1], 0.1, 100)):
        changed["coverage"][day]["item_ctr"]["by_event"] = share
        changed["days"][day]["events"] = events
    assert known(changed)[1] == pytest.approx(0.4)


class Commands:
    """Stands for the commands: leaves what they leave, or fails."""

    def __init__(self, documents: dict[str, dict[str, Any]]) -> None:
        self.documents, self.started, self.fail = documents, list[str](), ""

    def __call__(self, run: Run, options: Options) -> int:
        self.started.append(run.out.name)
        assert run.study is not None
        if run.out.name == self.fail:
            return 2
        record(run.out, "prepare", 1.0)
        document = {**self.documents[run.way], "config": plain(to_dict(run.study))}
        write_json(run.out / ("report.json" if run.way == "once" else "daily.json"), document)
        return 0 if run.way == "once" else worth.REFUSED


def test_what_is_done_is_not_run_again(
    once: dict[str, Any],
    daily: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    days = copy.deepcopy(daily)
    for part in ("days", "coverage"):  # the market's days
        days[part] = {f"2024-01-{20 + number}": entry for number, entry in enumerate(days[part].values())}
    commands = Commands({"once": once, "daily": days})
    monkeypatch.setattr(worth, "start", commands)
    (tmp_path / "data/ml-100k").mkdir(parents=True)
    names = ("movielens-100k", "deskdrop", "synthetic")
    options = Options(data=tmp_path / "data", out=tmp_path / "out", logs=names)
    commands.fail = "synthetic-once"
    with pytest.raises(SystemExit):
        main(options)
    assert commands.started == ["movielens-100k-once", "synthetic-once", "synthetic-daily"]
    page = (tmp_path / "out/worth.md").read_text()
    assert "Synthetic market (SYNTHETIC), once: not here, failed with exit code 2" in page
    assert "Deskdrop, daily: not here" in page
    printed = capsys.readouterr().out
    assert f"2/5 Deskdrop, once: left out, {tmp_path / 'data/deskdrop'} is not there" in printed
    assert page in printed

    commands.started, commands.fail = [], ""
    main(options)
    assert commands.started == ["synthetic-once"]
    assert "1/5 MovieLens 100K, once: done before" in capsys.readouterr().out
    assert [row[:2] for row in tables((tmp_path / "out/worth.md").read_text())[0][2:]] == [
        ["MovieLens 100K", "once"],
        ["Synthetic market (SYNTHETIC)", "once"],
        ["Synthetic market (SYNTHETIC)", "daily"],
    ]

    commands.started = []
    changed = Options(data=options.data, out=options.out, logs=names, set_=("rankers.seeds=[5]",))
    with pytest.raises(ConfigError, match="holds a run of another config"):
        main(changed)
    assert not commands.started


def test_the_command_is_started_and_its_end_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data/ml-100k").mkdir(parents=True)
    options = Options(data=tmp_path / "data", out=tmp_path / "out", logs=("movielens-100k",))
    (run,) = worth.planned(options)
    assert worth.start(run, replace(options, set_=("ranks=0",))) == 2
    assert "ranks is 0" in capfd.readouterr().err


def test_a_log_that_is_none_of_them() -> None:
    with pytest.raises(ValueError, match="logs names 'movielens'; use kuairand, deskdrop"):
        Options(logs=("movielens",))
