"""`report.json`: what a run found, under stable keys.

`build_report` makes the document from a `RunResults`, `write_report` stores it beside `report.html`, which is rendered
from the document alone. Keys (`<...>` stands for a name; `.*` for anything below; a value that is undefined is null):

    format_version                          int; raised when a key goes or changes its meaning
    name                                    str; of the run's config
    note                                    str; what to know about the data: synthetic or real, how rows were split
    created                                 str; ISO 8601, UTC
    commit                                  str; of the code, "-dirty" if changed, "unknown" outside a checkout
    hardware.cpu                            str; model
    hardware.cores                          int; that the run could use
    hardware.memory_bytes                   int; of the machine
    hardware.gpu                            list of str; models, empty without one
    config.*                                the complete config of the run, defaults included
    seeds                                   list of int; training seeds of the downstream rankers
    upstream_seeds                          list of int; training seeds of the upstreams: the rankers of the first of
                                            `seeds`, the second, ... read the vectors of the first of these, the second,
                                            ..., beginning again after the last; empty: one training of each upstream
    rows.<split>                            int; events of each split: train, validation, test
    users_measured                          number; share of the users whose test rows are measured, chosen by a hash:
                                            less than 1 only of more than 16 million test rows
    screened.<files>.rows                   int; read before the work began: `upstream-<name>`, `rankers-<job>`, ...
    screened.<files>.quarantined            int; of them left out, since they cannot be read: quarantine/<files>.json
    screened.<files>.read_as_0.<feature>    int; values that are null or NaN; features without are absent
    publish_delay_ms                        int; an event reads no snapshot whose `as_of` is not this much earlier;
                                            null: the log has no event times, every event reads the newest snapshot
    seconds.<stage>                         number; wall time of each stage; `start`: of imports, checks and starting
                                            ranks, of the command that wrote this; `report`: of measuring all this.
                                            Together they are the wall time of a run that was not stopped
    peak_rss_bytes                          int; greatest resident memory, summed over the processes alive at a time

    verdict.sentence                        str; all answers in one sentence
    verdict.tasks.<task>.answer             str; `yes`, `no` or `not clear`: is its ranker better with stored vectors?
    verdict.tasks.<task>.arm                str; with which: of the arms that pay, the one of the least validation.ne;
                                            null: none pays
    verdict.tasks.<task>.what               str; what it is about, in words
    verdict.tasks.<task>.brief              str; the figures that matter most
    verdict.tasks.<task>.sentence           str; the answer with what decided it
    verdict.tasks.<task>.reasons            list of {measure, says, text}: what each measure says by itself, see
                                            recsys/study/verdict.py
    verdict.retrieval.*                     should one retrieve by the vectors? The same keys, but for `arm`; absent if
                                            retrieval was not run
    warnings                                list of {kind, about, text}: what a reader must be warned of, see
                                            recsys/study/cautions.py

    tasks.<task>.<arm>.auc                  number; ROC-AUC, mean over seeds
    tasks.<task>.<arm>.auc_by_seed          list of numbers; in the order of `seeds`
    tasks.<task>.<arm>.pr_auc               number; average precision, mean over seeds
    tasks.<task>.<arm>.ne                   number; normalized entropy, mean over seeds
    tasks.<task>.<arm>.ne_by_seed           list of numbers
    tasks.<task>.<arm>.log_loss             number; in nats, mean over seeds
    tasks.<task>.<arm>.gauc                 number; ROC-AUC of each user's rows, mean weighted by rows; mean over seeds
    tasks.<task>.<arm>.ndcg_5               number; NDCG@5 of each user's rows, mean over users with a positive, seeds
    tasks.<task>.<arm>.calibration          number; mean prediction / mean label, mean over seeds
    tasks.<task>.<arm>.calibration_by_seed  list of numbers
    tasks.<task>.<arm>.reliability          list of {predicted, observed, rows}: of tenths of the test rows, in the
                                            order of the seeds' mean prediction: its mean, and that of the labels
    tasks.<task>.<arm>.calibration_by_day.<day>  number; the same of each test day; none without event times
    tasks.<task>.<arm>.ne_by_day.<day>      number; of each test day, which no ranker has been trained on; likewise
    tasks.<task>.<arm>.validation.ne        number; on the validation rows, mean over seeds, as are the next three
    tasks.<task>.<arm>.validation.auc       number
    tasks.<task>.<arm>.validation.calibration  number; after the recalibration that was fitted on these rows, and
                                            that all figures are of
    tasks.<task>.<arm>.validation.raw_calibration  number; before it
    tasks.<task>.<arm>.validation.rows      int; validation rows for which the label exists
    tasks.<task>.<arm>.validation.positives  int; of them
    tasks.<task>.<arm>.validation.passes.best  list of int; by seed, the pass over the training rows that they chose
    tasks.<task>.<arm>.validation.passes.most  int; passes that were allowed
    tasks.<task>.<arm>.validation.reads     list of bool; whether each seed's ranker reads the arm's vectors
    tasks.<task>.<arm>.validation.tried.with  number; the first seed's normalized entropy; not in `none`
    tasks.<task>.<arm>.validation.tried.without  number; the same without vectors
    tasks.<task>.<arm>.validation.tried.error  number; the standard error of the difference: with less to gain, none is
                                            read
    tasks.<task>.<arm>.pays                 bool; whether any seed reads them; not in `none`
    tasks.<task>.<arm>.seeds                list of int; training seeds
    tasks.<task>.<arm>.rows                 int; test events for which the label exists
    tasks.<task>.<arm>.positives            int; of them
    tasks.<task>.<arm>.users                int; who made them
    tasks.<task>.<arm>.auc_lift             number; relative to arm `none`, a fraction: 0.02 is +2 %; not in `none`
    tasks.<task>.<arm>.auc_lift_ci95        [low, high]; paired bootstrap over users and `seeds`, and so over
                                            `upstream_seeds`, but over no other training of an upstream; not in `none`
    tasks.<task>.<arm>.auc_gain             number; the same lift, absolute: 0.013 is 0.701 over 0.688; not in `none`
    tasks.<task>.<arm>.ne_lift              number; relative, as auc_lift; below 0 is better; not in `none`
    tasks.<task>.<arm>.ne_lift_ci95         [low, high]; not in `none`
    tasks.<task>.<arm>.pr_auc_lift          number; the same for PR-AUC; not in `none`
    tasks.<task>.<arm>.pr_auc_lift_ci95     [low, high]; not in `none`
    segments.<task>.<owner>.<segment>.rows  int; test rows of `new`, `tail`, `head` items (users), by how often they are
                                            in the rankers' training rows, see segments.py; of all events
    segments.<task>.<owner>.<segment>.users  int; who made them
    segments.<task>.<owner>.<segment>.positives  int; of them
    segments.<task>.<owner>.<segment>.enough  bool; whether they are enough to tell anything; else there are no arms
    segments.<task>.<owner>.<segment>.arms.<arm>.auc  number; mean over seeds, as are the next two
    segments.<task>.<owner>.<segment>.arms.<arm>.ne  number; against the segment's own positive rate
    segments.<task>.<owner>.<segment>.arms.<arm>.auc_lift  number; not in `none`
    segments.<task>.<owner>.<segment>.arms.<arm>.auc_lift_ci95  [low, high]; not in `none`
    fragment.<task>.<arm>.*                 as tasks.<task>.<arm>: rankers trained and tested on one surface alone;
                                            absent without a fragment
    oracle.<task>.auc                       number; of the true probabilities; synthetic market only, else absent
    oracle.<task>.gap_closed.<arm>          number; (arm - none) / (oracle - none) in ROC-AUC, a fraction; not in `none`

    upstreams.<name>.steps                  int; optimizer steps
    upstreams.<name>.samples_per_second     number; over all ranks, median of the logged windows
    upstreams.<name>.input_wait_fraction    number; share of the training time spent waiting for input
    upstreams.<name>.batch_size             int; rows a rank and step
    upstreams.<name>.collisions             owner -> share of its ids in the source without a row of their own
    upstreams.<name>.passes.done            int; passes over its events, the last one too
    upstreams.<name>.passes.most            int; those that its config allows
    upstreams.<name>.passes.best            int; number of the one whose model was kept
    upstreams.<name>.passes.held_out        int; events that chose it; 0: none did, the last was kept
    upstreams.<name>.passes.validation_ne   list; normalized entropy of these after each pass, mean over tasks
    upstreams.<name>.loss                   number; last logged
    upstreams.<name>.ne.<task>              number; normalized entropy of training rows, last logged
    upstreams.<name>.auc.<task>             number; ROC-AUC of training rows, last logged
    upstreams.<name>.curves                 list of {step, loss, loss.<part>, ne.<task>, auc.<task>}; at most
                                            CURVE_POINTS of them
    store.<series>.entity                   str; user or item
    store.<series>.space                    str; vectors of different spaces must not be compared
    store.<series>.version                  int; of the snapshot that was read
    store.<series>.as_of                    str; ISO 8601, UTC: the events it knows end here; null without event times
    store.<series>.rows                     int; entities with a vector
    store.<series>.dim                      int; of a vector
    store.<series>.dtype                    str; as stored
    store.<series>.coverage                 number; share of test events whose entity has a vector
    transfer.*                              see recsys/study/transfer.py; absent if no upstream learns what a task does
    retrieval.*                             see recsys/study/retrieval_report.py; absent if it was not run

With several `upstream_seeds`, what is below `upstreams`, `transfer`, `store` and `retrieval` is of the first one.

Arms are named by what the ranker reads: `none`, `ctr_user`, `ctr_user_item`, `cvr_user_item`, `ctr_cvr_user_item`,
`ctr_cvr_user_item_cross`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from recsys.atomic import write_text
from recsys.dates import iso
from recsys.downstream.validation import REFERENCE
from recsys.evaluate.metrics import roc_auc
from recsys.study.cautions import cautions
from recsys.study.environment import commit, hardware
from recsys.study.found import RetrievalResult
from recsys.study.report_page import render_page
from recsys.study.retrieval_report import retrieval_document
from recsys.study.scores import ReportError, TaskScores, measure_arms, require
from recsys.study.segments import measure_segments
from recsys.study.transfer import transfer_document
from recsys.study.verdict import judge

FORMAT_VERSION = 1
CURVE_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class UpstreamRun:
    """How the training of one upstream went."""

    steps: int
    samples_per_second: float
    input_wait_fraction: float
    batch_size: int
    collisions: Mapping[str, float]
    passes: Mapping[str, Any]
    """`done`, `most`, `best`, `held_out`, `validation_ne`."""
    curves: Sequence[Mapping[str, float]]
    """Rows of its metrics.jsonl: step, loss, `loss.<part>`, `ne.<task>`, `auc.<task>`; other keys are left out."""


@dataclass(frozen=True, kw_only=True)
class SeriesRun:
    """The snapshot of one series that the rankers read."""

    entity: str
    """`user` or `item`."""
    space: str
    version: int
    as_of: int
    """Milliseconds since the epoch; 0 of a log without event times."""
    rows: int
    dim: int
    dtype: str
    coverage: float
    """Share of test events whose entity has a vector."""


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """Everything a report says."""

    name: str
    note: str
    tasks: Mapping[str, TaskScores]
    fragment: Mapping[str, TaskScores] = field(default_factory=dict)
    """The same tasks on one surface alone; empty without such a run."""
    upstreams: Mapping[str, UpstreamRun]
    series: Mapping[str, SeriesRun]
    entropies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Upstream -> task -> the normalized entropy of what the upstream itself predicts for the test events."""
    retrieval: RetrievalResult | None = None
    rows: Mapping[str, int]
    """Split -> events."""
    users_measured: float = 1.0
    """The share of the users whose test rows are measured, see `recsys.study.sample`."""
    screened: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was found to be wrong with rows before the work began, see `recsys.screening.summaries`."""
    publish_delay_ms: int | None
    """Of the rankers; None: their log has no event times."""
    upstream_seeds: tuple[int, ...] = ()
    """Of the upstreams' trainings, where there are several of each."""
    seconds: Mapping[str, float]
    """Stage -> wall time, in the order in which they ran."""
    peak_rss_bytes: int
    config: Mapping[str, Any]


def build_report(results: RunResults, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The document described at the top of this module, ready for `json.dumps`.

    Args:
        results: the run.
        samples: draws of the paired bootstrap.
        seed: of the bootstrap.
    """
    fragment = {task: measure_arms(scores, samples, seed) for task, scores in results.fragment.items()}
    tasks = {task: measure_arms(scores, samples, seed) for task, scores in results.tasks.items()}
    oracle = {
        task: _oracle(scores.labels, scores.oracle, tasks[task])
        for task, scores in results.tasks.items()
        if scores.oracle is not None
    }
    segments = {
        task: measure_segments(scores.labels, scores.users, scores.arms, scores.segments, samples=samples, seed=seed)
        for task, scores in results.tasks.items()
        if scores.segments
    }
    report = {
        "format_version": FORMAT_VERSION,
        "name": results.name,
        "note": results.note,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "seeds": list(next(iter(results.tasks.values())).seeds) if results.tasks else [],
        "upstream_seeds": results.upstream_seeds,
        "rows": results.rows,
        "users_measured": results.users_measured,
        "screened": results.screened,
        "publish_delay_ms": results.publish_delay_ms,
        "tasks": tasks,
        **({"segments": segments} if segments else {}),
        **({"fragment": fragment} if fragment else {}),
        **({"oracle": oracle} if oracle else {}),
        "upstreams": {name: _upstream(run) for name, run in results.upstreams.items()},
        **({"transfer": transfer} if (transfer := transfer_document(results.entropies, tasks)) else {}),
        "store": {name: {**asdict(run), "as_of": iso(run.as_of)} for name, run in results.series.items()},
        **({"retrieval": retrieval_document(results.retrieval)} if results.retrieval else {}),
        "seconds": results.seconds,
        "peak_rss_bytes": results.peak_rss_bytes,
        "config": results.config,
    }
    document = plain(report)
    return document | {"verdict": judge(document), "warnings": cautions(document)}


def write_report(report: Mapping[str, Any], folder: str | Path) -> None:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all."""
    write_text(Path(folder) / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    write_text(Path(folder) / "report.html", render_page(report))


def load_report(folder: str | Path) -> dict[str, Any]:
    """Read `report.json` of a run's folder.

    Raises:
        ReportError: not JSON, or of another format version; the message starts with the path.
        FileNotFoundError: there is none.
    """
    return load_document(Path(folder) / "report.json", FORMAT_VERSION)


def load_document(path: Path, format_version: int) -> dict[str, Any]:
    """Read a JSON document that says its `format_version`. Raises as `load_report`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error}); run the experiment again") from None
    version = document.get("format_version") if isinstance(document, dict) else None
    require(
        version == format_version,
        f"{path}: format_version is {version}; this code reads {format_version}: use the version that wrote it",
    )
    return document


def _oracle(labels: np.ndarray, oracle: np.ndarray, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    best, none = roc_auc(labels, oracle), arms[REFERENCE]["auc"]
    gap = best - none if best > none else math.nan
    return {
        "auc": best,
        "gap_closed": {arm: (measured["auc"] - none) / gap for arm, measured in arms.items() if arm != REFERENCE},
    }


def _upstream(run: UpstreamRun) -> dict[str, Any]:
    rows = [
        {k: v for k, v in row.items() if k.partition(".")[0] in ("step", "loss", "ne", "auc")} for row in run.curves
    ]
    last = {key: value for row in rows for key, value in row.items()}  # a rare task has no figure at some steps
    every = max(1, math.ceil(len(rows) / CURVE_POINTS))
    return {
        "steps": run.steps,
        "samples_per_second": run.samples_per_second,
        "input_wait_fraction": run.input_wait_fraction,
        "batch_size": run.batch_size,
        "collisions": dict(run.collisions),
        "passes": dict(run.passes),
        "loss": last.get("loss"),
        "ne": {key[len("ne.") :]: value for key, value in last.items() if key.startswith("ne.")},
        "auc": {key[len("auc.") :]: value for key, value in last.items() if key.startswith("auc.")},
        "curves": rows[::-1][::every][::-1],  # counted from the end, so that the last point stays
    }


def plain(value: Any) -> Any:
    """A copy of nested mappings, sequences and arrays that JSON can hold: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
