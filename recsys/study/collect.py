"""Gather what the stages of a run left on disk into the results that the report is built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from embedding_store import EmbeddingStore
from recsys.config import RankerConfig, RankerSettings, StudyConfig, to_dict
from recsys.data.files import check_files, find_files
from recsys.data.quarantine import Quarantine
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.dates import DAY_MS, HOUR_MS
from recsys.downstream.features import PointInTimeSeries
from recsys.downstream.predictions import read_tested
from recsys.downstream.ranking import Ranker, all_rankers, screen_splits, stage_name
from recsys.downstream.validation import Validation
from recsys.folders import store_of, upstream_folder
from recsys.monitor.export import read_records
from recsys.refresh.arms import arm_of
from recsys.refresh.records import Ledger
from recsys.screening import summaries
from recsys.source import ranker_schema
from recsys.stages import read_stages
from recsys.study.ablation import ablation_jobs
from recsys.study.daily_report import DailyResults
from recsys.study.oracle import oracle_scores
from recsys.study.report import RunResults, SeriesRun, UpstreamRun
from recsys.study.retrieval import collect_retrieval
from recsys.study.sample import Sample, sample_of
from recsys.study.scores import TaskScores
from recsys.study.segments import OWNERS, assign
from recsys.study.transfer import upstream_entropies
from recsys.study.ways import study_job
from recsys.train.distributed import peak_memory, without_notices

_FIRST_TIME = 10**11
"""A log whose times are smaller counts something else than milliseconds: it has no days."""
_SCAN_ROWS = 65_536
"""Rows of ids, times and labels that are read at once."""


@without_notices()
def collect_results(config: StudyConfig, data: Path, out: Path) -> RunResults:
    """Read predictions, figures, snapshots and stage times of a finished run.

    Raises:
        FileNotFoundError: a stage has not left its result.
        VersionSkewError: the retrieval's user and item snapshots do not belong together.
    """
    jobs, stages = ablation_jobs(config), read_stages(out)
    store = EmbeddingStore(store_of(out))
    skip = screen_splits(jobs["tasks"], data, out).quarantine
    rows = split_rows(config.rankers, data, skip)
    sample = sample_of(rows["test"])
    scores = {population: job_scores(job, data, out, sample, _offset(config)) for population, job in jobs.items()}
    test = _events(config.rankers, data, config.rankers.test, skip, sample)
    return RunResults(
        name=config.name,
        note=config.note,
        tasks=scores["tasks"],
        fragment=scores.get("fragment", {}),
        upstreams={upstream.name: _upstream_run(out, upstream.name) for upstream in config.upstreams},
        entropies={
            upstream.name: upstream_entropies(upstream, config.rankers, data, out, skip)
            for upstream in config.upstreams
        },
        series={
            name: _series_run(store, name, test, config.rankers)
            for name in dict.fromkeys(name for job in jobs.values() for arm in job.arms for name in arm.series)
        },
        retrieval=collect_retrieval(config, config.rankers, data, out, skip),
        rows=rows,
        users_measured=sample.share,
        screened=summaries(out),
        publish_delay_ms=config.rankers.publish_delay_ms if ranker_schema(config.rankers, data, ()).timed else None,
        upstream_seeds=config.upstream_seeds,
        seconds={name: stage["seconds"] for name, stage in stages.items()},
        # The launching process is alive beside whichever job is the largest.
        peak_rss_bytes=int(max(stage["peak_rss_bytes"] for stage in stages.values())) + peak_memory(),
        config=to_dict(config),
    )


@without_notices()
def collect_rankers(job: RankerConfig, data: Path, out: Path, store: EmbeddingStore) -> RunResults:
    """Read predictions and figures of rankers that read a store which is not their run's own.

    Raises:
        FileNotFoundError: a ranker has not left its predictions.
    """
    skip, stages = screen_splits(job, data, out).quarantine, read_stages(out)
    rows, stage = split_rows(job, data, skip), stages[stage_name(job)]
    sample = sample_of(rows["test"])
    test = _events(job, data, job.test, skip, sample)
    read = dict.fromkeys(name for arm in job.arms for name in job.series(arm, job.seeds[0]))
    return RunResults(
        name=job.name,
        note="Rankers on vectors of a store that was there; no upstream was trained for them.",
        tasks=job_scores(job, data, out, sample),
        users_measured=sample.share,
        upstreams={},
        series={name: _series_run(store, name, test, job) for name in read},
        rows=rows,
        screened={f"rankers-{job.name}": summaries(out)[f"rankers-{job.name}"]},
        publish_delay_ms=job.publish_delay_ms if ranker_schema(job, data, ()).timed else None,
        seconds={stage_name(job): stage["seconds"]},
        peak_rss_bytes=int(stage["peak_rss_bytes"]) + peak_memory(),
        config=to_dict(job),
    )


@without_notices()
def collect_daily(config: StudyConfig, data: Path, out: Path) -> DailyResults:
    """Read predictions and the days' records of a replay, as far as it went.

    Raises:
        FileNotFoundError: a stage has not left its result.
        DataError: a split has no day at all, or there is no prior in the store.
    """
    job = study_job(config, data)
    skip = screen_splits(job, data, out).quarantine
    first, stages = config.upstreams[0], read_stages(out)
    rows = split_rows(job, data, skip)
    sample = sample_of(rows["test"])
    return DailyResults(
        name=config.name,
        note=config.note,
        tasks=job_scores(job, data, out, sample, _offset(config)),
        users_measured=sample.share,
        upstream=first.name,
        records=read_records(Ledger(out, first.name).folder),
        retrieval=collect_retrieval(config, job, data, out, skip),
        configured=arm_of(config.refresh),
        rows=rows,
        screened=summaries(out),
        publish_delay_ms=job.publish_delay_ms,
        seconds={name: stage["seconds"] for name, stage in stages.items()},
        peak_rss_bytes=int(max(stage["peak_rss_bytes"] for stage in stages.values())) + peak_memory(),
        config=to_dict(config),
    )


def job_scores(
    job: RankerConfig, data: Path, out: Path, sample: Sample, utc_offset_hours: float = 0.0
) -> dict[str, TaskScores]:
    """Task -> what the rankers of a job predicted for these users; days are counted in the time zone this many hours
    before UTC."""
    rankers, skip = all_rankers(job), screen_splits(job, data, out).quarantine
    facts = _test_facts(job, data, skip, sample, utc_offset_hours)
    return {task: task_scores(task, rankers, job, data, out, skip, sample, facts) for task in job.tasks}


def task_scores(
    task: str,
    rankers: list[Ranker],
    settings: RankerSettings,
    data: Path,
    out: Path,
    skip: Quarantine,
    sample: Sample,
    facts: Mapping[str, NDArray],
) -> TaskScores:
    """What the rankers predicted for one task and these users, arm by arm in order; `facts`: see `_test_facts`."""
    logits: dict[str, list[NDArray]] = {}
    validation: dict[str, list[Validation]] = {}
    for ranker in rankers:
        predictions = read_tested(ranker.path(out, task), sample.of)
        logits.setdefault(ranker.arm, []).append(predictions["logits"][predictions["mask"]])
        validation.setdefault(ranker.arm, []).append(Validation.load(ranker.validation(out, task)))
    mask = predictions["mask"]
    label = settings.tasks[task]
    return TaskScores(
        labels=predictions["labels"][mask].astype(np.int64),
        users=predictions["users"][mask],
        arms={arm: np.stack(lines) for arm, lines in logits.items()},
        seeds=settings.seeds,
        oracle=_oracle(settings, data, label, skip) if sample.is_whole else None,
        validation=validation,
        days=facts["days"][mask] if "days" in facts else None,
        segments={owner: facts[owner][mask] for owner in OWNERS},
    )


def _test_facts(
    rankers: RankerSettings, data: Path, skip: Quarantine, sample: Sample, utc_offset_hours: float
) -> dict[str, NDArray]:
    """`item` and `user`, the segment of every test row of these users by each; and its `days`, where the log has days.
    [N] each."""
    training = _events(rankers, data, rankers.train, skip, Sample())
    test = _events(rankers, data, rankers.test, skip, sample)
    facts = {owner: assign(training[owner].numpy(), test[owner].numpy()) for owner in OWNERS}
    if int(test["timestamp"].min()) < _FIRST_TIME:
        return facts
    return facts | {"days": (test["timestamp"].numpy() + round(utc_offset_hours * HOUR_MS)) // DAY_MS}


def _offset(config: StudyConfig) -> float:
    """Of the time zone that the study's days are counted in."""
    return config.refresh.days.utc_offset_hours if config.refresh.days else 0.0


def _oracle(rankers: RankerSettings, data: Path, label: str, skip: Quarantine) -> NDArray | None:
    """The true probabilities of the test rows, where the data are synthetic."""
    schema = Schema.load(data / rankers.schema)
    if f"oracle_{label}" not in schema.outcomes:
        return None
    return oracle_scores(find_files(data, rankers.test), schema, label, skip)[1]


def _upstream_run(out: Path, name: str) -> UpstreamRun:
    folder = upstream_folder(out, name)
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curves = [{key.replace("/", ".", 1): value for key, value in line.items()} for line in lines]
    # From the log, not the process: a run that was stopped and resumed has the speed of all its parts.
    speed = float(np.median([line["samples_per_second"] for line in lines]))
    return UpstreamRun(**result, samples_per_second=speed, curves=curves)


def _events(
    rankers: RankerSettings, data: Path, patterns: tuple[str, ...], skip: Quarantine, sample: Sample
) -> Mapping[str, torch.Tensor]:
    """`user`, `item` and `timestamp` of every event of these users, int64 [N] each."""
    rows = []
    for batch in _facts(rankers, data, patterns, skip):
        kept = torch.from_numpy(sample.of(batch.user_ids.numpy()))
        rows.append((batch.user_ids[kept], batch.item_ids[kept], batch.timestamps[kept]))
    return {
        name: torch.cat(column)
        for name, column in zip(("user", "item", "timestamp"), zip(*rows, strict=True), strict=True)
    }


def _series_run(
    store: EmbeddingStore, name: str, test: Mapping[str, torch.Tensor], rankers: RankerSettings
) -> SeriesRun:
    series, owner = store.series(name), name.partition("_")[0]
    _, found = PointInTimeSeries(series, rankers.publish_delay_ms).lookup(test[owner], test["timestamp"])
    snapshot = series.latest(refused=False)
    return SeriesRun(
        entity=owner,
        space=snapshot.space,
        version=snapshot.version,
        as_of=snapshot.as_of,
        rows=snapshot.rows,
        dim=snapshot.dim,
        dtype=snapshot.dtype,
        coverage=float(found.double().mean()),
    )


def split_rows(rankers: RankerSettings, data: Path, skip: Quarantine) -> dict[str, int]:
    """Split -> its number of events, less those that are skipped."""
    schema = ranker_schema(rankers, data, tuple(rankers.tasks.values()))
    splits = {name: find_files(data, getattr(rankers, name)) for name in ("train", "validation", "test")}
    return {name: check_files(files, schema) - skip.count(files) for name, files in splits.items()}


def _facts(
    rankers: RankerSettings, data: Path, patterns: tuple[str, ...], skip: Quarantine, labels: tuple[str, ...] = ()
) -> EventStream:
    """Ids, times and these labels of all rows, in the files' order; no features."""
    schema = ranker_schema(rankers, data, labels).select(features=())
    return EventStream(find_files(data, patterns), schema, batch_size=_SCAN_ROWS, drop_last=False, skip=skip)
