"""What is done with tables that are on a GPU: on one that has shapes and devices, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recsys.train.tables import renew_rows


def test_rows_begin_anew_there() -> None:
    """A tensor takes rows by their numbers, but none of another device."""
    config = EmbeddingBagConfig(name="user", embedding_dim=4, num_embeddings=5000, feature_names=["user"])
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    with FakeTensorMode():
        weight = torch.empty(5000, 4, device="cuda:0")
        tables.embedding_bags["user"].weight = nn.Parameter(weight, requires_grad=False)
        tables._device = weight.device
        before = tables.embedding_bags["user"].weight._version
        renew_rows(tables, np.array([0, 7, 4999]), 3)
        assert tables.embedding_bags["user"].weight._version > before  # they were written
