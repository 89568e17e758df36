"""DHEN: layers of different interaction modules side by side (arXiv 2203.11014)."""

from __future__ import annotations

from torch import Tensor, nn

from recsys.config import ModelConfig
from recsys.models.interactions import build_interaction, token_map


class DHENLayer(nn.Module):
    """`Y = LayerNorm(Ensemble_i(Interaction_i(X)) + Shortcut(X))` over tokens; the ensemble is the sum (our choice)."""

    def __init__(
        self,
        modules: tuple[str, ...],
        tokens_in: int,
        tokens_out: int,
        dim: int,
        *,
        heads: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.interactions = nn.ModuleList(
            build_interaction(name, tokens_in, tokens_out, dim, heads=heads, dropout=dropout) for name in modules
        )
        self.shortcut = token_map(tokens_in, tokens_out)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, m_out, d]
        total = self.shortcut(x)
        for interaction in self.interactions:
            total = total + interaction(x)
        return self.norm(total)


class DHEN(nn.Sequential):
    """The backbone of a tower: `config.layers`, from `tokens_in` tokens to `config.tokens` of `config.token_dim`."""

    def __init__(self, tokens_in: int, config: ModelConfig) -> None:
        counts = [tokens_in] + [config.tokens] * len(config.layers)
        super().__init__(
            *(
                DHENLayer(modules, m, m_out, config.token_dim, heads=config.heads, dropout=config.dropout)
                for modules, m, m_out in zip(config.layers, counts, counts[1:], strict=False)
            )
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, tokens, d]
        return super().forward(x)
