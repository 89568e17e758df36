"""One cell of a measurement: all variants on one kind of batch, each checked once, then timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu.ids import Batch
from benchmarks.gpu.journal import Journal, PeerError, first_line
from benchmarks.gpu.names import ALONE_VARIABLE, COPY
from benchmarks.gpu.roof import SameBytes, copy_rate
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import Clock, Timings
from benchmarks.gpu.variants import Variant


class Bench:
    """Measures cells on a device whose copy rate is known, and writes them down one by one."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings = settings
        self.clock = Clock(settings.device)
        self.rate = copy_rate(settings, self.clock)
        self._journal = journal
        journal.write("roof", copy_GB_per_s=round(self.rate / 1e9, 1))

    def cell(
        self,
        variants: Sequence[Variant],
        draw: Callable[[int], list[Batch]],
        moved: Callable[[Batch], int],
        limits: Callable[[Batch], dict[str, float]] = lambda _: {},
        **fields: Any,
    ) -> None:
        """Check and time every variant, each on batches of its own, and a copy of as many bytes.

        Args:
            variants: the store's first.
            draw: batches; others for another seed.
            moved: bytes that the lookup of a batch must move.
            limits: other bounds of a batch, name -> microseconds; the share of each that a variant reaches is written.
            fields: what the cell is of.

        Raises:
            PeerError: a variant that is optional has broken the device; one that is not raises what it raised.
        """
        inputs = {variant.name: draw(seed) for seed, variant in enumerate(variants)}
        sound = [variant for variant in variants if self._is_sound(variant, inputs[variant.name], fields)]
        if not sound:
            return
        batch = inputs[sound[0].name][0]
        bytes_moved, bounds = moved(batch), limits(batch)
        bounds = {"roof": bytes_moved / self.rate * 1e6, **bounds}
        calls: dict[str, Callable[[Batch], Any]] = {variant.name: variant.call for variant in sound}
        calls[COPY] = SameBytes(bytes_moved, self.settings.device)
        inputs[COPY] = inputs[sound[0].name]
        timings = Timings(self.clock, calls)
        timings.run(inputs, self.settings.rounds)
        for name in calls:
            figures = timings.figures(name)
            reached = {f"of_{bound}": round(least / figures["device_us"], 4) for bound, least in bounds.items()}
            self._journal.write("timing", **fields, variant=name, **figures, **reached, bytes=bytes_moved)

    def _is_sound(self, variant: Variant, batches: Sequence[Batch], fields: dict[str, Any]) -> bool:
        """Whether it gives the right answer; what is wrong is written down. Raises where the device is broken."""
        try:
            if variant.prepare is not None:
                variant.prepare(batches)
            wrong = variant.check(batches[0])
            self.clock.wait()
        except Exception as error:
            wrong = f"{type(error).__name__}: {first_line(str(error))}"
            if self._is_broken():
                if variant.optional:
                    raise PeerError(f"{variant.name} {fields}: {wrong}") from error
                raise
        if wrong is None:
            return True
        what = f"{variant.name} {fields}"
        if variant.optional:
            self._journal.left_out(what, wrong)
        else:
            self._journal.fail(f"{what}: {wrong}")
        return False

    def _is_broken(self) -> bool:
        """Whether an error ended this process's use of the device: after an illegal access every call fails, after a
        want of memory, a capture that failed or a kernel that was not there the next one may work."""
        try:
            self.clock.wait()
        except RuntimeError:
            return True
        return False


def if_possible(journal: Journal, what: str, make: Callable[[], Variant]) -> list[Variant]:
    """A variant that is one of others, or none, with the reason written down."""
    if os.environ.get(ALONE_VARIABLE):
        journal.left_out(what, "one of the others has broken the device before")
        return []
    try:
        return [make()]
    except Exception as error:  # whatever keeps it from running is reported, and is not ours
        journal.left_out(what, f"{type(error).__name__}: {error}")
        return []
