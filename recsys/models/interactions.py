"""Interaction modules of a DHEN layer: tokens [B, m, d] in, tokens [B, m_out, d] out (arXiv 2203.11014).

MaskNet, DCNv2 and MLP look at the flattened tokens; their vector outputs are projected back to tokens. The Transformer
works token by token and mixes the tokens linearly where the counts differ.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recsys.config import INTERACTIONS
from recsys.models.jagged import JaggedLayout

_FEED_FORWARD = 2  # width of a Transformer's feed-forward part over d; ours (4 is usual), halves its cost on CPUs
_CROSS_LAYERS = 2  # cross layers of one DCNv2 module
_CROSS_RANK = 4  # DCNv2's W is U V of rank width / 4, as its authors recommend


class MaskNet(nn.Module):
    """One MaskNet block: `relu(LN(W (LN(v) * mask)))`, `mask = W2 relu(W1 v + b1) + b2`, v the flattened tokens.

    The inner LN is taken per token, as MaskNet does on feature embeddings. One block only: stacked DHEN layers are
    the serial form, modules side by side the parallel one. The mask's hidden width is m_out * d / 2 (ours).
    """

    def __init__(self, tokens_in: int, tokens_out: int, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        width, out = tokens_in * dim, tokens_out * dim
        hidden = max(out // 2, 1)
        self.tokens_out = tokens_out
        self.token_norm = nn.LayerNorm(dim)
        self.mask = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.project = nn.Linear(width, out)
        self.norm = nn.LayerNorm(out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, m_out, d]
        masked = self.token_norm(x).flatten(1) * self.mask(x.flatten(1))
        out = F.relu(self.norm(self.project(masked)))
        return self.dropout(out).unflatten(1, (self.tokens_out, -1))


class Crosses(nn.ModuleList):
    """Cross layers `x_{l+1} = x0 * (W x_l + b) + x_l` with a low-rank W = U V."""

    def __init__(self, width: int, layers: int = _CROSS_LAYERS) -> None:
        rank = max(width // _CROSS_RANK, 1)
        super().__init__(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width)) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, w] -> [B, w]
        crossed = x
        for layer in self:
            crossed = x * layer(crossed) + crossed
        return crossed


class DCNv2(nn.Module):
    """Cross layers over the flattened tokens, then a projection to tokens."""

    def __init__(self, tokens_in: int, tokens_out: int, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        width = tokens_in * dim
        self.tokens_out = tokens_out
        self.cross = Crosses(width)
        self.project = nn.Linear(width, tokens_out * dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, m_out, d]
        return self.dropout(self.project(self.cross(x.flatten(1)))).unflatten(1, (self.tokens_out, -1))


class MLP(nn.Module):
    """Linear, GELU, Linear over the flattened tokens; hidden width m_out * d."""

    def __init__(self, tokens_in: int, tokens_out: int, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        out = tokens_out * dim
        self.tokens_out = tokens_out
        self.layers = nn.Sequential(
            nn.Linear(tokens_in * dim, out), nn.GELU(), nn.Dropout(dropout), nn.Linear(out, out)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, m_out, d]
        return self.layers(x.flatten(1)).unflatten(1, (self.tokens_out, -1))


class TransformerLayer(nn.Module):
    """Pre-norm encoder layer over dense tokens [B, m, d], or over jagged rows packed in [N, d].

    Of jagged rows only the attention is padded: norms and linear layers see no padding at all.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, _FEED_FORWARD * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(_FEED_FORWARD * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, layout: JaggedLayout | None = None) -> Tensor:  # [B, m, d] or [N, d], same out
        qkv = self.qkv(self.attention_norm(x))
        if layout is None:
            attended = self._attend(qkv, None)
        else:
            attended = layout.pack(self._attend(layout.pad(qkv), layout.visible()), x.shape[0])
        x = x + self.dropout(self.project(attended))
        return x + self.feed_forward(x)

    def _attend(
        self,
        qkv: Tensor,  # [B, L, 3 d]
        visible: Tensor | None,  # bool [B, L]
    ) -> Tensor:  # [B, L, d]
        # [B, heads, L, d / heads] each; split before the heads are: the gradient is then one concatenation.
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=2))
        mask = None if visible is None else visible[:, None, None, :]
        rate = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        return attended.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """One encoder layer over the tokens, then a linear map over the token dimension where m_out differs from m."""

    def __init__(self, tokens_in: int, tokens_out: int, dim: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = TransformerLayer(dim, heads, dropout=dropout)
        self.mix = token_map(tokens_in, tokens_out)

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, m_out, d]
        return self.mix(self.layer(x))


class TokenMixing(nn.Module):
    """A linear map over the token dimension, the same for every component."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens_in, tokens_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, m_out, d]
        return self.linear(x.transpose(1, 2)).transpose(1, 2)


def token_map(tokens_in: int, tokens_out: int) -> nn.Module:
    """The identity if the token counts match, else a linear map over the token dimension."""
    return nn.Identity() if tokens_in == tokens_out else TokenMixing(tokens_in, tokens_out)


def build_interaction(
    name: str, tokens_in: int, tokens_out: int, dim: int, *, heads: int, dropout: float = 0.0
) -> nn.Module:
    """The interaction module of this config name.

    Raises:
        ValueError: `name` is not one of `recsys.config.INTERACTIONS`.
    """
    if name == "transformer":
        return Transformer(tokens_in, tokens_out, dim, heads=heads, dropout=dropout)
    flat: dict[str, type[MaskNet] | type[DCNv2] | type[MLP]] = {"masknet": MaskNet, "dcnv2": DCNv2, "mlp": MLP}
    if name not in flat:
        raise ValueError(f"interaction module {name!r} is unknown; use one of {', '.join(INTERACTIONS)}")
    return flat[name](tokens_in, tokens_out, dim, dropout=dropout)
