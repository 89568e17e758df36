"""A schema with every owner and kind, and random batches that fit a schema."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import ModelConfig
from recsys.data.batch import Batch
from recsys.data.schema import OWNERS, Feature, Label, Schema
from recsys.models.contrastive import Drawn

TAU = 0.2
"""Temperature of the contrastive loss."""
SMALL = ModelConfig(token_dim=8, layers=(("masknet", "mlp"), ("transformer", "dcnv2")), tokens=3, out_dim=4)


def full_schema() -> Schema:
    """Every owner and kind; two features share a table, and one id shares a sequence's table."""
    return Schema(
        features=(
            Feature(name="user", owner="user", kind="id", rows=20),
            Feature(name="interests", owner="user", kind="ids", rows=7, table="topic"),
            Feature(name="main.topic", owner="user", kind="id", rows=7, table="topic"),
            Feature(name="history", owner="user", kind="sequence", rows=30, max_length=5, time="history_time"),
            Feature(name="likes", owner="user", kind="sequence", rows=30, table="like"),
            Feature(name="last_liked", owner="user", kind="id", rows=30, table="like"),
            Feature(name="age", owner="user", kind="dense"),
            Feature(name="profile", owner="user", kind="vector", width=3),
            Feature(name="item", owner="item", kind="id", rows=30),
            Feature(name="tags", owner="item", kind="ids", rows=9),
            Feature(name="duration", owner="item", kind="dense"),
            Feature(name="hour", owner="context", kind="id", rows=24),
            Feature(name="battery", owner="context", kind="dense"),
            Feature(name="seen_before", owner="interaction", kind="dense"),
            Feature(name="cross", owner="interaction", kind="id", rows=11, table="item"),
        ),
        labels=(Label(name="click"), Label(name="buy", valid="click")),
    )


def random_batch(schema: Schema, size: int, seed: int = 0, owners: tuple[str, ...] = OWNERS) -> Batch:
    """`size` random rows with the features of `owners` only."""
    generator = torch.Generator().manual_seed(seed)
    keys, lengths, values = [], [], []
    dense: dict[str, list[Tensor]] = {}
    for feature in schema.owned_by(*owners):
        if not feature.rows:
            columns = torch.randn(size, max(feature.width, 1), generator=generator) * 3
            dense.setdefault(feature.owner, []).append(columns)
            continue
        longest = 1 if feature.kind == "id" else feature.max_length or 4
        count = torch.randint(0, longest + 1, (size,), generator=generator)
        total = int(count.sum())
        keys.append(feature.name)
        lengths.append(count)
        values.append(torch.randint(0, feature.rows, (total,), generator=generator))
        if feature.time:
            keys.append(feature.age_key)
            lengths.append(count)
            values.append(torch.randint(0, 32, (total,), generator=generator))
    labels = (torch.rand(size, len(schema.labels), generator=generator) < 0.4).float()
    mask = torch.stack([labels[:, 0] > 0 if label.valid else torch.ones(size).bool() for label in schema.labels], dim=1)
    return Batch(
        dense={owner: torch.cat(columns, dim=1) for owner, columns in dense.items()},
        sparse=KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths)),
        labels=labels * mask,
        label_mask=mask,
        user_ids=torch.randint(0, 20, (size,), generator=generator),
        item_ids=torch.randint(0, 30, (size,), generator=generator),
        timestamps=torch.arange(size),
    )


def contrasted_rows(size: int, positives: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """user and item [B, 3], user and item ids [B] (few, so that they repeat), positive [B], log_q [B] (one an item)."""
    generator = torch.Generator().manual_seed(seed)
    user, item = torch.randn(2, size, 3, generator=generator, dtype=torch.float64)
    user_ids = torch.randint(-3, 3, (size,), generator=generator)
    item_ids = torch.randint(-4, 4, (size,), generator=generator)
    positive = torch.zeros(size, dtype=torch.bool)
    positive[torch.randperm(size, generator=generator)[:positives]] = True
    return user, item, user_ids, item_ids, positive, -1 - (item_ids.double() + 4) / 3


def drawn_items(size: int, seed: int = 0) -> Drawn:
    """Of ten items, four of which are nobody's positive and three of which are those of `contrasted_rows`."""
    generator = torch.Generator().manual_seed(seed + 1000)
    ids = torch.randint(-4, 6, (size,), generator=generator)
    log_q = (-1 - (ids.double() + 4) / 3).masked_fill(ids > 3, -math.inf)
    return Drawn(torch.randn(size, 3, generator=generator, dtype=torch.float64), ids, log_q, 10)
