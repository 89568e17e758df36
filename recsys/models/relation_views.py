"""A candidate attends to what the relations of a graph make of two vectors, its own and the user's.

TransRA (arXiv 2508.02609) says that graph vectors are worth little to rankers as they are, and much with an attention
that is fine-tuned there; its form is published nowhere: this one is ours. A vector h has a view for each relation,
`h A_r + b_r`; the candidate's vector asks, and their weighted mean is added to h. What the graph has learned of
relations goes on learning at `rate` times the dense rate, by the same trick as in `recsys.models.learned`: AdamW's
steps do not hang on the size of a gradient either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelationViews(nn.Module):
    """Vectors [B, D] and the candidates' [B, D] -> vectors [B, D]. Until `set` it attends to nothing.

    Args:
        relations: R.
        dim: D.
        rate: of what the relations learn, beside the rate of the other dense parameters.
    """

    matrices: Tensor  # float32 [R, D, D], as the graph has them
    offsets: Tensor  # float32 [R, D]

    def __init__(self, relations: int, dim: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("matrices", torch.zeros(relations, dim, dim))
        self.register_buffer("offsets", torch.zeros(relations, dim))
        self.matrix_steps = nn.Parameter(torch.zeros(relations, dim, dim))
        self.offset_steps = nn.Parameter(torch.zeros(relations, dim))
        self.ask = nn.Linear(dim, dim)

    @torch.no_grad()
    def set(self, matrices: Tensor, offsets: Tensor) -> None:
        """What the graph has learned: A [R, D, D] and b [R, D]."""
        self.matrices.copy_(matrices)
        self.offsets.copy_(offsets)

    def forward(self, vectors: Tensor, candidates: Tensor) -> Tensor:
        matrices = self.matrices + self.rate * self.matrix_steps
        offsets = self.offsets + self.rate * self.offset_steps
        views = torch.einsum("bd,rde->bre", vectors, matrices) + offsets  # [B, R, D]
        asked = torch.einsum("bre,be->br", views, self.ask(candidates)) / math.sqrt(vectors.shape[1])
        return vectors + (asked.softmax(1).unsqueeze(2) * views).sum(1)
