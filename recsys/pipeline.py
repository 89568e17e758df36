"""A whole run, stage by stage: prepare, then for each upstream train and refresh, then the rankers, then the report.

An upstream's training and its first refresh share one start of the processes, which costs as much as the refresh.

Every stage is a job of its own (see `recsys/jobs.py`), started with a config of its own, `OUT/configs/<job>.toml`, that
leaves its result on disk: a run that was stopped goes on with the first stage that is not done.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from recsys.checks import check_run
from recsys.config import Config, StudyConfig, UpstreamConfig
from recsys.downstream.ranking import all_rankers, screen_splits, stage_name
from recsys.downstream.two_tower import stage_name as towers_stage
from recsys.jobs import run_job
from recsys.led import is_led
from recsys.opening import Opened
from recsys.placing import place_store
from recsys.progress import Progress, between
from recsys.stages import is_done, record, unaccounted
from recsys.study.ablation import ablation_jobs
from recsys.study.collect import collect_results
from recsys.study.report import build_report, write_report
from recsys.study.terminal import print_summary


def run_study(opened: Opened, out: Path) -> None:
    """Prepare the data and run everything.

    Args:
        opened: the study, from `open_study`.
        out: folder of the run.

    Raises:
        ConfigError, DataError, SchemaError: the data do not fit; before anything is trained.
        JobError: a job failed.
    """
    prepare(opened, out)
    run_stages(opened.study, opened.data, out)


def prepare(opened: Opened, out: Path) -> None:
    """Make the data of a recipe, unless they are there. Raises DataError."""
    if opened.prepare is not None and not is_done(out, "prepare"):
        start = time.monotonic()
        opened.prepare()
        record(out, "prepare", time.monotonic() - start)
        print(f"prepare: {time.monotonic() - start:.1f} s", flush=True)


def run_stages(study: StudyConfig, data: Path, out: Path) -> None:
    """Run every stage of a study on prepared data, then write and print the report.

    Raises:
        DataError, SchemaError, ConfigError: data and config do not fit; before anything is trained.
        StorageAccessError: the study's store cannot be written to.
        JobError: a job failed.
    """
    check_run(study, data)
    place_store(out, study.store)
    ranks = ranks_here(study.ranks)
    jobs = ablation_jobs(study)
    for rankers in jobs.values():
        screen_splits(rankers, data, out)  # they come last: what stops them is found before the upstreams are trained
    trainings = study.trainings()
    towers = study.two_tower_job()
    progress = Progress(len(trainings) + len(jobs) + (towers is not None) + 1)
    for upstream in trainings:
        name, source = upstream.name, upstream.source
        labels = ", ".join(upstream.tasks) or "all labels"
        why = f"upstream {name}: learns {labels} from {between(source.events)}, then publishes user and item vectors"
        progress.begin(why, done=is_done(out, f"refresh-{name}"))
        train_and_publish(study, upstream, data, out, ranks)
    for population, rankers in jobs.items():
        count = len(all_rankers(rankers))
        what = f"{count} rankers" + (" of one surface alone" if population == "fragment" else "")
        why = f"{what}: learn from {between(rankers.train)}, with and without those vectors, which is what is compared"
        progress.begin(why, done=is_done(out, stage_name(rankers)))
        job("downstream", stage_name(rankers), rankers, data, out, ranks)
    if towers is not None:
        why = f"two-tower: learns {towers.label} from {between(towers.train)}, then publishes user and item vectors"
        progress.begin(why, done=is_done(out, towers_stage(towers)))
        job("twotower", towers_stage(towers), towers, data, out, ranks)
    progress.begin("report: lifts with intervals, from 1,000 draws of users")
    overhead, start = unaccounted(out), time.monotonic()
    report = build_report(collect_results(study, data, out))
    report["seconds"] |= {"start": overhead, "report": time.monotonic() - start}
    write_report(report, out)
    print_summary(report)
    print(f"report: {out / 'report.html'} (figures: {out / 'report.json'}; all tables: recsys report --out {out})")


def train_and_publish(study: StudyConfig, upstream: UpstreamConfig, data: Path, out: Path, ranks: int) -> None:
    """Run the job of one of `study.trainings()`, as far as it is not done. Raises JobError if it fails."""
    train = () if is_done(out, f"upstream-{upstream.name}") else ("--train",)
    job("refresh", f"refresh-{upstream.name}", study.refresh_of(upstream), data, out, ranks, *train)


def ranks_here(ranks: int) -> int:
    """So many ranks, or one a GPU where this machine has GPUs, but fewer of them; those that a launcher has started."""
    if is_led():
        return int(os.environ["WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if not 0 < gpus < ranks:
        return ranks
    print(f"{gpus} GPU{'s' if gpus > 1 else ''} here: {gpus} ranks a job instead of {ranks}")
    return gpus


def job(command: str, name: str, config: Config, data: Path, out: Path, ranks: int, *options: str) -> None:
    """Run a stage's job, unless it has come to its end before. Raises JobError if it fails."""
    if is_done(out, name):
        print(f"{name}: done before")
        return
    start_job(command, name, config, data, out, ranks, *options)


def start_job(command: str, name: str, config: Config, data: Path, out: Path, ranks: int, *options: str) -> None:
    """Write a job's config and run it.

    Args:
        command: `upstream`, `refresh` or `downstream`.
        name: of the job, and of its config in `out/configs`.
        config: all that it needs to know.
        data: folder of the prepared data.
        out: folder of the run.
        ranks: processes.
        options: more of its command line.

    Raises:
        JobError: it failed.
    """
    path = out / "configs" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    config.save(path)
    print(f"{name}: {ranks} rank{'s' if ranks > 1 else ''}", flush=True)
    arguments = (command, *options, "--config", str(path), "--data", str(data), "--out", str(out))
    run_job(name, arguments, ranks, out / "logs" / name)
