"""Ways of looking up, each with a judge: its answer beside the CPU's, or beside the rows that it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.ids import Batch
from benchmarks.gpu.roof import Form
from embedding_store import Table

CHECKED = 1 << 16  # ids of a batch, drawn anew for each
CHECKED_BAGS = 1 << 12
FILL_ROWS = 1 << 20
ALIGNMENT = 16  # bytes: of FBGEMM's rows on a GPU
Answer = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Variant:
    """A way of looking up."""

    name: str
    call: Callable[[Batch], Any]
    judge: Callable[[Batch, Any], str | None]
    """What is wrong with the answer to a batch; None if nothing is."""
    optional: bool = False
    """Whether it is one of others, which may fail for reasons that are not ours."""
    prepare: Callable[[Sequence[Batch]], None] | None = None
    """Told all batches before any is looked up."""

    def check(self, batch: Batch) -> str | None:
        """What is wrong with its answer. Where that will lie an answer was spoilt before, so that what a kernel leaves
        out is no older, right one."""
        _spoil(self.call(batch))
        return self.judge(batch, self.call(batch))


def store(table: Table, reference: Table, out: torch.dtype, name: str = "store") -> Variant:
    """The store's lookup: the same bits as `reference` on the CPU."""
    return Variant(name, lambda batch: table.lookup(batch.ids, out), partial(unlike, reference))


def unlike(
    reference: Table,  # on the CPU
    batch: Batch,
    answer: Answer,
) -> str | None:
    """What of the vectors, and of which ids are found, is not as the reference gives it."""
    (vectors, found), places = answer, _some(len(batch.ids), CHECKED, batch.ids.device)
    expected, expected_found = reference.lookup(batch.ids[places].cpu(), vectors.dtype)
    if found is None or not torch.equal(found[places].cpu(), expected_found):
        return "other ids are found than on the CPU"
    wrong = (vectors[places].cpu() != expected).any(1).nonzero().squeeze(1)
    return f"{len(wrong)} of {len(places)} vectors are not the CPU's" if len(wrong) else None


def pooled_store(table: Table, reference: Table, out: torch.dtype) -> Variant:
    """The store's pooled lookup: what `reference` gives on the CPU, but for the order of sums."""

    def call(batch: Batch) -> Answer:
        return table.lookup_pooled(batch.ids, batch.offsets, None, "sum", out)

    def judge(batch: Batch, answer: Answer) -> str | None:
        pooled, found = answer
        expected, expected_found = reference.lookup_pooled(batch.ids.cpu(), batch.offsets.cpu(), None, "sum")
        if found is None or not torch.equal(found.cpu(), expected_found):
            return "other ids are found than on the CPU"
        return _off(pooled.cpu(), expected, batch.offsets.cpu().diff(), 1e-5)

    return Variant("store", call, judge)


def known_rows(form: Form, rows: int, device: torch.device, *, pooled: bool = False) -> Variant:
    """`torch.nn.functional.embedding`, or `embedding_bag`, of rows whose numbers are known: no index. Quantised rows
    have none; float16 ones, which are larger, stand for them."""
    weights = torch.randn(rows, form.dim, device=device, dtype=form.out)
    name = f"torch {'embedding_bag' if pooled else 'embedding'}, {str(form.out).removeprefix('torch.')}, known rows"

    def call(batch: Batch) -> Tensor:
        if pooled:
            return torch.nn.functional.embedding_bag(batch.rows, weights, batch.offsets[:-1], mode="sum")
        return torch.nn.functional.embedding(batch.rows, weights)

    def judge(batch: Batch, answer: Tensor) -> str | None:
        return _beside(answer, batch, lambda numbers: weights[numbers].float().cpu(), 2e-3, pooled=pooled)

    return Variant(name, call, judge, optional=True)


def fbgemm(
    form: Form, rows: int, device: torch.device, *, pooled: bool = False, cached: float | None = None
) -> Variant:
    """FBGEMM's inference module on rows whose numbers are known, of random values.

    Args:
        cached: the share of the rows that it keeps on the device; the rest lies in the host's memory.

    Raises:
        ImportError: FBGEMM is not there.
    """
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    stored = {"float32": "FP32", "float16": "FP16", "int8": "INT8", "int4": "INT4"}[form.dtype]
    place = "HOST" if device.type == "cpu" else "DEVICE" if cached is None else "MANAGED_CACHING"
    module = IntNBitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[("t", rows, form.dim, SparseType[stored], EmbeddingLocation[place])],
        device=device,
        pooling_mode=PoolingMode.SUM if pooled else PoolingMode.NONE,
        output_dtype=SparseType.FP32 if form.out == torch.float32 else SparseType.FP16,
        bounds_check_mode=BoundsCheckMode.NONE,
        cache_load_factor=cached or 0.2,
        row_alignment=ALIGNMENT,  # on a CPU it would be 1
        uvm_host_mapped=True,  # page-locked, as our cold rows are: not managed memory
    )
    module.initialize_weights()
    values, scales = module.split_embedding_weights()[0]
    _fill(values, scales, form)

    def expected(numbers: Tensor) -> Tensor:
        numbers = numbers.to(values.device)
        stored_rows = values[numbers].contiguous().cpu()
        return _decoded(stored_rows, None if scales is None else scales[numbers].contiguous().cpu(), form)

    def call(batch: Batch) -> Tensor:
        return module(batch.rows32, batch.offsets32)

    def judge(batch: Batch, answer: Tensor) -> str | None:
        return _beside(answer, batch, expected, 1e-2, pooled=pooled)

    kept = "known rows" if cached is None else f"known rows, {cached:.0%} cached"
    return Variant(f"fbgemm {form}, {kept}", call, judge, optional=True)


def _fill(values: Tensor, scales: Tensor | None, form: Form) -> None:
    """Random rows, and scales with which quantised ones lie within -1.3 .. 1.3."""
    for first in range(0, len(values), FILL_ROWS):
        some = values[first : first + FILL_ROWS]
        if scales is None:
            drawn = torch.randn(len(some), form.dim, device=values.device).to(getattr(torch, form.dtype))
            some[:, : form.dim * drawn.itemsize] = drawn.view(torch.uint8)  # what is left of a row is padding
        else:
            some.copy_(torch.randint(256, some.shape, dtype=torch.uint8, device=values.device))
    if scales is not None:
        levels = 255 if form.dtype == "int8" else 15
        pair = torch.tensor([2.6 / levels, -1.3], dtype=torch.float16, device=values.device)
        scales.copy_(pair.view(torch.uint8).expand(len(scales), -1))


def _decoded(values: Tensor, scales: Tensor | None, form: Form) -> Tensor:
    """float32 [n, D] of FBGEMM's rows, uint8 [n, bytes], the last padding, with scales uint8 [n, 4]: two float16."""
    if scales is None:
        return values.view(getattr(torch, form.dtype))[:, : form.dim].float()
    if form.dtype == "int4":
        values = torch.stack((values & 15, values >> 4), dim=2).flatten(1)
    scale, offset = scales.view(torch.float16).float().unbind(1)
    return values[:, : form.dim].float() * scale[:, None] + offset[:, None]


def _beside(
    got: Tensor, batch: Batch, expected: Callable[[Tensor], Tensor], tolerance: float, *, pooled: bool
) -> str | None:
    """What is wrong with vectors [N, D], or pooled ones [B, D], beside those of the rows that they should be of."""
    if not pooled:
        places = _some(len(batch.ids), CHECKED, batch.ids.device)
        ones = torch.ones(len(places), dtype=torch.int64)
        return _off(got[places].cpu(), expected(batch.rows[places]), ones, tolerance)
    offsets = batch.offsets.cpu()
    bags = _some(len(offsets) - 1, CHECKED_BAGS, torch.device("cpu"))
    sums = torch.stack([expected(batch.rows[offsets[b] : offsets[b + 1]]).sum(0) for b in bags.tolist()])
    return _off(got[bags.to(got.device)].cpu(), sums, offsets.diff()[bags], tolerance)


def _off(
    got: Tensor,  # [n, D]
    expected: Tensor,  # float32 [n, D]
    lengths: Tensor,  # int64 [n]: of how many rows each is the sum
    tolerance: float,
) -> str | None:
    """What is wrong by more than `tolerance` a row and the rounding of the result."""
    allowed = tolerance * lengths[:, None] + torch.finfo(got.dtype).eps * expected.abs()
    wrong = ~((got.float() - expected).abs() <= allowed)  # NaN is wrong too
    bad = int(wrong.any(1).sum())
    return f"{bad} of {len(got)} vectors are not what they should be" if bad else None


def _some(count: int, most: int, device: torch.device) -> Tensor:
    """Places among so many, int64, all of them if they are few; the first and the last always."""
    if count <= most:
        return torch.arange(count, device=device)
    places = torch.randint(count, (most,), device=device)
    places[0], places[1] = 0, count - 1
    return places


def _spoil(answer: Any) -> None:
    """Have an answer's tensors hold what no lookup gives, or what it does not give here."""
    for values in answer if isinstance(answer, tuple) else (answer,):
        if not isinstance(values, Tensor):
            continue
        if values.is_floating_point():
            values.fill_(float("nan"))
        else:
            values.bitwise_not_()
