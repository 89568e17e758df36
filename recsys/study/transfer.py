"""How much of what an upstream knows the rankers take over: the transfer ratio.

It is what a ranker gains in normalized entropy by an upstream's vectors, over what the upstream itself gains over the
ranker that reads none, on the same test rows: 1 where the ranker with them is as good as the upstream is. The upstream
predicts by its own head for the task's label, recalibrated on the validation rows as the rankers are.

Keys, below `transfer` of a report, for each upstream that learns the label of a task and can read the rankers' rows:

    <task>.<upstream>.ne            number; of the upstream itself, on the test rows
    <task>.<upstream>.gain          number; the ranker's without vectors less that
    <task>.<upstream>.ranker_gain   number; the ranker's without vectors less that of the ranker which reads the
                                    upstream's user and item vectors; null: no arm reads these alone
    <task>.<upstream>.ratio         number; ranker_gain / gain; null: one of them is nothing
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recsys.config import RankerSettings, UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.label_facts import known_until
from recsys.data.quarantine import Quarantine
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.downstream.validation import REFERENCE
from recsys.evaluate.metrics import normalized_entropy
from recsys.evaluate.recalibration import fit_recalibration
from recsys.evaluate.wording import number, title
from recsys.folders import upstream_folder
from recsys.models.kinds import UpstreamModel, build_upstream
from recsys.source import upstream_schema
from recsys.train.checkpoint import load_model
from recsys.train.distributed import host_memory
from recsys.train.table_sizes import table_sizes
from recsys.train.tables import allocate

_ROWS = 4096
"""Of a batch."""


def upstream_entropies(
    upstream: UpstreamConfig, rankers: RankerSettings, data: Path, out: Path, skip: Quarantine
) -> dict[str, float]:
    """Task -> the normalized entropy of the upstream's own predictions of the rankers' test rows, of the tasks whose
    label it learns.

    Empty where it cannot read these rows, or its tables would take half of this machine's memory or more.

    Args:
        upstream: as it was trained on its source.
        rankers: whose rows.
        data: folder of the events.
        out: folder of the run.
        skip: rows that are left out, of those screened for the rankers.
    """
    if upstream.kind == "graph":  # it predicts links, no label
        return {}
    schema = upstream_schema(upstream, data, out)
    labels = {label.name for label in schema.labels}
    tasks = {task: label for task, label in rankers.tasks.items() if label in labels}
    splits = [find_files(data, patterns) for patterns in (rankers.validation, rankers.test)]
    try:
        check_files([path for files in splits for path in files], schema)
    except DataError:  # they lack a column that the upstream's own events have
        return {}
    if not tasks or _table_bytes(schema, upstream) > host_memory() / 2:
        return {}
    model = _load(upstream, schema, out)
    (seen, said), (known, tested) = (_predict(model, schema, files, skip) for files in splits)
    found = {}
    for task, label in tasks.items():
        column = [each.name for each in schema.labels].index(label)
        fitted = [x[~np.isnan(seen[:, column]), column] for x in (seen, said)]
        there = ~np.isnan(known[:, column])
        recalibration = fit_recalibration(*fitted)
        found[task] = normalized_entropy(known[there, column], recalibration(tested[there, column]))
    return found


def transfer_document(
    entropies: Mapping[str, Mapping[str, float]], tasks: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The keys above.

    Args:
        entropies: upstream -> what `upstream_entropies` gives.
        tasks: `tasks` of the report.
    """
    found: dict[str, dict[str, Any]] = {}
    for task, arms in tasks.items():
        for upstream, by_task in entropies.items():
            plain, reader = arms[REFERENCE]["ne"], arms.get(f"{upstream}_user_item")
            gain = plain - by_task.get(task, math.nan)
            if math.isnan(gain):  # not learned, or test rows of one class
                continue
            ranker_gain = None if reader is None else plain - reader["ne"]
            ratio = ranker_gain / gain if ranker_gain is not None and gain > 0 else None
            entry = {"ne": by_task[task], "gain": gain, "ranker_gain": ranker_gain, "ratio": ratio}
            found.setdefault(task, {})[upstream] = entry
    return found


def transfer_lines(report: Mapping[str, Any]) -> list[str]:
    """Each ratio in a sentence; none where nothing was measured."""
    lines = []
    for task, upstreams in report.get("transfer", {}).items():
        for name, entry in upstreams.items():
            plain = entry["ne"] + entry["gain"]
            own = f"{title(task)}: upstream {name} by itself comes to NE {number(entry['ne'])} on the test events"
            if entry["gain"] <= 0:
                lines.append(f"{own}, no better than the ranker without vectors ({number(plain)}): no transfer ratio.")
            elif entry["ratio"] is not None:
                reads = number(plain - entry["ranker_gain"])
                lines.append(
                    f"{own}, the ranker to {number(plain)} without its vectors and {reads} with them: transfer ratio "
                    f"{number(entry['ratio'], 2)}."
                )
    return lines


def _table_bytes(schema: Schema, upstream: UpstreamConfig) -> int:
    """Of the upstream's tables and their optimizer."""
    return sum(size.bytes for size in table_sizes(build_upstream(upstream, schema)))


def _load(upstream: UpstreamConfig, schema: Schema, out: Path) -> UpstreamModel:
    """With whole tables, on the CPU."""
    model = build_upstream(upstream, schema)
    allocate(model)
    load_model(upstream_folder(out, upstream.name) / "checkpoints", nn.ModuleDict({"model": model}), parts=("model.",))
    return model.eval()


@torch.no_grad()  # not inference_mode: on CPUs FBGEMM's lookup exists as an autograd kernel only
def _predict(model: UpstreamModel, schema: Schema, files: list[Path], skip: Quarantine) -> tuple[NDArray, NDArray]:
    """Labels, NaN where there is none or it may still change, and logits of all rows, float32 [N, T]."""
    stream = EventStream(
        files,
        schema,
        batch_size=_ROWS,
        drop_last=False,
        skip=skip,
        transform=model.vocabulary.resolve,
        as_of=known_until(files, schema, skip),
    )
    labels, logits = [], []
    for batch in stream:
        labels.append(torch.where(batch.known, batch.labels.float(), float("nan")).numpy())
        logits.append(model(batch).logits.float().numpy())
    return np.concatenate(labels), np.concatenate(logits)
