from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recsys import pipeline
from recsys.study.ablation import ablation_jobs
from recsys.study.report import build_report, load_report
from tests.recsys.refresh.example import CONFIG
from tests.recsys.study.example import example_results, example_task


class EnoughError(Exception):
    """Ends a run before its report."""


def test_every_training_of_an_upstream_is_a_job_before_the_rankers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[str, str, Any]] = []

    def enough(*_: object) -> None:
        raise EnoughError

    monkeypatch.setattr(pipeline, "check_run", lambda *_: None)
    monkeypatch.setattr(pipeline, "screen_splits", lambda *_: None)
    monkeypatch.setattr(pipeline, "job", lambda command, name, config, *_: jobs.append((command, name, config)))
    monkeypatch.setattr(pipeline, "collect_results", enough)
    study = replace(CONFIG, upstream_seeds=(4, 8))
    with pytest.raises(EnoughError):
        pipeline.run_stages(study, tmp_path, tmp_path)
    *refreshes, rankers = jobs
    assert rankers == ("downstream", "downstream-tasks", ablation_jobs(study)["tasks"])
    assert [(command, name) for command, name, _ in refreshes] == [
        ("refresh", "refresh-ctr"),
        ("refresh", "refresh-ctr_s8"),
    ]
    assert [config.upstream for *_, config in refreshes] == list(study.trainings())


def test_the_report_says_how_long_it_took_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_run", "screen_splits", "job"):
        monkeypatch.setattr(pipeline, name, lambda *_: None)
    results = example_results(tasks={"ctr": example_task(300)}, fragment={})
    monkeypatch.setattr(pipeline, "collect_results", lambda *_: results)
    monkeypatch.setattr(pipeline, "build_report", partial(build_report, samples=5))
    pipeline.run_stages(CONFIG, tmp_path, tmp_path)
    seconds = load_report(tmp_path)["seconds"]
    assert set(seconds) == {*results.seconds, "start", "report"}
    assert seconds["report"] > 0
    assert seconds["start"] > 0
