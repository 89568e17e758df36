import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recsys import cli, pipeline
from recsys.config import ConfigError, RankerConfig, RefreshConfig, StudyConfig
from recsys.downstream.ranking import train_rankers
from recsys.jobs import JobError
from recsys.refresh.cycle import refresh_upstream
from recsys.train.distributed import process_group
from recsys.upstream import train_upstream
from tests.recsys.test_own_data import CONFIG, SCHEMA, write_log

STUDY = replace(CONFIG, rankers=replace(CONFIG.rankers, test=("log/of-tomorrow/*.parquet",)), upstream_seeds=())
NARROW = tuple(
    f"--set={assignment}"
    for assignment in (
        "upstreams.*.training.batch_size=[64,1000000]",
        "upstreams.*.training.epochs=[1]",
        "rankers.training.batch_size=[64]",
        "upstreams.open.model.token_dim=8",
    )
)


class Jobs:
    """Runs jobs in this process, and counts them; `stop` of them come to their end."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stop = -1

    def __call__(
        self, command: str, name: str, config: object, data: Path, out: Path, ranks: int, *options: str
    ) -> None:
        if len(self.done) == self.stop:
            raise KeyboardInterrupt
        with process_group():
            if isinstance(config, RefreshConfig):
                train_upstream(config.upstream, data, out)
                refresh_upstream(config, data, out)
            else:
                assert isinstance(config, RankerConfig)
                train_rankers(config, data, out)
        self.done.append(f"{out.name}/{name}")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    jobs = Jobs()
    monkeypatch.setattr(pipeline, "start_job", jobs)
    return jobs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A log whose test files do not exist, and its config."""
    write_log(tmp_path / "data", SCHEMA)
    STUDY.save(tmp_path / "mine.toml")
    return tmp_path / "data"


def tune(monkeypatch: pytest.MonkeyPatch, folder: Path, trials: int, *more: str) -> int:
    arguments = ["tune", folder / "mine.toml", "--trials", trials, "--data", folder / "data", "--out", folder / "out"]
    monkeypatch.setattr(sys, "argv", ["recsys", *map(str, arguments), *more])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def document(folder: Path) -> dict:
    return json.loads((folder / "out/tune.json").read_text())


def test_a_search_goes_on_and_never_asks_for_the_test_files(
    data: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, out = data.parent, data.parent / "out"
    jobs.stop = 1
    assert tune(monkeypatch, folder, 1, *NARROW) == 130
    (half,) = document(folder)["trials"]
    assert half["state"] == "running"
    assert half["settings"]["upstreams.*.training.batch_size"] == 64  # the config's own
    jobs.stop = -1
    assert tune(monkeypatch, folder, 1, *NARROW) == 0
    assert jobs.done == ["0/refresh-open", "0/downstream-tasks"]  # what was done stays done

    found = document(folder)
    (first,) = found["trials"]
    assert (first["state"], first["settings"]) == ("done", half["settings"])
    assert set(first["ne"]) == {"ctr", "cvr"}
    assert first["score"] == pytest.approx(sum(first["ne"].values()) / 2)
    assert 0.5 < first["score"] < 1.2
    assert "upstreams.*.model.token_dim" not in found["space"]
    assert first["seconds"] > 0
    assert {entry.name for entry in (out / "trials/0").iterdir()} <= {"configs", "logs", "quarantine", "stages"}

    best = StudyConfig.load(out / "best.toml")
    assert best == STUDY  # the first trial's settings are the config's own; seeds, test files and retrieval are there

    # a trial that cannot run is a row; the others go on
    assert tune(monkeypatch, folder, 4, *NARROW) == 0
    trials = document(folder)["trials"]
    assert len(trials) == 4
    assert {row["state"] for row in trials} == {"done", "failed"}
    for row in trials:
        too_many = row["settings"]["upstreams.*.training.batch_size"] == 1_000_000
        assert ("leave out upstreams.open.training.batch_size" in row["reason"]) == too_many
        assert (row["score"] is None) == too_many
    scores = [row["score"] for row in trials if row["score"] is not None]
    assert document(folder)["best"] == next(row["number"] for row in trials if row["score"] == min(scores))
    page = (out / "tune.html").read_text()
    assert all(f"{score:.4f}" in page for score in scores)
    assert "(failed)" in page
    assert "the config's own settings" in capsys.readouterr().out


def test_what_a_search_refuses(
    data: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = data.parent
    assert tune(monkeypatch, folder, 0) == 2
    assert "--trials is 0; use 1 or more" in capsys.readouterr().err
    assert not (folder / "out").exists()

    jobs.stop = 0
    assert tune(monkeypatch, folder, 1) == 130
    assert tune(monkeypatch, folder, 1, NARROW[0]) == 2
    assert "holds trials of another search" in capsys.readouterr().err
    assert tune(monkeypatch, folder, 1, "--set", "rankers.training.shuffle_batches=3") == 2
    assert "holds a run of another config" in capsys.readouterr().err

    text = (folder / "mine.toml").read_text()
    (folder / "mine.toml").write_text(text[: text.index("[rankers]")])
    assert tune(monkeypatch, folder, 1) == 2
    assert "rankers is missing" in capsys.readouterr().err


def test_where_the_configs_own_settings_fail_there_is_no_search(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise JobError("job refresh-open failed on rank 0: disk full")

    monkeypatch.setattr(pipeline, "start_job", fail)
    assert tune(monkeypatch, data.parent, 3) == 2
    assert "disk full" in capsys.readouterr().err
    assert [row["state"] for row in document(data.parent)["trials"]] == ["running"]  # and is tried again


def test_without_optuna_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "recsys.tune.proposals", raising=False)
    with pytest.raises(ConfigError, match=r"needs Optuna; pip install 'recsys-derm\[tune\]'"):
        import recsys.tune.proposals  # noqa: F401
