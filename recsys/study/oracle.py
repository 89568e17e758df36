"""What no model can beat: the true probabilities, where events carry them as outcomes `oracle_<label>`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema, SchemaError


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
