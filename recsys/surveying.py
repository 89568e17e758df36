"""What a training has to know of its events before the first step: the facts of their labels, which of them are held
out, the positives' frequencies, who is there, and the items that negatives are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recsys.config import UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.files import check_files
from recsys.data.held_out import ALL_TRAIN, HeldOut, hold_out
from recsys.data.label_facts import LabelFacts, survey_labels
from recsys.data.last_events import NOBODY, LastEvents, everywhere, newest_rows, share_events
from recsys.data.newest import behind
from recsys.data.quarantine import Quarantine
from recsys.data.ranks import Ints, Ranks
from recsys.data.survey import Surveyed, survey
from recsys.dates import UNTIMED
from recsys.models.frequencies import ItemFrequencies
from recsys.models.vocabulary import own_ids
from recsys.positives import frequencies_of
from recsys.train.distributed import Environment
from recsys.train.exchange import ranks_of
from recsys.train.watch import Pulse
from recsys.training_set import TrainingSet


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a training's events; the same on every rank."""

    facts: LabelFacts
    held: HeldOut
    """Which events choose the pass."""
    left_out: Quarantine
    """Rows that are not trained on: these, and those that nobody reads."""
    rows: int
    """That are trained on."""
    frequencies: ItemFrequencies | None
    """What the contrastive loss needs; None: there is to be none."""
    seen: Mapping[str, Ints]
    """Owner -> its ids, int64 [N], ascending; of owners whose ids have rows of their own."""
    newest: int
    """Time of the newest event, ms, where events are contrasted; else UNTIMED."""
    drawn: LastEvents
    """The last rows of the items that negatives are drawn from; of nobody where none are."""


def survey_events(
    given: TrainingSet, upstream: UpstreamConfig, environment: Environment, *, held_out: float, started: bool
) -> Known:
    """Read what a training has to know of its events, each row on one rank; a rank that freezes meanwhile is named. A
    collective.

    Args:
        given: the events.
        upstream: whose loss says what is asked for.
        environment: this rank.
        held_out: share of the events that choose the pass; 0: none does.
        started: whether the training goes on from another one.

    Raises:
        DataError: a row cannot be read, or a first training has no positive to contrast.
    """
    with Pulse("a survey of events", environment):
        return _survey(given, upstream, ranks_of(environment), held_out, started)


def _survey(given: TrainingSet, upstream: UpstreamConfig, ranks: Ranks, held_out: float, started: bool) -> Known:
    files, schema, skip = given.files, given.schema, given.skip
    facts = survey_labels(files, schema, skip, as_of=given.as_of, with_delays=not started, ranks=ranks)
    held = hold_out(files, schema, held_out, skip, facts.as_of, ranks) if held_out else ALL_TRAIN
    left_out = skip | held.rows
    surveyed = given.surveyed
    if surveyed is None or held.count:
        surveyed = _read(given, upstream, left_out, facts.as_of, ranks)
    contrasted = surveyed if upstream.loss.contrastive_weight else None
    frequencies = None if contrasted is None else _frequencies(contrasted, given, upstream, ranks, started)
    draws = frequencies is not None and upstream.loss.uniform_negatives > 0
    return Known(
        facts=facts,
        held=held,
        left_out=left_out,
        rows=check_files(files, schema) - left_out.count(files),
        frequencies=frequencies,
        seen={} if surveyed is None else {owner: surveyed.seen(owner, ranks) for owner in own_ids(schema)},
        newest=UNTIMED if contrasted is None else contrasted.newest,
        drawn=_last_items(given, None if held.count else surveyed, ranks) if draws else NOBODY,
    )


def _read(
    given: TrainingSet, upstream: UpstreamConfig, left_out: Quarantine, as_of: int | None, ranks: Ranks
) -> Surveyed | None:
    """What is known of the events that are trained on; None where nothing of it is asked for."""
    files, schema = given.files, given.schema
    if not upstream.loss.contrastive_weight:
        return survey(files, schema, (), left_out, ranks=ranks) if own_ids(schema) else None
    labels = tuple(upstream.loss.contrasted([label.name for label in schema.labels]))
    return survey(files, schema, labels, left_out, as_of=as_of, ranks=ranks)


def _frequencies(
    surveyed: Surveyed, given: TrainingSet, upstream: UpstreamConfig, ranks: Ranks, started: bool
) -> ItemFrequencies | None:
    """Of the positives. A day that goes on from a trained model may have none: it teaches what it can. A first training
    without one is a mistake."""
    frequencies = frequencies_of(surveyed.positives, ranks)
    if frequencies is None and not started:
        labels = upstream.loss.contrasted([label.name for label in given.schema.labels])
        raise DataError(
            f"label {' or '.join(map(repr, labels))} is never 1 in {len(surveyed.files)} files: contrast another "
            "label, give more events, or set loss.contrastive_weight = 0"
        )
    return frequencies


def _last_items(given: TrainingSet, surveyed: Surveyed | None, ranks: Ranks) -> LastEvents:
    """The last row of each item of events, those that are held out too, and of items' own rows; but for those that are
    withdrawn."""
    files, items, schema = given.files, given.items, given.schema
    if surveyed is None:
        surveyed = survey(files, schema, (), given.skip, ranks=ranks)
    parts = [(surveyed.rows["item"], len(files))]
    if items:
        parts.append((newest_rows(items, schema, "item", given.skip, ranks=ranks), len(items)))
    return everywhere(share_events([*files, *items], behind(parts), ranks=ranks, without=given.withdrawn), ranks)
