"""A search, trial by trial: each is a run of its own on the validation files, in `DIR/trials/<number>`.

The truth about the trials is `tune.json`: a search that was stopped goes on with the trial that was running, whose jobs
go on where they were, then with the next.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import tomli_w

from recsys.atomic import write_text
from recsys.checks import check_run
from recsys.config import ConfigError, StudyConfig, to_dict
from recsys.downstream.ranking import all_rankers, screen_splits, stage_name
from recsys.downstream.validation import Validation
from recsys.evaluate.wording import duration
from recsys.jobs import JobError
from recsys.opening import Opened
from recsys.pipeline import job, prepare, ranks_here, train_and_publish
from recsys.stages import read_stages
from recsys.study.ablation import fullest_job
from recsys.tune.document import DONE, FAILED, RUNNING, Trial, Trials
from recsys.tune.proposals import propose
from recsys.tune.space import Space, apply, own_settings

HEAVY = ("upstream", "store", "downstream")
"""What a trial leaves and nobody reads once it has its score."""


def search(opened: Opened, space: Space, trials: int, out: Path) -> None:
    """Run trials until there are so many; each one's row is written before it begins and when it has ended.

    Args:
        opened: the study, from `open_study`, not to be tested.
        space: path -> values to try, from `around`.
        trials: how many there are to be, those of earlier calls included.
        out: folder of the search.

    Raises:
        ConfigError: `out` holds trials of another space.
        ConfigError, DataError, SchemaError, JobError: the trial with the config's own settings cannot run.
    """
    study = opened.study
    found = Trials(out, study, space, own_settings(study, space))
    prepare(opened, out)
    ranks = ranks_here(study.ranks)
    while (trial := _next(found, space, trials)) is not None:
        print(f"trial {trial.number}: {_changed(trial, found)}", flush=True)
        try:
            trial.ne = run_trial(apply(study, trial.settings), opened.data, found.folder(trial), ranks)
            trial.state, trial.score = DONE, float(np.mean(list(trial.ne.values())))
        except (ConfigError, JobError) as error:
            if not found.scored():  # nothing says that another trial would fare better
                raise
            trial.state, trial.reason = FAILED, str(error)
        trial.seconds = sum(stage["seconds"] for stage in read_stages(found.folder(trial)).values())
        _conclude(found, trial, study)
    best = found.best
    assert best is not None
    print(f"best: trial {best.number}, validation NE {best.score:.4f}; every trial: {out / 'tune.html'}")
    print(f"test it: recsys run {out / 'best.toml'} --data {opened.data} --out {out / 'best'}")


def run_trial(study: StudyConfig, data: Path, out: Path, ranks: int) -> dict[str, float]:
    """Train the upstreams, publish, train the rankers that read everything, of one seed; as far as it is not done.

    Returns:
        task -> normalized entropy of the validation rows.

    Raises:
        ConfigError, DataError, SchemaError: data and config do not fit.
        JobError: a job failed, or what it trained predicts no numbers.
    """
    blind = replace(study.without_test(), upstream_seeds=())
    blind = replace(blind, rankers=replace(blind.rankers, seeds=blind.rankers.seeds[:1]))
    rankers = fullest_job(blind)
    check_run(study, data, tested=False)
    screen_splits(rankers, data, out)
    for upstream in blind.upstreams:
        train_and_publish(blind, upstream, data, out, ranks)
    job("downstream", stage_name(rankers), rankers, data, out, ranks)
    (ranker,) = all_rankers(rankers)
    scores = {task: Validation.load(ranker.validation(out, task)).ne for task in rankers.tasks}
    for task, score in scores.items():
        if not math.isfinite(score):
            raise JobError(f"validation NE of {task} is {score}: the training diverged")
    return scores


def _next(found: Trials, space: Space, trials: int) -> Trial | None:
    """The trial that was running, or a new one; None: there are enough."""
    rows = found.rows
    if rows and rows[-1].state == RUNNING:
        return rows[-1]
    if len(rows) >= trials:
        return None
    settings = propose(space, found.scored(), len(rows)) if rows else found.own
    rows.append(Trial(number=len(rows), settings=settings))
    found.write()
    return rows[-1]


def _conclude(found: Trials, trial: Trial, study: StudyConfig) -> None:
    """Write what the trial came to; of what it left only its configs and logs stay."""
    best = found.best
    if best is trial:
        write_text(found.out / "best.toml", tomli_w.dumps(to_dict(apply(study, trial.settings))))
    found.write()
    for name in HEAVY:
        shutil.rmtree(found.folder(trial) / name, ignore_errors=True)
    if trial.score is None:
        print(f"trial {trial.number} failed: {trial.reason}", flush=True)
    elif best is not None:
        tasks = ", ".join(f"{task} {value:.4f}" for task, value in trial.ne.items())
        best_so_far = "the best so far" if best is trial else f"best {best.score:.4f} (trial {best.number})"
        took = duration(trial.seconds)
        print(f"trial {trial.number}: validation NE {trial.score:.4f} ({tasks}), {best_so_far}, {took}", flush=True)


def _changed(trial: Trial, found: Trials) -> str:
    """The trial's settings that are not the config's own."""
    changed = [f"{path} {value}" for path, value in trial.settings.items() if found.own.get(path) != value]
    return ", ".join(changed) or "the config's own settings"
