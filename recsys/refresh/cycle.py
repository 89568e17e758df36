"""The refresh of one upstream, day by day: the job that `launchers/refresh.py` starts on every rank.

A cycle trains on the day from the checkpoint of the day before, embeds the day's entities, aggregates, publishes users
and items together, measures, moves the tag, and writes its record last. What a gate refuses is marked so in the store
instead: no ranker reads it, and the next cycle goes on from the day before it. Whatever kills a cycle, the same command
goes on where it was and ends with the same snapshots. Readers of the store are never in its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys.config import RefreshConfig
from recsys.config.days import DAY_STEPS
from recsys.data.files import find_files
from recsys.data.quarantine import Quarantine
from recsys.data.scan import join
from recsys.data.survey import Surveyed, one_after_another, survey
from recsys.dates import number_of
from recsys.folders import store_of, upstream_folder
from recsys.models.derm import DERM
from recsys.models.kinds import UpstreamModel
from recsys.monitor import export, gates, quality_page
from recsys.monitor.quality import measure
from recsys.monitor.traffic import Traffic
from recsys.progressive import read_figures
from recsys.refresh.align import AlignmentQuality
from recsys.refresh.arms import ENTITIES
from recsys.refresh.catalogue import Place, Told, as_tensors, tell, withdrawn_by, write_withdrawn
from recsys.refresh.cold import align_spaces
from recsys.refresh.content import Content, Timer
from recsys.refresh.counting import read_prior
from recsys.refresh.cross import CrossEvents
from recsys.refresh.day_files import DayFiles, Files
from recsys.refresh.days import (
    Cycle,
    again,
    available_days,
    chosen_cycle,
    ignored,
    next_cycle,
    read_new_days,
    require_times,
    window,
)
from recsys.refresh.embed import own_files
from recsys.refresh.errors import StoreLostError
from recsys.refresh.facts import last_of
from recsys.refresh.first import load_towers, publish_source, read_source
from recsys.refresh.plan import Plan, Planner, generation
from recsys.refresh.publish import Publication, Publisher
from recsys.refresh.records import PUBLICATION, WITHDRAWN, Ledger, Record, summary
from recsys.screening import read_as_0
from recsys.source import sized_upstream, upstream_schema
from recsys.stages import exclusive, stage
from recsys.train import checkpoint
from recsys.train.distributed import Environment, barrier, broadcast, process_group
from recsys.train.exchange import ranks_of
from recsys.train.watch import Pulse
from recsys.trained import Trained
from recsys.training_set import TrainingSet
from recsys.upstream import drawn_files, train_on


def refresh_upstream(
    config: RefreshConfig,
    data: Path,
    out: Path,
    *,
    day: str | None = None,
    cold: bool = False,
    every: bool = False,
    after_refused: bool = False,
) -> list[Record]:
    """Run one cycle of an upstream, or `every` one that is due. A collective.

    The first cycle publishes what the upstream learned from its source, and is the only one of a config without `days`;
    those after it are the days.

    Args:
        config: the upstream and how it is refreshed.
        data: folder of the events.
        out: folder of the run, where the upstream has been trained on its source.
        day: run the cycle of this day, not whichever is due.
        cold: train from scratch, on the source and all days, in a new space; not with `every`.
        every: go on until no day is due.
        after_refused: go on from the newest day even where a gate refused it, not from the newest that passed.

    Returns:
        the records of the cycles that were run; none for the first one.

    Raises:
        ConfigError: `day` is not the one that is due, or the config has no days.
        DataError, ClockSkewError: a day's files do not fit, or more of their rows than the schema allows; before
            anything is trained.
        CheckpointError: a checkpoint is missing, or of another schema or config.
        StoreError: the store refuses a snapshot or a tag was moved by somebody else.
    """
    name = config.upstream.name
    with (
        process_group() as environment,
        exclusive(upstream_folder(out, name), environment),
        stage(out, f"refresh-{name}", environment),
    ):
        config = replace(config, upstream=sized_upstream(config.upstream, out))
        refresh = _Refresh(config, data, out, environment, after_refused=after_refused)
        first = refresh.publish_first()
        if config.days is None and day is None and not cold:
            return []
        config.day_by_day()
        records: list[Record] = []
        wanted = None if every else 0 if first and day is None else 1
        while len(records) != wanted and (cycle := refresh.due(day, cold)):
            record = refresh.run(cycle, cold)
            if record is not None:  # else its files changed meanwhile: look again
                records.append(record)
        refresh.finish(records)
        return records


class _Refresh:
    """The days of one upstream; the same on every rank."""

    def __init__(
        self, config: RefreshConfig, data: Path, out: Path, environment: Environment, *, after_refused: bool
    ) -> None:
        self._after_refused = after_refused
        upstream = config.upstream
        self._config, self._upstream, self._data, self._out = config, upstream, data, out
        self._environment, self._ranks = environment, ranks_of(environment)
        self._ledger = Ledger(out, upstream.name)
        self._schema = upstream_schema(upstream, data, out)
        self._files = DayFiles(config, self._schema, data, out, environment)
        self._planner = Planner(config, data, self._ledger, after_refused=after_refused)
        self._place = Place(upstream=upstream, schema=self._schema, data=data, out=out, environment=environment)
        if config.days is not None:
            require_times(self._schema, upstream)
        # Before the series are opened, so that a model that does not fit the checkpoint makes none.
        records = broadcast(self._ledger.records(), environment)
        self._source = None if records else read_source(config, self._schema, data, out, environment)
        self._publisher = Publisher(out, config, environment)
        if records:
            self._check_store(records[-1])

    def publish_first(self) -> bool:
        """Publish what the upstream knows from its source, if no day has been published; whether that was to do."""
        if self._source is None:
            return False
        published = publish_source(self._publisher, self._source, self._out, self._upstream.name)
        self._source = None  # its model is not needed any more
        return published

    def due(self, day: str | None, cold: bool) -> Cycle | None:
        """The cycle to run; decided by rank 0 for all."""
        cycle = None
        read_new_days(self._data, self._config.day_by_day(), self._ledger.files, self._environment)
        if self._environment.is_main:
            days, records = self._config.day_by_day(), self._ledger.records()
            available = available_days(self._data, days, self._ledger.files, self._environment.world_size)
            for late in self._ledger.note_ignored(ignored(available.events, records)):
                print(
                    f"warning: day {late} was delivered again, but newer days are published: not applied "
                    f"(noted in {self._ledger.folder / 'ignored.json'})",
                    flush=True,
                )
            if day is not None:
                cycle = chosen_cycle(day, days.first, available, records)
            else:
                cycle = next_cycle(days.first, available, records)
            if cycle is None and cold and records:
                cycle = again(available.events, records[-1])
        return broadcast(cycle, self._environment)

    def run(self, cycle: Cycle, cold: bool) -> Record | None:
        """Run one cycle; None if the day's files changed while it ran, before anything was published."""
        timer, main = Timer(), self._environment.is_main
        files = self._files.of(cycle)
        screened, facts = self._files.read(cycle, files)
        surveyed, traffic = zip(*facts, strict=True)
        plan = broadcast(self._planner.plan(cycle, cold) if main else None, self._environment)
        found = join(list(screened.values()))
        skip = self._files.screen_all(cycle) if plan.cold else found.quarantine
        told = tell(self._planner.deliveries(plan, cycle), self._place)
        published = plan.folder / PUBLICATION
        publication = self._publisher.decide(published, {**plan.key, **plan.along.key}, plan.along.as_of, plan.space)
        with timer("train"):
            trained = self._train(plan, one_after_another(surveyed), cycle, skip)
        if broadcast(self._changed(cycle, plan), self._environment):
            return None
        content, alignment = self._content(plan, files, surveyed, cycle, skip, told, timer)
        prepared = timer.seconds["embed"]
        self._publisher.publish(publication, content, timer)
        result = trained.result
        speeds = {"train": result.samples_per_second, "embed": content.rate(timer.seconds["embed"] - prepared)}
        record = None
        if main:
            progressive = read_figures(plan.folder)
            measured, reasons = self._measure(publication, traffic[-1], timer)
            reasons += gates.check_progressive(progressive, self._config.gates.max_ne)
            with timer("store"):
                if reasons:
                    self._publisher.refuse(publication, reasons)
                else:
                    self._publisher.move_tags(publication, published)
            figures = {"gates": reasons, "tagged": not reasons, "quality": measured, "events": found.readable}
            figures |= {
                "rows_per_second": speeds,
                "shortfall": result.shortfall,
                "batch_size": trained.batch_size,
                "progressive": progressive,
                "read_as_0": read_as_0(found),
            }
            figures["quarantined"] = {day: len(each.bad) for day, each in screened.items() if each.bad} | told.bad
            record = self._record(cycle, plan, publication, content, timer, figures, alignment)
            self._ledger.write(record)
            self._ledger.prune()
            self._publisher.expire(record.before)
            export.write_metrics(self._ledger.folder, self._upstream.name)
            print(summary(record, self._config), flush=True)
        return broadcast(record, self._environment)

    def finish(self, records: Sequence[Record]) -> None:
        """Draw the pages, once for all cycles of a call."""
        if records and self._environment.is_main:
            quality_page.write_pages(self._ledger.folder, self._upstream.name)
        barrier()

    def _check_store(self, newest: Record) -> None:
        for name, version in newest.versions.items():
            if version not in self._publisher.store.series(name).versions():
                raise StoreLostError(
                    f"{store_of(self._out)} lacks version {version} of {name!r}, which the record of {newest.day} "
                    f"names: bring the store back, or delete {self._ledger.folder} and the store to replay all days"
                )

    def _train(self, plan: Plan, surveyed: Surveyed, cycle: Cycle, skip: Quarantine) -> Trained:
        """Train, or go on training."""
        upstream, days = self._upstream, self._config.day_by_day()
        training = upstream.training
        given = TrainingSet(
            files=surveyed.files,
            schema=self._schema,
            data=self._data,
            withdrawn=plan.withdrawn["item"],
            skip=skip,
            as_of=window(days, cycle.day)[1] - 1,
            surveyed=surveyed,
        )
        if plan.cold:
            files = (*find_files(self._data, upstream.source.events), *self._files.all(cycle))
            given = replace(given, files=files, items=drawn_files(upstream, self._data), surveyed=None)
            training = replace(training, seed=training.seed + generation(plan.space) - 1)
        else:
            training = replace(training, epochs=days.epochs, batch_size=days.batch_size or training.batch_size)
        return train_on(
            given,
            upstream,
            training,
            self._environment,
            out=plan.folder,
            store=store_of(self._out),
            title=f"{upstream.name} {cycle.day}",
            start=self._out / plan.start if plan.start else None,
            steps=0 if plan.cold else DAY_STEPS,
        )

    def _content(
        self,
        plan: Plan,
        files: Files,
        surveyed: Sequence[Surveyed],
        cycle: Cycle,
        skip: Quarantine,
        told: Told,
        timer: Timer,
    ) -> tuple[Content, AlignmentQuality | None]:
        """The entities to embed: those of the cycle's days, or all of them where a new space begins without the old."""
        upstream = self._upstream
        anew = plan.cold and not self._config.align
        withdrawn = withdrawn_by(plan.withdrawn, told, self._schema)
        if self._environment.is_main:
            write_withdrawn(plan.folder / WITHDRAWN, withdrawn, self._schema)
        with timer("embed"):
            model, _ = load_towers(plan.folder / "checkpoints", upstream, self._schema, self._environment)
            events, source, ranks, days = {}, list[Surveyed](), self._ranks, surveyed
            with Pulse("a survey of entities", self._environment):
                if anew:
                    read = (find_files(self._data, upstream.source.events), self._files.all(cycle))
                    source, days = ([survey(x, self._schema, (), skip, ranks=ranks)] for x in read)
                for owner in ENTITIES:
                    own = own_files(self._data, upstream.source, owner) if anew else []
                    log: list[Surveyed | list[Path]] = [*source, own, *days, told.of(owner)]
                    since = dict.fromkeys(own, 0) | {**told.since}
                    events[owner] = last_of(log, self._schema, owner, skip | told.skip, since, ranks, withdrawn[owner])
        end = window(self._config.day_by_day(), cycle.day)[1]
        content = Content(
            model=model,
            schema=self._schema,
            events=events,
            day=number_of(end - 1, self._config.day_by_day().utc_offset_hours),
            utc_offset_hours=self._config.day_by_day().utc_offset_hours,
            fresh=anew,
            after_refused=self._after_refused,
            before=plan.along.before,
            withdrawn=as_tensors(withdrawn),
            prior=read_prior(self._config, self._schema, self._data, self._out, end, self._environment),
            cross=self._cross(model, plan, files, cycle, skip) if self._config.cross else None,
        )
        if not plan.cold or anew:
            return content, None
        rotation, quality = align_spaces(self._publisher, content, plan.along.before, plan.folder, self._environment)
        return replace(content, rotation=rotation), quality

    def _cross(self, model: UpstreamModel, plan: Plan, files: Files, cycle: Cycle, skip: Quarantine) -> CrossEvents:
        """The events of the cycle's days; in a new space, where no rotation takes the old ones to, all there are."""
        assert isinstance(model, DERM)  # by the config
        if not plan.cold:
            return CrossEvents(model, [path for day in cycle.days for path in files[day]], skip)
        source = find_files(self._data, self._upstream.source.events)
        return CrossEvents(model, [*source, *self._files.all(cycle)], skip, fresh=True)

    def _changed(self, cycle: Cycle, plan: Plan) -> bool:
        """Whether the day's files are not what they were when the cycle began."""
        if not self._environment.is_main:
            return False
        available = available_days(self._data, self._config.day_by_day(), self._ledger.files).events
        now = {day: available.get(day) for day in cycle.days}
        if now == {**cycle.late, cycle.day: cycle.fingerprint} and self._planner.along(cycle).rows == plan.along.rows:
            return False
        print(f"day {cycle.day}: its files changed while its cycle ran; nothing was published", flush=True)
        return True

    def _measure(self, publication: Publication, traffic: Traffic, timer: Timer) -> tuple[dict[str, object], list[str]]:
        """What was published, measured, and why it may not take the tag."""
        upstream = self._upstream
        with timer("quality"):
            store, versions = self._publisher.store, publication.versions
            measured = measure(store, upstream.name, versions, traffic, served=publication.tags)
            return measured.as_dict(), gates.check(measured, self._config.gates)

    def _record(
        self,
        cycle: Cycle,
        plan: Plan,
        publication: Publication,
        content: Content,
        timer: Timer,
        figures: dict[str, Any],
        alignment: AlignmentQuality | None,
    ) -> Record:
        newest = checkpoint.latest(plan.folder / "checkpoints")
        assert newest is not None
        entities = {owner: len(chosen) for owner, chosen in content.events.items()}
        return Record(
            day=cycle.day,
            fingerprint=cycle.fingerprint,
            late=dict(cycle.late),
            rows=dict(plan.along.rows),
            between=plan.along.newest,
            before=plan.along.before,
            gap=list(cycle.gap),
            corrects=cycle.corrects,
            key=plan.folder.name,
            start=plan.start,
            checkpoint=str(newest.relative_to(self._out)),
            as_of=publication.as_of,
            space=publication.space,
            versions=publication.versions,
            whole=self._publisher.whole(publication),
            expired=dict(self._publisher.expired),
            entities=entities,
            seconds=dict(timer.seconds),
            alignment=None if alignment is None else alignment.as_dict(),
            **figures,
        )
