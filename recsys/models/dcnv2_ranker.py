"""The CTR ranker of the DERM paper (arXiv 2509.04337): DCNv2 crosses (arXiv 2008.13535) and a mixture of experts.

Sizes are our choice, the paper names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recsys.config import NetworkConfig
from recsys.models.interactions import Crosses
from recsys.models.ranker import Head
from recsys.models.token_ranker import TokenRanker


class ExpertHead(Head):
    """Experts that all tasks share, weighted by a gate of each task: MMoE (Ma et al., KDD 2018).

    An expert is the top MLP without its last layer, which each task has of its own. `config.hidden` has two widths or
    more: with one there is nothing that could be an expert.
    """

    def __init__(self, config: NetworkConfig, tasks: int) -> None:
        super().__init__()
        self.width, *rest = config.hidden
        self.start = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout))
        self.experts = nn.ModuleList(self._expert(rest, config.dropout) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(self.width, config.experts) for _ in range(tasks))
        self.towers = nn.ModuleList(nn.Linear(config.hidden[-1], 1) for _ in range(tasks))

    def _expert(self, widths: Sequence[int], dropout: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        for wider, width in pairwise((self.width, *widths)):
            layers += [nn.Linear(wider, width), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:  # [B, H] -> [B, T]
        hidden = self.start(hidden)
        said = torch.stack([expert(hidden) for expert in self.experts], dim=1)  # [B, E, w]
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = gate(hidden).softmax(dim=1).unsqueeze(1)  # [B, 1, E]
            logits.append(tower(torch.bmm(weights, said).squeeze(1)))
        return torch.cat(logits, dim=1)

    def outputs(self) -> list[nn.Linear]:
        return [tower for tower in self.towers if isinstance(tower, nn.Linear)]


class DCNv2Ranker(TokenRanker):
    """Cross layers over all tokens, then experts that the tasks share."""

    HEAD = ExpertHead

    def trunk(self, tokens: int, config: NetworkConfig, width: int) -> nn.Module:
        flat = tokens * config.embedding_dim
        return nn.Sequential(nn.Flatten(), Crosses(flat, config.cross_layers), nn.Linear(flat, width))
