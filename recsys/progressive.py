"""Progressive validation: what yesterday's model says of a day's events, before it is trained on them.

No event is ever scored by a model that has seen it or anything later, so these figures are a forecast's (McMahan et
al., Ad Click Prediction, KDD 2013, 5.1): of the upstream itself, day by day, where a held-out set would age.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import nn

from recsys.atomic import write_json
from recsys.data.batch import Batch
from recsys.data.quarantine import Quarantine
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.evaluate.recalibration import Recalibration
from recsys.shared_figures import shared_figures
from recsys.train.distributed import Environment, barrier
from recsys.train.exchange import ranks_of
from recsys.train.passes import BestPasses
from recsys.train.predict import predict

RECORD = "progressive.json"
"""In the folder of a training: it is scored once, a training that is resumed has it from there."""
Figures = dict[str, dict[str, float | None]]
"""Task -> `ne`, `auc`, `calibration` (None where the day leaves them undefined), `rows` and `positives`; of a label
that is a value `deviance` and `concordance` instead of the first two, and how many are above 0."""
_ROWS = 4096


class Scored:
    """Scores a model by a day's events and keeps the figures in the training's folder; the `before` of `fit`.

    Args:
        files: of the day.
        schema: whose labels are the tasks.
        resolve: what lets the ids of a batch read their rows, as the model knows them so far.
        skip: rows that are left out.
        folder: of the training.
        environment: this rank.
        recalibrations: label -> what is done to its logits where they are used; of the others nothing is.
        passes: of the training that the model is of, where its tasks are predicted by several.
        as_of: time up to which the outcomes of labels are known, ms. Rows whose outcome may still come are left out.
    """

    def __init__(
        self,
        files: Sequence[Path],
        schema: Schema,
        resolve: Callable[[Batch], Batch],
        skip: Quarantine,
        folder: Path,
        environment: Environment,
        recalibrations: Mapping[str, Recalibration] = MappingProxyType({}),
        as_of: int | None = None,
        passes: Callable[[nn.Module], BestPasses] | None = None,
    ) -> None:
        self._as_of, self._passes = as_of, passes
        self._files, self._schema, self._resolve, self._skip = files, schema, resolve, skip
        self._path, self._environment, self._recalibrations = folder / RECORD, environment, recalibrations

    def __call__(self, model: nn.Module) -> None:
        """A collective."""
        rank, ranks = self._environment.rank, self._environment.world_size
        stream = EventStream(
            self._files,
            self._schema,
            batch_size=_ROWS,
            rank=rank,
            world_size=ranks,
            drop_last=False,
            transform=self._resolve,
            skip=self._skip,
            as_of=self._as_of,
        )
        score = predict if self._passes is None else self._passes(model).predict
        logits, labels, mask, _ = (x.numpy() for x in score(model, stream, self._environment))
        figures: Figures = {}
        for task, label in enumerate(self._schema.labels):
            known, said = labels[mask[:, task], task], logits[mask[:, task], task]
            by = self._recalibrations.get(label.name, Recalibration())
            values = shared_figures(known, said, by, is_value=label.is_value, ranks=ranks_of(self._environment))
            figures[label.name] = {name: None if math.isnan(value) else value for name, value in values.items()}
        if self._environment.is_main:
            write_json(self._path, figures)
        barrier()


def read_figures(folder: Path) -> Figures:
    """What was scored before a training; nothing of one that began from nothing."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}
