"""How long a call takes: on the device, between two events, and for a caller who waits, by the clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

AHEAD_CYCLES = 1_500_000  # of the GPU's clock: what the host needs to prepare any of the calls, generously

Input = TypeVar("Input")


class Clock:
    """Of a device. Before each call the GPU's L2 cache is filled with something else, by reading: what is written would
    be written back while the call is timed. On the CPU, where figures say nothing, both times are the clock's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._other: Tensor | None = None
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._other = torch.ones(4 * max(cache, 32 << 20) // 4, device=device)

    def on_device(self, call: Callable[[], Any]) -> float:
        """Microseconds between two events around the call, the host so far ahead that the GPU never waits for it."""
        if self.device.type != "cuda":
            return self.waited(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD_CYCLES)
        self._flush()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def waited(self, call: Callable[[], Any]) -> float:
        """Microseconds until the result is there, by the clock of who waits for it."""
        self._flush()
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return (time.perf_counter() - started) * 1e6

    def wait(self) -> None:
        """Until the device has done all it was told to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _flush(self) -> None:
        if self._other is not None:
            self._other.sum()


class Timings(Generic[Input]):
    """Microseconds of each variant, the variants in turn, so that what else the machine does meets all of them."""

    def __init__(self, clock: Clock, calls: Mapping[str, Callable[[Input], Any]]) -> None:
        self._clock = clock
        self._calls = calls
        self._on_device: dict[str, list[float]] = {name: [] for name in calls}
        self._waited: dict[str, list[float]] = {name: [] for name in calls}

    def run(self, inputs: Mapping[str, Sequence[Input]], rounds: int) -> None:
        """Time each variant on inputs of its own, all of equal number, after a first that does not count."""
        for name, call in self._calls.items():
            call(inputs[name][0])
        for _ in range(rounds):
            for turn in range(len(next(iter(inputs.values())))):
                for name, call in self._calls.items():
                    timed = partial(call, inputs[name][turn])
                    self._on_device[name].append(self._clock.on_device(timed))
                    self._waited[name].append(self._clock.waited(timed))

    def figures(self, name: str) -> dict[str, float]:
        """Of a variant: `device_us`, the median, `device_p99_us`, and the same of those who wait."""
        device, waited = quantiles(self._on_device[name]), quantiles(self._waited[name])
        return {"device_us": device[0], "device_p99_us": device[1], "wait_us": waited[0], "wait_p99_us": waited[1]}


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, rounded to hundredths."""
    both = torch.tensor([0.5, 0.99], dtype=torch.float64)
    p50, p99 = torch.tensor(values, dtype=torch.float64).quantile(both).tolist()
    return round(p50, 2), round(p99, 2)


def free(device: torch.device) -> None:
    """Give back what the last measurement had."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
