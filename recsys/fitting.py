"""Whether configs, schemas and files fit each other: every mistake is kept, and the rest is checked nevertheless.

Only Parquet footers are opened, and times where these do not tell. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from recsys.config import ConfigError, DaysConfig, RankerSettings, UpstreamConfig
from recsys.config.reading import join
from recsys.data.delivered import check_rows, with_rows
from recsys.data.ends import check_links
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.schema import Schema, SchemaError, entity_schema
from recsys.data.times import check_unit, newest_time
from recsys.dates import HOUR_MS
from recsys.mistakes import MistakesError, meant
from recsys.refresh.arms import ENTITIES
from recsys.refresh.days import find_days, require_times, window
from recsys.source import known_part, load_schema, ranker_schema, refuse_values, upstream_schema

SPLITS = ("train", "validation", "test")


class Kept:
    """Mistakes that have been found so far."""

    def __init__(self) -> None:
        self._kinds: dict[str, type[MistakesError]] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    @contextmanager
    def at(self, place: str = "") -> Iterator[None]:
        """Keep what the block raises; `place` is the key of the config that it is about, where it does not say so."""
        try:
            yield
        except MistakesError as error:
            for told in error.told:
                self._kinds.setdefault(f"{place}: {told}" if place else told, type(error))

    def add(self, *mistakes: str) -> None:
        """Keep mistakes of a config."""
        for told in mistakes:
            self._kinds.setdefault(told, ConfigError)

    def tell(self, config: Path | None = None, data: Path | None = None) -> None:
        """Raise them together, as what they are if they are of one kind, else as a ConfigError; nothing if none is.

        Args:
            config: the file that keys are of; sentences that begin with a key get it in front.
            data: the folder of those that begin with a file.
        """
        if not self._kinds:
            return
        kinds, files = set(self._kinds.values()), ("--", *(f"{path}" for path in (config, data) if path))
        told = (each if config is None or each.startswith(files) else f"{config}: {each}" for each in self._kinds)
        raise (kinds.pop() if len(kinds) == 1 else ConfigError)(*told)


@dataclass(kw_only=True)
class Fit:
    """Checks of what a run will read; what does not fit is `kept`."""

    data: Path
    """The folder that the configs' paths are relative to."""
    ranks: int = 1
    """Of the upstreams' jobs."""
    compared: bool = False
    """Whether rankers are trained to be compared, not to be deployed."""
    kept: Kept = field(default_factory=Kept)

    def upstream(self, path: str, upstream: UpstreamConfig, days: DaysConfig | None) -> list[Path]:
        """An upstream against its schema and its files.

        Args:
            path: of its config.
            upstream: the config.
            days: that it is refreshed by.

        Returns:
            the files of its events.
        """
        schema = None
        with self.kept.at():
            schema = upstream_schema(upstream, self.data, path=f"{path}." if path else "")
        source, files = upstream.source, dict[str, list[Path]]()
        for key in ("events", "users", "items"):
            with self.kept.at(join(path, f"source.{key}")):
                files[key] = find_files(self.data, getattr(source, key))
        events = files.get("events", [])
        if upstream.kind == "graph":
            self._links(path, upstream, days)
        if schema is not None:
            self._towers(path, upstream, schema)
        else:
            schema = self._known_part(source.schema, upstream.features, upstream.tasks)
        if schema is None:
            return events
        if days is not None:
            with self.kept.at():
                require_times(schema, upstream)
            self._waiting(path, schema, days)
        if not events:
            return events
        with self.kept.at():
            self._one_step(path, upstream, check_files(events, schema))
        with self.kept.at():
            check_unit(events, schema)
        for owner in ENTITIES:
            # With the events: the refresh reads both as one log.
            with self.kept.at():
                check_files([*events, *files.get(f"{owner}s", ())], entity_schema(schema, owner))
        return events

    def _links(self, path: str, upstream: UpstreamConfig, days: DaysConfig | None) -> None:
        """A graph's relations against their files; and something that a day can teach."""
        relations = upstream.graph.relations
        with self.kept.at(join(path, "graph.relations")):
            check_links(relations, self.data, upstream.source.events)
        if days is not None and all(relation.events for relation in relations):
            self.kept.add(
                f"{join(path, 'graph.relations')} all name files of their own, so that no day would teach anything: "
                "leave `events` out of a relation over the events, or leave out [refresh.days]"
            )

    def _towers(self, path: str, upstream: UpstreamConfig, schema: Schema) -> None:
        """Something to predict, and for each tower something to read."""
        names, wanted = [label.name for label in schema.labels], upstream.loss.contrastive_label
        self._positives(join(path, "loss.positives"), upstream.loss.positives, schema)
        if not names:
            self.kept.add(f"upstream {upstream.name!r} has no label to predict: add one to {upstream.source.schema}")
        elif wanted and wanted not in names:
            self.kept.add(
                f"{join(path, 'loss.contrastive_label')} is {wanted!r}; use one of its tasks: {names}"
                f"{meant(wanted, names)}"
            )
        elif schema.label(wanted or names[0]).is_value:
            self.kept.add(
                f"{join(path, 'loss.contrastive_label')} is {wanted or names[0]!r}, a label of kind 'value': what is "
                "contrasted, retrieved and watched are rows of 1; name a task of kind 'binary', the first one is the "
                "default"
            )
        for owner in ENTITIES if upstream.kind == "derm" else ():
            if not schema.owned_by(owner):
                self.kept.add(f"upstream {upstream.name!r} has no {owner} feature: its {owner} tower needs one")

    def _positives(self, path: str, positives: Mapping[str, float], schema: Schema) -> None:
        """What is contrasted beside the contrastive label are tasks too, of 0 and 1."""
        kinds = {label.name: label.is_value for label in schema.labels}
        for name in positives:
            if name not in kinds:
                self.kept.add(f"{path} names {name!r}; use some of its tasks: {list(kinds)}{meant(name, list(kinds))}")
            elif kinds[name]:
                self.kept.add(f"{path} names {name!r}, a label of kind 'value': what is contrasted are rows of 1")

    def _waiting(self, path: str, schema: Schema, days: DaysConfig) -> None:
        """A day is trained on once, when it ends: a label that waits longer than that is never learned."""
        for label in schema.labels:
            if label.delayed == "wait" and label.window_ms >= days.hours * HOUR_MS:
                self.kept.add(
                    f"label {label.name!r} of {join(path, 'source.schema')} waits for a window of {label.window}, and "
                    f"a day of {days.hours} hours is trained on once, when it ends: none of its rows would ever be "
                    "learned from. Say delayed = 'corrected', or leave the label out of the upstream's tasks"
                )

    def _one_step(self, path: str, upstream: UpstreamConfig, rows: int) -> None:
        size = upstream.training.batch_size or 1
        if rows < size * self.ranks:
            given = f", or leave out {join(path, 'training.batch_size')}" if size > 1 else ""
            self.kept.add(
                f"upstream {upstream.name!r} has {rows} rows, less than one step of {self.ranks} ranks x {size}: "
                f"lower ranks{given}"
            )

    def rankers(self, path: str, rankers: RankerSettings, parts: Sequence[str] = SPLITS) -> dict[str, list[Path]]:
        """Rankers against their schema and their files.

        Returns:
            path of each split -> its files, of those that were found.
        """
        schema, name = None, path or "the config"
        with self.kept.at():
            schema = ranker_schema(rankers, self.data, tuple(rankers.tasks.values()), f"{path}." if path else "")
        if schema is None:
            schema = self._known_part(rankers.schema, rankers.features, tuple(rankers.tasks.values()))
        elif not schema.features:
            self.kept.add(f"{name} has no feature: a ranker needs one, add it to {rankers.schema}")
        values = {label.name for label in schema.labels if label.is_value} if schema is not None else set()
        for task, label in rankers.tasks.items():
            if label in values and f"{task}_expected" in rankers.tasks:
                self.kept.add(
                    f"{join(path, 'tasks')} names {task!r} and '{task}_expected', which is what a bundle calls the "
                    "expected value of the first: rename one of them"
                )
        if schema is not None and self.compared:
            with self.kept.at():
                refuse_values(schema, f"{join(path, 'tasks')}: ")
        files = dict[str, list[Path]]()
        for part in parts:
            with self.kept.at(join(path, part)):
                files[join(path, part)] = find_files(self.data, getattr(rankers, part))
        for key, found in files.items():
            if schema is None:
                break
            with self.kept.at():
                check_unit(found, schema)
            with self.kept.at():
                rows, batch_size = check_files(found, schema), rankers.training.batch_size
                if key == join(path, "train") and rows < batch_size:
                    self.kept.add(
                        f"{key} has {rows} rows, less than one step of {batch_size}: leave out "
                        f"{join(path, 'training.batch_size')}, or give more events"
                    )
        splits = list(files)
        for number, first in enumerate(splits):
            for second in splits[number + 1 :]:
                self.disjoint(first, files[first], second, files[second])
        return files

    def disjoint(self, first: str, first_files: Sequence[Path], second: str, second_files: Sequence[Path]) -> None:
        """A row is tested with a model that has not seen it, and read with vectors of an upstream that has not."""
        shared = sorted(set(first_files) & set(second_files))
        if shared:
            self.kept.add(f"{shared[0]} is both in {first} and in {second}: give each rows of its own")

    def times(self, upstreams: Mapping[str, UpstreamConfig], populations: Mapping[str, RankerSettings]) -> None:
        """Rankers and upstreams all have event times, or none has: else an event would read every snapshot, whatever
        its upstream has seen, or none at all."""
        for path, upstream in upstreams.items():
            source, schema = join(path, "source"), self._loaded(upstream.source.schema)
            for name, rankers in populations.items():
                other = self._loaded(rankers.schema)
                if schema is None or other is None or other.timed == schema.timed:
                    continue
                has, lacks = (source, name) if schema.timed else (name, source)
                self.kept.add(
                    f'the schema of {has} has event times, that of {lacks} has none (timestamp = ""): which events '
                    "come after what the upstream has seen cannot be told. Name the column of the times in the schema "
                    f'of {lacks}, or let both say timestamp = "" and give them disjoint rows'
                )

    def days(self, path: str, upstream: UpstreamConfig, days: DaysConfig, there: Mapping[str, list[Path]]) -> None:
        """The source and the days are one log: one schema, the days after the source, each with a row for every rank.

        Args:
            path: of the upstream's config.
            upstream: the config.
            days: where the days are.
            there: day -> files, of those that are there.
        """
        with self.kept.at():
            schema = upstream_schema(upstream, self.data, path=f"{path}." if path else "")
            source = find_files(self.data, upstream.source.events)
            check_files([*source, *(path for files in there.values() for path in files)], schema)
            for owner in ENTITIES:
                for files in find_days(self.data, days, f"{owner}s").values():
                    with self.kept.at():
                        check_rows(with_rows(files), schema, owner, beside=source[:1])
            start, _ = window(days, days.first)
            newest = self._newest(upstream, schema, start) if schema.timed else 0
            if newest > start:
                raise DataError(
                    f"the newest row of {join(path, 'source')} is of {newest} ms, but refresh.days.first = "
                    f"{days.first} begins at {start} ms: its first snapshots would know the days that follow. End the "
                    "source before"
                )

    def _newest(self, upstream: UpstreamConfig, schema: Schema, above: int) -> int:
        """Time of a source's newest row, if it is later than `above`."""
        source, found = upstream.source, [0]
        for patterns, facts in (
            (source.events, schema.select(features=())),
            (source.users, entity_schema(schema, "user")),
            (source.items, entity_schema(schema, "item")),
        ):
            if patterns:
                found.append(newest_time(find_files(self.data, patterns), facts, above=above))
        return max(found)

    def _known_part(self, schema: str, features: tuple[str, ...], labels: tuple[str, ...]) -> Schema | None:
        """A schema with what it has of the features and labels that a config names; None if it cannot be read."""
        loaded = self._loaded(schema)
        return None if loaded is None else known_part(loaded, features, labels)

    def _loaded(self, schema: str) -> Schema | None:
        """A schema; None if it cannot be read, which is told elsewhere."""
        try:
            return load_schema(self.data / schema, "")
        except (SchemaError, DataError):
            return None
