"""The parts, in the order in which they are run: what matters most first. Each is a module with `run`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part."""

    name: str
    """Its module here."""
    limit: int
    """Seconds after which it is ended."""
    what: str
    """In a line."""


PARTS = (
    Part("build", 420, "build the native libraries, if they are not there or cannot be loaded"),
    Part("first", 120, "one lookup; what memory and the bus give"),
    Part("tests", 560, "the tests that need a GPU, none stopping the others"),
    Part("memcheck", 480, "odd dimensions, bags and tiers under compute-sanitizer"),
    Part("grid", 570, "lookups: dtypes, numbers of ids, uniform, Zipf, missing"),
    Part("pooled", 420, "bags of 1, 20, 100, and a mix with a huge one"),
    Part("tiered", 420, "a tenth of the rows in GPU memory"),
    Part("swap", 300, "lookups while the next version is swapped in"),
    Part("ncu", 300, "counters of three kernels"),
    Part("dims", 480, "other dimensions"),
    Part("training", 570, "a DERM and a DLRM: samples a second and where the time goes, bfloat16 beside float32"),
)
