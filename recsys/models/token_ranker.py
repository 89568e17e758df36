"""What rankers over tokens have in common: a token for each feature, and a Transformer over each sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from recsys.config import ModelConfig, NetworkConfig
from recsys.data.batch import Batch
from recsys.data.schema import OWNERS, Schema
from recsys.models.learned import learned_tables
from recsys.models.ranker import Head, Ranker, RankerBody, TowerHead
from recsys.models.series import SeriesSpec
from recsys.models.tokens import OwnerTokens


class TokenRanker(Ranker):
    """Base: one token a feature, two a sequence, `trunk` and `head` over them. Arguments and errors as of `DLRM`."""

    HEAD: Callable[[NetworkConfig, int], Head] = TowerHead

    def __init__(
        self, schema: Schema, config: NetworkConfig, series: Sequence[SeriesSpec] = (), tasks: int = 1
    ) -> None:
        super().__init__(schema, series)
        self.tokens = OwnerTokens(schema, OWNERS, tokens_config(config))
        head = self.HEAD(config, tasks)
        trunk = self.trunk(self.tokens.count, config, head.width)
        self.network = RankerBody(trunk, head, fields=self.tokens.count, config=config, series=series)
        self.learned = learned_tables(schema, series, config)

    def forward(self, batch: Batch) -> Tensor:  # [B, T]
        return self.network(self.tokens(batch), *self.stored(batch))

    def outputs(self) -> list[nn.Linear]:
        return self.network.outputs()

    @abstractmethod
    def trunk(self, tokens: int, config: NetworkConfig, width: int) -> nn.Module:
        """Tokens [B, m, e] -> [B, H]."""


def tokens_config(config: NetworkConfig) -> ModelConfig:
    """The same sizes in the words of the upstreams, whose tokens and layers these are."""
    return ModelConfig(
        token_dim=config.embedding_dim,
        layers=config.layers,
        tokens=config.tokens,
        heads=config.heads,
        sequence_layers=config.sequence_layers,
        dropout=config.dropout,
    )
