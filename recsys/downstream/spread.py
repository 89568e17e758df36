"""Batches with vectors whose rows are spread over the ranks: all ranks join theirs together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from recsys.data.batch import Batch
from recsys.data.stream import EventStream
from recsys.downstream.features import StoreFeatures
from recsys.train.distributed import Environment


class SpreadStream(EventStream):
    """An `EventStream` that joins `features`, when a batch is asked for: where the ranks go in step, as they do in a
    training and in a prediction. The input thread, which runs ahead on each rank as it can, may call no collective. A
    rank that has no batch left joins in with the others' last ones. A collective, as each step of its iteration."""

    def __init__(self, *args: Any, features: StoreFeatures, environment: Environment, **options: Any) -> None:
        super().__init__(*args, **options)
        self._features = features
        most = torch.tensor([self.total_steps], device=environment.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        self._others_more = int(most) - self.total_steps

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            yield self._features(batch)
        for _ in range(self._others_more):
            self._features.idle()
