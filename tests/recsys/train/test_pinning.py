"""Batches on their way to a GPU, on a machine that has none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.data.links import LinkStream
from recsys.train.distributed import Environment
from recsys.train.predict import device_batches
from tests.recsys.data.test_links import GRAPH, some_links
from tests.recsys.train.toy import make_stream

GPU = Environment(rank=0, world_size=1, local_world_size=1, device=torch.device("cuda", 0))


def links() -> LinkStream:
    return LinkStream(some_links([4, 4, 4]), GRAPH, batch_size=4, group=2, negatives=3)


@pytest.mark.parametrize("stream", [make_stream(2), links()], ids=["events", "links"])
def test_all_of_a_batch_is_page_locked(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor)
    for batch in device_batches(stream, GPU):
        there = {id(tensor) for tensor in pinned}
        assert all(id(tensor) in there for tensor in tensors(vars(batch).values()))
    assert pinned


def tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    """Of a batch, those of its ids too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors(value.values())
        elif hasattr(value, "lengths"):
            yield from (value.values(), value.lengths())
