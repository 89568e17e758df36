"""Carry an upstream's old vectors over to the space of a cold retrain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.refresh.align import AlignmentQuality, procrustes
from recsys.refresh.arms import ENTITIES
from recsys.refresh.content import BATCH, Content
from recsys.refresh.embed import embed, gather
from recsys.refresh.publish import Publisher
from recsys.train.distributed import Environment, broadcast


def align_spaces(
    publisher: Publisher, content: Content, before: int, folder: Path, environment: Environment
) -> tuple[Tensor, AlignmentQuality]:
    """The rotation from the previous snapshots' space to the one of `content`'s model, found on the day's entities.

    One for users and items together, which share an inner product; kept as `folder/rotation.npy`. A collective.

    Args:
        publisher: whose plain series hold the old vectors.
        content: the new model and the day's entities.
        before: the newest snapshots before this time, ms, are the old ones.
        folder: of the training.
        environment: this rank.

    Returns:
        rotation float32 [D, D] with old @ rotation ~ new, and how well it fits.

    Raises:
        AlignmentError: too few entities of the day have an old vector.
        VersionNotFoundError: there are no old snapshots.
    """
    old, new = [], []
    for owner, name in zip(ENTITIES, publisher.plain, strict=True):
        table = publisher.store.series(name).as_of(before - 1).load() if environment.is_main else None
        for part in embed(content.model, content.schema, content.events[owner], owner, environment, BATCH):
            columns = gather(part, BATCH, environment)
            if table is None or columns is None:
                continue
            ids, vectors, *_ = columns
            known, found = table.lookup(ids)
            old.append(known[found])
            new.append(vectors[found])
    result = None
    if environment.is_main:
        result = procrustes(torch.cat(old), torch.cat(new))
        np.save(folder / "rotation.npy", result[0].numpy())
    return broadcast(result, environment)
