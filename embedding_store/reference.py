"""The lookup in plain PyTorch: the truth that native code is compared with. Any device, any int64 id."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedding_store.dtypes import Dtype, Encoded, decode


def lookup(
    ids: Tensor,  # int64 [N], any values
    index_ids: Tensor,  # int64 [R], ascending, distinct
    index_rows: Tensor,  # int64 [R], the row of each
    segments: Sequence[Encoded],  # R rows in all; row numbers run through them in order
    dim: int,
    dtype: Dtype,
) -> tuple[Tensor, Tensor]:
    """Vectors float32 [N, D] and found bool [N]; zeros where an id is not found. Nothing is shared with the inputs."""
    vectors = torch.zeros(len(ids), dim, device=ids.device)
    if len(index_ids) == 0:
        return vectors, torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    position = torch.searchsorted(index_ids, ids).clamp_(max=len(index_ids) - 1)
    found = index_ids[position] == ids
    wanted = found.nonzero().squeeze(1)
    # Rows in ascending order fall into one run a segment, and memory is read forwards.
    rows, order = index_rows[position[wanted]].sort()
    wanted = wanted[order]
    stops = torch.tensor([segment.rows for segment in segments], device=ids.device).cumsum(0)
    runs = torch.searchsorted(rows, stops).tolist()
    first_row = run = 0
    for segment, next_run in zip(segments, runs, strict=True):
        if next_run > run:
            selected = segment.select(rows[run:next_run] - first_row)
            vectors.index_copy_(0, wanted[run:next_run], decode(selected, dim, dtype))
        first_row, run = first_row + segment.rows, next_run
    return vectors, found
