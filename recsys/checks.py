"""What can be seen to be wrong with a run before it starts, all of it at once; `recsys check` asks for nothing else.

Nothing here imports torch: the answer takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recsys.config import (
    Config,
    DaysConfig,
    LogConfig,
    RankerConfig,
    RankerSettings,
    Reading,
    RefreshConfig,
    RetrievalConfig,
    StudyConfig,
    TwoTowerConfig,
    UpstreamConfig,
    assign,
    read_document,
)
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.fitting import SPLITS, Fit, Kept
from recsys.mistakes import closest, meant
from recsys.refresh.days import find_day
from recsys.source import known_part, load_schema, refuse_unowned, refuse_values
from recsys.study.ways import study_job

KINDS: Mapping[str, type[Config]] = {
    "study": StudyConfig,
    "upstream": UpstreamConfig,
    "refresh": RefreshConfig,
    "ranker": RankerConfig,
    "towers": TwoTowerConfig,
    "log": LogConfig,
}
"""The configs that there are, by the name that `recsys config` knows them by."""


def check_run(config: StudyConfig, data: Path, *, tested: bool = True) -> None:
    """Check names, columns, types and row counts of everything the run will read; only Parquet footers are opened.

    Args:
        config: the study.
        data: folder of the events.
        tested: whether the rankers' test files will be read; otherwise they are not looked at.

    Raises:
        ConfigError: a name in the config that its schema lacks, too few rows for one step on every rank, or mistakes of
            several kinds.
        SchemaError, DataError: a schema or a file that does not fit.
    """
    kept = Kept()
    _Asked.by(config).check_run(data, kept, SPLITS if tested else SPLITS[:-1])
    kept.tell()


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
        ConfigError: a name in the config that its schema lacks, too few rows for one step on every rank, or mistakes of
            several kinds.
        SchemaError, DataError: a schema or a file that does not fit, a source that reaches into the days, or no day.
    """
    days, _ = config.daily()
    kept, asked = Kept(), _Asked.by(config)
    missing = asked.check_days(data, kept, follow=follow)
    if not missing or (not follow and len(missing) < len(list(days.until(days.last)))):
        with kept.at():
            Fit(data=data, compared=True, kept=kept).rankers("rankers", study_job(config, data))
    asked.check_times(data, kept)
    kept.tell()
    return missing


def check_config(
    path: Path,
    data: Path | None = None,
    assignments: Sequence[str] = (),
    store: str | Path | None = None,
    *,
    compared: bool = False,
) -> Config:
    """Check a TOML config of any kind, and if `data` are given what it names there.

    Args:
        path: of the config.
        data: folder that its paths are relative to; None: schemas and files are not looked at.
        assignments: `path=value` changes of the config.
        store: path or URL of the store that rankers are to read; None: series are not looked for.
        compared: whether rankers are to be compared, as those of a study always are, not to be deployed.

    Returns:
        the config, in which nothing is wrong.

    Raises:
        ConfigError, SchemaError, DataError: every mistake at once.
    """
    kept, reading, document = Kept(), Reading(), read_document(path)
    with kept.at():
        assign(document, assignments)
    config = reading.build(kind_of(document), document)
    kept.add(*reading.mistakes)
    asked = _Asked.of(reading)
    asked.compared |= compared
    with kept.at():
        if data is not None and not data.is_dir():
            raise DataError(f"--data is {data}, which is no folder: give the one that the paths in {path} are below")
        if data is not None:
            asked.check_run(data, kept, SPLITS)
            asked.check_days(data, kept)
            if isinstance(config, StudyConfig) and config.spans is not None and not kept:
                study_job(config, data)
        if store is not None:
            asked.check_series(store, kept)
    kept.tell(path, data)
    return config


def check_rankers(
    path: Path, data: Path, store: str, assignments: Sequence[str] = (), *, compared: bool
) -> RankerConfig:
    """Check the config of rankers that read a store which is there, as `check_config` does."""
    config = check_config(path, data, assignments, store, compared=compared)
    return config if isinstance(config, RankerConfig) else RankerConfig.load(path)


def check_towers(path: Path, data: Path, store: str, assignments: Sequence[str] = ()) -> TwoTowerConfig:
    """Check the config of a two-tower model that reads a store which is there, as `check_rankers` does."""
    config = check_config(path, data, assignments, store)
    return config if isinstance(config, TwoTowerConfig) else TwoTowerConfig.load(path)


def _series_in(store: str | Path) -> list[str]:
    """Names of the series of a store. Torch is imported for those of a bucket alone: who has none gets an answer at
    once."""
    if "://" not in str(store):
        return sorted(path.parent.name for path in Path(store).glob("*/series.json"))
    from embedding_store import EmbeddingStore

    return EmbeddingStore(store).list()


def kind_of(document: Mapping[str, Any]) -> type[Config]:
    """The kind of config that a document is most likely to be: the one that knows most of its keys."""

    def known(kind: type) -> int:
        names = [entry.name for entry in fields(kind)]
        return sum(closest(key, names) is not None for key in document)

    return max(KINDS.values(), key=known)


@dataclass(kw_only=True)
class _Asked:
    """What a config asks to be read, by the paths that it says so at."""

    upstreams: dict[str, UpstreamConfig] = field(default_factory=dict)
    rankers: dict[str, RankerSettings] = field(default_factory=dict)
    towers: TwoTowerConfig | None = None
    retrieval: RetrievalConfig | None = None
    days: DaysConfig | None = None
    ranks: int = 1
    compared: bool = False

    @staticmethod
    def by(study: StudyConfig) -> _Asked:
        """A study."""
        upstreams = {f"upstreams.{upstream.name}": upstream for upstream in study.upstreams}
        fragment = {"fragment": study.fragment} if study.fragment else {}
        return _Asked(
            upstreams=upstreams,
            rankers={"rankers": study.rankers, **fragment},
            retrieval=study.retrieval,
            days=study.refresh.days,
            ranks=study.ranks,
            compared=True,
        )

    @staticmethod
    def of(reading: Reading) -> _Asked:
        """Whatever there is of a config that may have mistakes; days that may be none are not looked for."""
        asked = _Asked()
        for path, part in reading.parts.items():
            if isinstance(part, UpstreamConfig):
                asked.upstreams[path] = part
            elif isinstance(part, RankerSettings):
                asked.rankers[path] = part
            elif isinstance(part, TwoTowerConfig) and path not in reading.wrong:
                asked.towers = part
            elif isinstance(part, RetrievalConfig):
                asked.retrieval = part
            elif isinstance(part, DaysConfig) and path not in reading.wrong:
                asked.days = part
            elif isinstance(part, StudyConfig):
                asked.ranks, asked.compared = part.ranks, True
        return asked

    def check_run(self, data: Path, kept: Kept, splits: Sequence[str]) -> None:
        """What upstreams and rankers read, and that no row is in two places."""
        fit = Fit(data=data, ranks=self.ranks, compared=self.compared, kept=kept)
        seen = {path: fit.upstream(path, upstream, self.days) for path, upstream in self.upstreams.items()}
        for path, rankers in self.rankers.items():
            for split, files in fit.rankers(path, rankers, splits).items():
                for source, events in seen.items():
                    fit.disjoint(f"{source}.source.events", events, split, files)
        if self.towers is not None:
            fit.rankers("", self.towers.population(), SPLITS[:-1])
            for owner, patterns in (("users", self.towers.users), ("items", self.towers.items)):
                with kept.at(owner):
                    find_files(data, patterns)
        self.check_times(data, kept)
        for path, job in self.rankers.items():
            if isinstance(job, RankerConfig) and (data / job.schema).is_file():
                with kept.at(path):
                    refuse_unowned(job, known_part(load_schema(data / job.schema, ""), job.features, ()))
        wanted, rankers_ = self.retrieval, self.rankers.get("rankers")
        if wanted is not None and wanted.label and rankers_ is not None and (data / rankers_.schema).is_file():
            with kept.at("retrieval.label"):
                schema = load_schema(data / rankers_.schema, "rankers.schema").select(labels=(wanted.label,))
                refuse_values(schema)

    def check_times(self, data: Path, kept: Kept) -> None:
        """That all logs have event times, or none."""
        Fit(data=data, kept=kept).times(self.upstreams, self.rankers)

    def check_days(self, data: Path, kept: Kept, *, follow: bool = False) -> list[str]:
        """The days that the upstreams are refreshed by; those that are not there, up to the last one."""
        days = self.days
        if days is None:
            return []
        found = {day: find_day(data, days, day) for day in days.until(days.last)} if days.last else {}
        there = {day: files for day, files in found.items() if files}
        with kept.at():
            if found and not there and not follow:
                raise DataError(
                    f"no day from {days.first} to {days.last} matches refresh.days.events = {days.events!r} in {data}"
                )
        fit = Fit(data=data, ranks=self.ranks, kept=kept)
        for path, upstream in self.upstreams.items():
            fit.upstream(path, upstream, days)
            fit.days(path, upstream, days, there)
        return [day for day, files in found.items() if not files]

    def check_series(self, store: str | Path, kept: Kept) -> None:
        """That the store has what rankers' arms read. Raises StorageAccessError of a bucket that cannot be read."""
        series = _series_in(store)
        if not series:
            kept.add(f"--store is {store}, which holds no series: give the folder of a store, say runs/mine/store")
            return
        for job in self.rankers.values():
            for arm in job.arms if isinstance(job, RankerConfig) else ():
                for name in arm.series:
                    if name not in series:
                        kept.add(
                            f"arms.{arm.name}.series names {name!r}, which {store} lacks{meant(name, series)}; "
                            f"it has: {', '.join(series)}"
                        )
        for name in self.towers.series if self.towers is not None else ():
            if name not in series:
                there = f"{store} lacks{meant(name, series)}; it has: {', '.join(series)}"
                kept.add(f"series names {name!r}, which {there}")
