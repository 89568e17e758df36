"""`recsys daily`: replay the days of every upstream, or follow a folder where they appear, then train the report's
rankers and write `daily.json` and `daily.html`.

All due days of an upstream are one job, so that starting processes is paid once.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from recsys.atomic import write_json
from recsys.checks import check_daily
from recsys.config import StudyConfig
from recsys.downstream.ranking import screen_splits, stage_name
from recsys.monitor import export, quality_page
from recsys.opening import Opened
from recsys.pipeline import job, prepare, ranks_here, start_job
from recsys.placing import place_store
from recsys.refresh.days import Cycle, available_days, count_rows, find_day, next_cycle, small_days
from recsys.refresh.records import Ledger, Record, digest
from recsys.stages import forget, unaccounted
from recsys.study.collect import collect_daily
from recsys.study.daily_report import build_daily, write_daily
from recsys.study.terminal import print_daily
from recsys.study.ways import JOB, study_job

POLL_SECONDS = 5.0
"""How long to wait before looking for new days again."""


def run_daily(opened: Opened, out: Path, *, follow: bool = False) -> list[str]:
    """Refresh the upstreams day by day and report what it was worth.

    Args:
        opened: the study, from `open_study`.
        out: folder of the run.
        follow: wait for days that are not there yet, until `refresh.days.last` has been processed.

    Returns:
        what the gates had against the publishes of this call, and against the newest one; empty: nothing.

    Raises:
        ConfigError, DataError, SchemaError: config and data do not fit; before anything is trained.
        JobError: a job failed.
    """
    config, data = opened.study, opened.data
    prepare(opened, out)
    missing = check_daily(config, data, follow=follow)
    place_store(out, config.store)
    ranks = ranks_here(config.ranks)
    if small := small_days(data, config.daily()[0], ranks):
        print(f"days of less than an event for each of {ranks} ranks, which go along with the next: {', '.join(small)}")
    if missing:
        print(f"days that are not there{' yet' if follow else ''}: {', '.join(missing)}", flush=True)
    else:
        screen_splits(study_job(config, data), data, out)  # what stops the rankers is found before the days are run
    for upstream in config.upstreams:
        job("upstream", f"upstream-{upstream.name}", upstream, data, out, ranks)
    refused = _replay(config, data, out, ranks)
    while follow and not _complete(config, data, out, ranks):
        time.sleep(POLL_SECONDS)
        refused += _replay(config, data, out, ranks)
    rankers = study_job(config, data)
    _forget_stale_rankers(config, stage_name(rankers), out)
    job("downstream", stage_name(rankers), rankers, data, out, ranks)
    report(config, data, out)
    return list(dict.fromkeys([*refused, *_refusals([_records(out, name)[-1:] for name in _names(config)])]))


def report(config: StudyConfig, data: Path, out: Path) -> None:
    """Write and print the report of the days and rankers that are there."""
    for name in _names(config):  # once more: a call that was killed may not have come to it
        folder = Ledger(out, name).folder
        export.write_metrics(folder, name)
        quality_page.write_pages(folder, name)
    overhead, start = unaccounted(out), time.monotonic()
    document = build_daily(collect_daily(config, data, out))
    document["seconds"] |= {"start": overhead, "report": time.monotonic() - start}
    write_daily(document, out)
    print_daily(document)
    print(f"\nreport: {out / 'daily.html'}  (figures: {out / 'daily.json'})")


def _replay(config: StudyConfig, data: Path, out: Path, ranks: int) -> list[str]:
    """Run all cycles that are due, upstream by upstream; what the gates had against them."""
    done = []
    for upstream in config.upstreams:
        name = upstream.name
        before = _records(out, name)
        if before and _due(config, data, out, name, ranks) is None:
            continue
        start_job("refresh", f"refresh-{name}", config.refresh_of(upstream), data, out, ranks, "--every")
        keys = {(record.day, record.key) for record in before}
        done.append([record for record in _records(out, name) if (record.day, record.key) not in keys])
    return _refusals(done)


def _refusals(records: list[list[Record]]) -> list[str]:
    return [f"{record.day}: {reason}" for each in records for record in each for reason in record.gates]


def _due(config: StudyConfig, data: Path, out: Path, name: str, ranks: int) -> Cycle | None:
    """An upstream's next cycle."""
    days, ledger = config.daily()[0], Ledger(out, name)
    return next_cycle(days.first, available_days(data, days, ledger.files, ranks), ledger.records())


def _complete(config: StudyConfig, data: Path, out: Path, ranks: int) -> bool:
    """Whether every upstream has processed the last day, or finds it too small."""
    days, names = config.daily()[0], _names(config)
    if all(records and records[0].day == days.last for records in (_records(out, name)[-1:] for name in names)):
        return True
    small = 0 < count_rows(find_day(data, days, days.last)) < ranks
    return small and all(_due(config, data, out, name, ranks) is None for name in names)


def _forget_stale_rankers(config: StudyConfig, stage: str, out: Path) -> None:
    """Delete the predictions of rankers that read other snapshots than are published now, after a correction say."""
    path = out / "downstream" / JOB / "of.json"
    published = {name: {r.day: r.key for r in _records(out, name)} for name in _names(config)}
    if path.is_file() and path.read_text().strip() == f'"{digest(published)}"':
        return
    forget(out, stage)
    shutil.rmtree(path.parent, ignore_errors=True)
    write_json(path, digest(published))


def _records(out: Path, name: str) -> list[Record]:
    return Ledger(out, name).records()


def _names(config: StudyConfig) -> list[str]:
    return [upstream.name for upstream in config.upstreams]
