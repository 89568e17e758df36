from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys import pipeline
from recsys.study.ablation import ablation_jobs
from tests.recsys.refresh.example import CONFIG


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
