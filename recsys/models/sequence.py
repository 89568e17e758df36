"""A user's (or item's) history as jagged embeddings -> tokens, by a Transformer over the elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.interactions import TransformerLayer
from recsys.models.jagged import JaggedLayout

AGE_BUCKETS = 32
"""Values of `<name>.age`: 0 below one second, then 1 + floor(log2(seconds)), at most 31."""
SEQUENCE_TOKENS = 2
"""Tokens a sequence feature becomes."""

_POSITIONS = 128  # positions of a sequence without max_length; elements further back share the last one
_INIT = 0.02


class SequenceEncoder(nn.Module):
    """Element embeddings of one sequence feature -> two tokens: the Transformer's masked mean, and the plain one.

    Each element is the sum of its embedding, the embedding of its position counted from the end, and, for a timed
    sequence, the embedding of its age bucket. The plain mean of the element embeddings passes by the Transformer
    because it carries a signal from the first step on (our choice). A row without elements gives a learned token
    and zeros.
    """

    def __init__(
        self, dim: int, *, layers: int, heads: int, max_length: int = 0, timed: bool = False, dropout: float = 0.0
    ) -> None:
        """`max_length`: only this many most recent elements count; 0 keeps all."""
        super().__init__()
        self.max_length = max_length
        self.position = nn.Parameter(torch.empty(max_length or _POSITIONS, dim))
        self.age = nn.Parameter(torch.empty(AGE_BUCKETS, dim)) if timed else None
        self.empty = nn.Parameter(torch.empty(dim))
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal embeddings; called again where the module was built on the meta device."""
        for parameter in (self.position, self.age, self.empty):
            if parameter is not None:
                nn.init.normal_(parameter, std=_INIT)

    def forward(
        self,
        values: Tensor,  # float [N, d], each row's elements oldest first
        lengths: Tensor,  # int [B]
        ages: Tensor | None = None,  # int64 [N], age buckets; required if timed
        longest: int = 0,  # no row has more elements; 0: read off the lengths where `max_length` does not say
    ) -> Tensor:  # [B, 2, d]
        # Reversed as a whole, every row has its most recent element first: padding then keeps those, and an
        # element's index is its position from the end.
        layout = JaggedLayout.build(lengths.flip(0), self.max_length or longest)
        elements = values.flip(0)
        positions = layout.positions(elements.shape[0]).clamp(max=self.position.shape[0] - 1)
        x = elements + F.embedding(positions, self.position)
        if self.age is not None:
            if ages is None:
                raise ValueError("a timed sequence was given no ages: the batch's sparse lacks its `<name>.age` key")
            x = x + F.embedding(ages.flip(0), self.age)
        for layer in self.layers:
            x = layer(x, layout)
        filled = (layout.lengths > 0).unsqueeze(1)
        pooled = torch.where(filled, self.norm(layout.mean(x)), self.empty)
        return torch.stack((pooled, layout.mean(elements)), dim=1).flip(0)
