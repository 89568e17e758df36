"""What a user of `recsys prepare log` is told of a config or a log that cannot work: one sentence, before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import cli

LOG = """
[log]
files = ["log.csv"]
user = "who"
item = "what"
time = "at"
action = "did"
"""
ACTIONS = """
[actions.view]
[actions.like]
given = "view"
within = "2h"
"""
HEAD = "who,what,at,did,n\n"
Fails = Callable[..., str]


def lines(count: int = 40, **columns: object) -> str:
    """Rows of a log; a column may be a value of all of them."""
    rows = []
    for row in range(count):
        values = {"who": row % 5, "what": row % 7, "at": 1_700_000_000 + 3600 * row, "did": "view", "n": 1} | columns
        rows.append(",".join(map(str, values.values())))
    return HEAD + "\n".join(rows) + "\n"


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Fails:
    """Prepare a log as the command does; returns the error, and sees that it is one line and nothing is left."""

    def run(config: str, log: str | pa.Table | None = None) -> str:
        (tmp_path / "LOG.toml").write_text(config)
        if isinstance(log, pa.Table):
            pq.write_table(log, tmp_path / "log.parquet")
        elif log is not None:
            (tmp_path / "log.csv").write_text(log)
        command = ["recsys", "prepare", "log", str(tmp_path / "LOG.toml"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
        return error

    return run


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[actions.view]", "log is missing"),
        (LOG.replace("files", "file"), "unknown key log.file"),
        (LOG.replace('"who"', '""'), "log.user is empty; name its column"),
        (LOG.replace('"who"', '"what"'), "user and item are both the column 'what'"),
        (LOG + 'time_unit = "minutes"', "log.time_unit is 'minutes'; use one of s, ms, us, ns"),
        (LOG + 'time_zone = "Berlin"', "log.time_zone is 'Berlin'; use a name such as UTC or Europe/Berlin"),
        (LOG + "max_bad_rows = 1.0", "log.max_bad_rows is 1.0; use a share, 0 or more, below 1"),
        (LOG + "[actions.view]\n[actions.like]", "actions has 2 that make rows (view, like): of all but one say what"),
        (LOG + "[actions.view]\n[actions.like]\ngiven = 'view'", "actions.like.given is 'view', within ''; an action"),
        (LOG + ACTIONS.replace("2h", "2 hours"), "within is '2 hours'; use 'session', or minutes, hours or days"),
        (LOG + ACTIONS.replace("2h", "session"), "actions.like.within is 'session', but log.session names no column"),
        (
            LOG + ACTIONS.replace("'view'", "'seen'").replace('"view"', '"seen"'),
            "like.given is 'seen'; use one of view",
        ),
        (LOG.replace('action = "did"\n', "") + ACTIONS, "actions.like follows another, but log.action names no column"),
        (LOG + 'ignore = ["view"]' + ACTIONS, "actions and log.ignore name the values ['view'] twice"),
        (LOG + "[actions.view]\n[negatives]\nratio = 0", "negatives.ratio is 0 and 'view' the only action"),
        (LOG + '[actions."a view"]', "actions.a view: use letters, digits and _ (it names a column)"),
        (LOG + '[features]\nwindows = ["1 week"]', "features.windows names '1 week'; use minutes, hours or days"),
        (LOG + "[items]", "items.files and features are empty; give files, or columns of the log"),
    ],
)
def test_a_config_that_cannot_work(fails: Fails, config: str, message: str) -> None:
    assert message in fails(config)


@pytest.mark.parametrize(
    ("config", "log", "message"),
    [
        (LOG + ACTIONS, None, "pattern 'log.csv' matches nothing in"),
        (LOG + ACTIONS, "who,what,at\n", "log.action is 'did', which"),
        (LOG + ACTIONS, "who,what,at,did,at\n", "its first line must name each column, once"),
        (LOG + ACTIONS, HEAD, "no row of log.csv is left"),
        (LOG + "[actions.look]", lines(), "Undeclared are view (40). Correct them, or raise log.max_bad_rows"),
        (LOG + ACTIONS, lines(what=""), "column 'what', row 0: 'None': the id is null: give every row its id"),
        (LOG + ACTIONS, lines() + "1.5,2,1700000000,view,1\n" * 9, "column 'who', row 40: '1.5': the id is no whole"),
        (
            LOG + ACTIONS,
            lines(at="soon"),
            "'soon': the time cannot be read as ISO 8601, of UTC where they name no zone",
        ),
        (LOG + ACTIONS, lines(at=20231115), "log.time is 'at' with numbers from 20231115.0 to 20231115.0, which are"),
        (LOG + 'time_unit = "ms"' + ACTIONS, lines(), "log.time_unit is 'ms', but most of 'at', from"),
        (LOG + ACTIONS, lines(at=4_000_000_000), "the time is more than a day ahead of now: correct the clock"),
        (LOG + 'quantity = "n"' + ACTIONS, lines(n=-1), "column 'n', row 0: '-1': it is below 0: correct it, or leave"),
        (LOG + 'price = "n"' + ACTIONS, lines(n="free"), "column 'n', row 0: 'free': it is no number: correct it"),
        (LOG + ACTIONS, lines() + "1,2\n" * 9, "log.csv, line 42: Expected Number of Columns: 5 Found: 2"),
        (LOG + ACTIONS, lines(2), "and 4 splits follow one another in time: give more of the log"),
        (
            LOG + "[actions.click]\nvalue='view'\n[actions.n]\ncolumn = 'n'",
            lines(),
            "none of the labels n has rows of 0",
        ),
        (
            LOG + 'context = ["n"]\n[actions.n]\nvalue = "view"',
            lines(),
            "the events would have two columns 'n': rename",
        ),
        (LOG + ACTIONS.replace("[actions.view]", "[actions.view]\nvalue = 'LIKE'"), lines(did="like"), "no row is of"),
        (LOG + '[users]\nfiles = ["log.csv"]\nid = "did"\n' + ACTIONS, lines(), "users.id is 'did', with ids such as"),
        (LOG + '[users]\nfiles = ["log.csv"]\ndense = ["age"]\n' + ACTIONS, lines(), "users.dense is 'age', which"),
    ],
)
def test_a_log_that_cannot_work(fails: Fails, config: str, log: str | None, message: str) -> None:
    assert message in fails(config, log)


def test_types_that_cannot_work(fails: Fails) -> None:
    rows = {"who": [1], "what": [2], "at": [1_700_000_000], "did": ["view"]}
    config = LOG.replace("log.csv", "log.parquet") + ACTIONS
    bad = pa.table({**rows, "who": [True]})
    assert "column 'who' has type BOOLEAN; ids are integers or strings" in fails(config, bad)
    bad = pa.table({**rows, "at": [[1]]})
    assert "log.time is 'at' of type BIGINT[]; times are numbers" in fails(config, bad)
    bad = pa.table({**rows, "tags": [{"a": 1}]})
    with_tags = config.replace("[log]", '[log]\ncontext = ["tags"]')
    assert "column 'tags' of the contexts has type STRUCT" in fails(with_tags, bad)


def test_what_is_no_parquet(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("who,what\n")
    config = LOG.replace("log.csv", "log.parquet") + ACTIONS
    assert "log.parquet is no readable Parquet file" in fails(config)
    assert "is not named as .parquet, .pq, .csv" in fails(config.replace("log.parquet", "LOG.toml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("log",), "LOG.toml is missing: recsys prepare log LOG.toml"),
        (("deskdrop", "LOG.toml"), "leave it out for desk"),
    ],
)
def test_the_command(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["recsys", "prepare", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        cli.main()
    assert message in capsys.readouterr().err
