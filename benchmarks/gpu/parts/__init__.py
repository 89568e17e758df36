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
    least: int
    """Seconds without which it is not begun, and which the parts before it leave it."""
    what: str
    """In a line."""
    peers: bool = False
    """Whether other libraries' lookups are measured beside the store's, and may take the part with them."""


PARTS = (
    Part("build", 420, 20, "build the native libraries, if they are not there or cannot be loaded"),
    Part("first", 120, 20, "one lookup; what memory and the bus give"),
    Part("tests", 480, 60, "the tests that need a GPU, none stopping the others"),
    Part("memcheck", 480, 60, "odd dimensions, bags and tiers under compute-sanitizer"),
    Part("grid", 570, 90, "lookups: dtypes, numbers of ids, uniform, Zipf, missing", peers=True),
    Part("pooled", 420, 60, "bags of 1, 20, 100, and a mix with a huge one", peers=True),
    Part("tiered", 420, 60, "a tenth of the rows in GPU memory", peers=True),
    Part("graphs", 300, 45, "small lookups captured in CUDA graphs, and replayed while versions change"),
    Part("training", 570, 120, "a DERM and a DLRM: samples a second and where the time goes, bfloat16 beside float32"),
    Part("swap", 300, 90, "lookups while the next version is swapped in"),
    Part("ncu", 300, 45, "counters of three kernels"),
    Part("dims", 480, 60, "other dimensions", peers=True),
)
