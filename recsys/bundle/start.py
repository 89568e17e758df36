"""A ranker that goes on from an earlier one: what it begins with, and what that one says of the new rows first.

Every new day's rows are scored by the ranker that is deployed before any is trained on (progressive validation, see
recsys/progressive.py): its normalized entropy, recalibrated as it is deployed, is the gate of the training and is kept
in the bundle, training after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from recsys.bundle.manifest import SCHEMA, BundleError, Manifest, Pin
from recsys.config import ArmConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.schema import Schema
from recsys.data.sizes import Tables, key_of
from recsys.downstream.training import RankerTraining
from recsys.evaluate.recalibration import Recalibration
from recsys.folders import bundle_folder
from recsys.models.vocabulary import Vocabulary
from recsys.monitor.gates import check_progressive
from recsys.progressive import Scored, read_figures
from recsys.train import checkpoint
from recsys.train.checkpoint import CheckpointError
from recsys.train.passes import BestPasses, best_passes


@dataclass(frozen=True)
class Start:
    """What `recsys bundle --out` of the earlier ranker has left."""

    out: Path

    @cached_property
    def manifest(self) -> Manifest:
        """Of its bundle. Raises BundleError."""
        return Manifest.load(bundle_folder(self.out))

    @cached_property
    def checkpoint(self) -> Path:
        """Its model and optimizer. Raises CheckpointError: there is none."""
        folder = self.out / "training" / "checkpoints"
        found = checkpoint.latest(folder)
        if found is None:
            raise CheckpointError(
                f"{folder}: no checkpoint there; give --start the --out of an earlier `recsys bundle`, with its "
                "training folder"
            )
        return found

    def passes(self, model: nn.Module) -> BestPasses:
        """Those its tasks are predicted by, which a sharded model of it can be brought to."""
        progress, folder = checkpoint.read_progress(self.checkpoint), self.checkpoint.parent
        return BestPasses(
            best_passes(progress["scores"]),
            lambda number: checkpoint.load_model(checkpoint.at(folder, progress["ends"][number]), model),
        )

    def identity(self) -> dict[str, str]:
        """What it is, for what is trained from it."""
        return {"start": str(checkpoint.read_progress(self.checkpoint)["id"])}

    def check(self, arm: ArmConfig, tasks: Sequence[str], pins: Sequence[Pin]) -> None:
        """Raise BundleError unless a ranker of this arm, these tasks and these pins can go on from it."""
        mine = {pin.series: pin.space for pin in self.manifest.pins}
        theirs = {pin.series: pin.space for pin in pins}
        known = [task.name for task in self.manifest.tasks]
        if sorted(known) != sorted(tasks):
            raise BundleError(f"{self.out} ranks for tasks {known}, the config has {list(tasks)}: start anew")
        if mine != theirs:
            raise BundleError(
                f"{self.out} reads {_said(mine)}, arm {arm.name!r} now {_said(theirs)}: what was learned of other "
                "vectors is of no use for these; start anew, without --start"
            )
        before, now = (self.manifest.history, self.manifest.history_pooling), (arm.history, arm.history_pooling)
        if before != now:
            raise BundleError(
                f"{self.out} was trained with history = {before[0]}, history_pooling = {before[1]!r}, arm {arm.name!r} "
                f"has {now[0]} and {now[1]!r}: start anew, without --start"
            )

    @property
    def tables(self) -> Tables:
        """The sizes of its tables, which the new one keeps."""
        schema = Schema.load(bundle_folder(self.out) / SCHEMA)
        return {key_of(feature): feature.rows for feature in schema.features if feature.rows}


class Forecast:
    """Scores the earlier ranker by the new rows and refuses to go on from it where these are not what it knows; the
    `before` of `fit`. A collective.

    Args:
        start: the earlier one.
        training: of the new one.
        out: folder of that training.
        max_ne: greatest normalized entropy; 0: any.

    Raises:
        DataError: one is above.
    """

    def __init__(self, start: Start, training: RankerTraining, out: Path, max_ne: float) -> None:
        self._start, self._training, self._out, self._max_ne = start, training, out, max_ne

    def __call__(self, model: nn.Module, vocabulary: Vocabulary) -> None:
        training = self._training
        Scored(
            find_files(training.data, training.config.train),
            training.schema,
            lambda batch: training.features(vocabulary.resolve(batch)),
            training.skip,
            self._out,
            training.environment,
            {task.label: Recalibration(task.scale, task.bias) for task in self._start.manifest.tasks},
            training.facts.as_of,
            self._start.passes,
        )(model)
        reasons = check_progressive(read_figures(self._out), self._max_ne, "max_ne")
        if reasons:
            raise DataError(
                f"{self._start.out} is not gone on from. {'; '.join(reasons)}. See what is wrong with these rows, or "
                "allow more"
            )


def forecasts(start: Start | None, out: Path, rows: int) -> list[dict[str, Any]]:
    """What the ranker of each training said of its rows before it, that of `out` last; of the first one nothing."""
    if start is None:
        return []
    return [*start.manifest.training.get("progressive", []), {"rows": rows, "tasks": read_figures(out)}]


def _said(spaces: dict[str, str]) -> str:
    return ", ".join(f"{series} of space {space}" for series, space in spaces.items()) or "no vectors"
