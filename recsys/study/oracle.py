"""What no model can beat, where a synthetic market tells it.

The true probabilities stand in the events, as outcomes `oracle_<label>`. What a user most likely wants of all items on
sale stands in files of its own, one a day: `user_id`, and `items`, a list of item ids, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema, SchemaError
from recsys.dates import DAY_MS


def oracle_scores(
    files: Sequence[Path], schema: Schema, label: str, skip: Quarantine = NOTHING
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and true probabilities of the rows for which `label` is valid, in the order of the files: [N] each.

    Rows that are skipped are left out.

    Raises:
        SchemaError: the schema has no such label, or its data carry no oracle for it.
    """
    chosen, oracle = schema.label(label), f"oracle_{label}"
    if oracle not in schema.outcomes:
        raise SchemaError(f"no outcome {oracle!r} in the schema: only a synthetic market knows the true probability")
    wanted = [chosen.name, oracle] + ([chosen.valid] if chosen.valid else [])
    tables = [(file, pq.ParquetFile(file).read(wanted)) for file in files]
    table = pa.concat_tables([found.filter(pa.array(skip.kept(file, len(found)))) for file, found in tables])
    rows = slice(None) if not chosen.valid else table[chosen.valid].to_numpy() == 1
    return table[chosen.name].to_numpy()[rows].astype(np.int64), table[oracle].to_numpy()[rows].astype(np.float64)


def oracle_recall(
    data: Path,
    lists: str,
    positives: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    k: Sequence[int] = (10, 50),
) -> dict[int, float]:
    """Mean over users of the share of their positives among the first k items that the oracle lists for their day.

    Args:
        data: folder of the prepared data.
        lists: pattern of a day's file within it, `market/oracle/{day}/*.parquet`.
        positives: user ids [P], item ids [P] and times [P] in ms; what is repeated within a day counts once.
        k: cut-offs.

    Returns:
        k -> recall; NaN without positives. A user whom a day's file does not list finds nothing on it.

    Raises:
        DataError: a day has no file, or a cut-off is below 1 or beyond the length of the lists.
    """
    users, items, times = (np.asarray(column, np.int64) for column in positives)
    days = times // DAY_MS
    users, items, days = np.unique(np.stack([users, items, days]), axis=1)
    place = np.full(len(users), np.iinfo(np.int64).max)
    for day in np.unique(days):
        (file,) = find_files(data, (lists.replace("{day}", str(np.datetime64(int(day), "D"))),))
        today = np.flatnonzero(days == day)
        best, known = oracle_items(file, users[today])
        if min(k) < 1 or max(k) > best.shape[1]:
            raise DataError(f"k is {tuple(k)}, and {file} lists {best.shape[1]} items a user: use 1 to as many")
        hit = (best == items[today, None]) & known[:, None]  # [p, K]
        place[today] = np.where(hit.any(axis=1), hit.argmax(axis=1), place[today])
    _, user = np.unique(users, return_inverse=True)
    wanted = np.bincount(user)
    return {cut: float(np.mean(np.bincount(user, place < cut) / wanted)) if len(user) else np.nan for cut in k}


def oracle_items(
    file: Path,
    user_ids: NDArray[np.int64],  # [U]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:  # [U, K], [U]
    """Item ids that the oracle of a day lists for each user, best first, and whether it lists any for that user."""
    table = pq.ParquetFile(file).read(["user_id", "items"])
    listed = table["user_id"].to_numpy()
    items = pc.list_flatten(table["items"]).to_numpy().reshape(len(listed), -1)
    order = np.argsort(listed)
    row = order[np.searchsorted(listed, user_ids, sorter=order).clip(max=len(listed) - 1)]
    return items[row], listed[row] == user_ids
