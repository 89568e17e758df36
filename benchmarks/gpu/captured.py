"""Lookups captured in CUDA graphs, a graph a batch: a replay looks up what its batch holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.ids import Batch
from benchmarks.gpu.variants import Variant


class Captured:
    """A call that is captured for every batch beforehand, and replayed. The CPU, which has no graphs, calls.

    Each graph has ids and an answer of its own, so that replays of one batch after the other find nothing in the cache.
    """

    def __init__(self, call: Callable[[Batch], Any], device: torch.device) -> None:
        self._call = call
        self._device = device
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Any]] = {}  # of a batch's identity, with the answer
        self.batches: list[Batch] = []
        """Those that were captured last."""

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Capture these, in the place of those before."""
        self.batches = list(batches)
        self._graphs.clear()
        if self._device.type != "cuda":
            return
        self._call(batches[0])  # loads kernels, which a capture does not
        torch.cuda.synchronize(self._device)
        for batch in batches:
            graph = torch.cuda.CUDAGraph()
            # A capture that fails leaves its own stream current: what is measured next would run there.
            with torch.cuda.stream(torch.cuda.current_stream(self._device)), torch.cuda.graph(graph):
                answer = self._call(batch)
            self._graphs[id(batch)] = graph, answer

    def __call__(self, batch: Batch) -> Any:
        """The answer, in memory that the next replay of this batch writes anew."""
        if self._device.type != "cuda":
            return self._call(batch)
        graph, answer = self._graphs[id(batch)]
        graph.replay()
        return answer


def replayed(variant: Variant, name: str, device: torch.device) -> tuple[Variant, Captured]:
    """The same lookup, its batches captured before; judged as it is."""
    captured = Captured(variant.call, device)
    return replace(variant, name=name, call=captured, prepare=captured.prepare), captured
