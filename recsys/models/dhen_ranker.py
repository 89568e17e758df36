"""The CVR ranker of the DERM paper (arXiv 2509.04337): DHEN layers (arXiv 2203.11014).

Sizes are our choice, the paper names none.
"""

from __future__ import annotations

from torch import nn

from recsys.config import NetworkConfig
from recsys.models.dhen import DHEN
from recsys.models.token_ranker import TokenRanker, tokens_config


class DHENRanker(TokenRanker):
    """DHEN layers over the tokens, then an MLP for each task."""

    def trunk(self, tokens: int, config: NetworkConfig, width: int) -> nn.Module:
        flat = config.tokens * config.embedding_dim
        return nn.Sequential(DHEN(tokens, tokens_config(config)), nn.Flatten(), nn.Linear(flat, width))
