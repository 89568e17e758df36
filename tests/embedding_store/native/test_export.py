"""The ops in compiled and exported programs: no graph break, any batch size, without Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedding_store.native import ops
from tests.embedding_store.small_table import small_table

TABLE = small_table(range(0, 200, 2), 8, "int8")


class Ranker(nn.Module):
    """One entity and a bag of entities, projected."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("storage", TABLE.storage.clone())
        self.register_buffer("layout", TABLE.layout)
        self.projection = nn.Linear(17, 4)

    def forward(self, ids: Tensor, bag_ids: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """ids int64 [B], bag_ids int64 [N], offsets int64 [B + 1], weights float32 [N] -> [B, 4]."""
        where = (self.storage, self.layout, 8, "int8")
        vectors, found = ops.lookup(ids, *where)
        pooled, _ = ops.lookup_pooled(bag_ids, offsets, weights, *where, mode="mean")
        return self.projection(torch.cat((vectors, pooled, found[:, None].float()), dim=1))


def batch(rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(0, 4, (rows,), generator=generator)
    lengths[0] = 5  # export takes sizes of 0 and 1 for constants
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    count = int(offsets[-1])
    ids, bag_ids = (torch.randint(0, 200, (n,), generator=generator) for n in (rows, count))
    return ids, bag_ids, offsets, torch.rand(count, generator=generator)


def dynamic_shapes() -> tuple[dict[int, torch.export.Dim], ...]:
    rows, count = torch.export.Dim("rows", min=2), torch.export.Dim("count", min=2)
    return {0: rows}, {0: count}, {0: rows + 1}, {0: count}


@pytest.fixture
def ranker() -> Ranker:
    torch.manual_seed(0)
    return Ranker().eval()


def test_compile_has_no_graph_break_and_gives_the_same_gradients(ranker: Ranker):
    # Traced once for any size; the C++ that Inductor makes is compiled where the layer is tested.
    compiled = torch.compile(ranker, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        ids, bag_ids, offsets, weights = batch(rows)
        gradients = []
        for module in (ranker, compiled):
            leaf = weights.clone().requires_grad_()
            output = module(ids, bag_ids, offsets, leaf)
            output.sum().backward()
            gradients.append((output.detach(), leaf.grad))
        torch.testing.assert_close(gradients[1], gradients[0])
        assert bool(gradients[0][1].any())


def test_export_takes_any_batch_size_and_survives_a_file(ranker: Ranker, tmp_path: Path):
    program = torch.export.export(ranker, batch(5), dynamic_shapes=dynamic_shapes())
    torch.export.save(program, tmp_path / "ranker.pt2")
    loaded = torch.export.load(tmp_path / "ranker.pt2").module()
    for rows in (5, 2, 64):
        torch.testing.assert_close(loaded(*batch(rows)), ranker(*batch(rows)))
