"""What can be seen to be wrong with a run before it starts: config against schemas, schemas against files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from recsys.config import ConfigError, RankerSettings, StudyConfig, UpstreamConfig
from recsys.data.entities import check_rows, with_rows
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.scan import Part, join, judge, scan
from recsys.data.schema import Schema, entity_schema
from recsys.downstream.ranking import ranker_schema
from recsys.refresh.arms import ENTITIES
from recsys.refresh.days import find_day, find_days, require_times, window
from recsys.source import upstream_schema
from recsys.study.ablation import ablation_jobs
from recsys.study.ways import study_job

SPLITS = ("train", "validation", "test")


def check_run(config: StudyConfig, data: Path, *, tested: bool = True) -> None:
    """Check names, columns, types and row counts of everything the run will read; only Parquet footers are opened.

    Args:
        config: the study.
        data: folder of the events.
        tested: whether the rankers' test files will be read; otherwise they are not looked at.

    Raises:
        ConfigError: a name in the config that its schema lacks, or too few rows for one step on every rank.
        SchemaError, DataError: a schema or a file that does not fit.
    """
    _check_times(config, data)
    for upstream in config.upstreams:
        _check_upstream(upstream, config.ranks, data)
    for population, job in ablation_jobs(config).items():
        name = "rankers" if population == "tasks" else population
        splits = _check_rankers(name, job, data, SPLITS if tested else SPLITS[:-1])
        for upstream in config.upstreams:
            seen = {f"upstreams.{upstream.name}.source.events": find_files(data, upstream.source.events)}
            _check_disjoint(seen, {f"{name}.{part}": files for part, files in splits.items()})
    if config.retrieval is not None and config.retrieval.label:
        ranker_schema(config.rankers, data, (config.retrieval.label,))


def check_daily(config: StudyConfig, data: Path, *, follow: bool = False) -> list[str]:
    """Check everything that a replay of days will read; footers are opened, and the source's times.

    A day's rows are learned from by an upstream and may be in a ranker's split as well: every arm reads the vectors as
    of the event's own time, and those of its day are as of the day's end. What is refused is a source that reaches
    into the days, since the first snapshots would know them.

    Args:
        config: with `refresh.days` and `spans`.
        data: folder of the events.
        follow: days may be missing, they are waited for.

    Returns:
        the days from `refresh.days.first` to `refresh.days.last` that are not there.

    Raises:
        ConfigError: a name in the config that its schema lacks, or too few rows for one step on every rank.
        SchemaError, DataError: a schema or a file that does not fit, a source that reaches into the days, or no day.
    """
    settings, _ = config.daily()
    days = {day: find_day(data, settings, day) for day in settings.until(settings.last)}
    there = {day: files for day, files in days.items() if files}
    if not there and not follow:
        raise DataError(
            f"no day from {settings.first} to {settings.last} matches refresh.days.events = {settings.events!r} in "
            f"{data}"
        )
    _check_times(config, data)
    for upstream in config.upstreams:
        _check_upstream(upstream, config.ranks, data)
        _check_days(upstream, config, there, data)
    if not follow or all(days.values()):
        _check_rankers("rankers", study_job(config, data), data)
    return [day for day, files in days.items() if not files]


def _check_days(upstream: UpstreamConfig, config: StudyConfig, there: Mapping[str, list[Path]], data: Path) -> None:
    """The source and the days are one log: one schema, the days after the source."""
    settings, schema = config.daily()[0], upstream_schema(upstream, data)
    source = find_files(data, upstream.source.events)
    check_files([*source, *(path for files in there.values() for path in files)], schema)
    for owner in ENTITIES:
        for files in find_days(data, settings, f"{owner}s").values():
            check_rows(with_rows(files), schema, owner, beside=source[:1])
    newest = _newest(upstream, schema, data)
    start, _ = window(settings, settings.first)
    if newest > start:
        raise DataError(
            f"the newest row of upstreams.{upstream.name}.source is of {newest} ms, but refresh.days.first = "
            f"{settings.first} begins at {start} ms: its first snapshots would know the days that follow. End the "
            "source before"
        )


def _newest(upstream: UpstreamConfig, schema: Schema, data: Path) -> int:
    """Time of the newest row of a source whose ids and time can be read."""
    source, found = upstream.source, []
    for patterns, user, item in (
        (source.events, schema.user_id, schema.item_id),
        (source.users, schema.user_id, schema.user_id),  # entity rows have no other id
        (source.items, schema.item_id, schema.item_id),
    ):
        if patterns:
            facts = replace(schema, features=(), labels=(), user_id=user, item_id=item)
            part = Part(files=find_files(data, patterns), schema=facts)
            found.append(scan(part))
            judge(part, found[-1])
    return join(found).newest


def _check_upstream(upstream: UpstreamConfig, ranks: int, data: Path) -> None:
    schema = upstream_schema(upstream, data)
    names = [label.name for label in schema.labels]
    if not names:
        raise ConfigError(f"upstream {upstream.name!r} has no label to predict: add one to {upstream.source.schema}")
    wanted = upstream.loss.contrastive_label
    if wanted and wanted not in names:
        raise ConfigError(
            f"upstreams.{upstream.name}.loss.contrastive_label is {wanted!r}; use one of its tasks: {names}"
        )
    for owner in ("user", "item"):
        if not schema.owned_by(owner):
            raise ConfigError(f"upstream {upstream.name!r} has no {owner} feature: its {owner} tower needs one")
    rows = check_files(find_files(data, upstream.source.events), schema)
    size = upstream.training.batch_size or 1
    if rows < size * ranks:
        raise ConfigError(
            f"upstream {upstream.name!r} has {rows} rows, less than one step of {ranks} ranks x {size}: lower ranks"
            + (f", or leave out upstreams.{upstream.name}.training.batch_size" if size > 1 else "")
        )
    for owner, patterns in (("user", upstream.source.users), ("item", upstream.source.items)):
        # With the events: the refresh reads both as one log.
        check_files(find_files(data, (*upstream.source.events, *patterns)), entity_schema(schema, owner))


def _check_times(config: StudyConfig, data: Path) -> None:
    """Days need event times; and rankers and upstreams all have them, or none has: else an event would read every
    snapshot, whatever its upstream has seen, or none at all."""
    populations = {"rankers": config.rankers, **({"fragment": config.fragment} if config.fragment else {})}
    for upstream in config.upstreams:
        schema, source = upstream_schema(upstream, data), f"upstreams.{upstream.name}.source"
        if config.refresh.days is not None:
            require_times(schema, upstream)
        for name, rankers in populations.items():
            if ranker_schema(rankers, data, ()).timed == schema.timed:
                continue
            has, lacks = (source, name) if schema.timed else (name, source)
            raise ConfigError(
                f'the schema of {has} has event times, that of {lacks} has none (timestamp = ""): which events come '
                "after what the upstream has seen cannot be told. Name the column of the times in the schema of "
                f'{lacks}, or let both say timestamp = "" and give them disjoint rows'
            )


def _check_rankers(
    name: str, rankers: RankerSettings, data: Path, parts: tuple[str, ...] = SPLITS
) -> dict[str, list[Path]]:
    """The files of each split."""
    schema = ranker_schema(rankers, data, tuple(rankers.tasks.values()))
    if not schema.features:
        raise ConfigError(f"{name} has no feature: a ranker needs one, add it to {rankers.schema}")
    splits = {part: find_files(data, getattr(rankers, part)) for part in parts}
    rows = {part: check_files(files, schema) for part, files in splits.items()}
    batch_size = rankers.training.batch_size
    if rows["train"] < batch_size:
        raise ConfigError(
            f"{name}.train has {rows['train']} rows, less than one step of {batch_size}: leave out "
            f"{name}.training.batch_size, or give more events"
        )
    _check_disjoint(
        {f"{name}.{part}": splits[part] for part in ("train", "validation")},
        {f"{name}.{part}": splits[part] for part in parts if part == "test"},
    )
    return splits


def _check_disjoint(first: Mapping[str, list[Path]], second: Mapping[str, list[Path]]) -> None:
    """A row is tested with a model that has not seen it, and read with vectors of an upstream that has not."""
    for left, left_files in first.items():
        for right, right_files in second.items():
            shared = sorted(set(left_files) & set(right_files))
            if shared:
                raise ConfigError(f"{shared[0]} is both in {left} and in {right}: give each rows of its own")
