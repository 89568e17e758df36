"""Whether a file that has the times of one that was read is that one."""

from __future__ import annotations

TICK_NS = 2_000_000_000
"""How long a file must have been left alone before it was read: a later change could have the same time, since clocks
of file systems tick, once in 2 s at the slowest, and those of other hosts differ."""


def settled(modified: int, changed: int, when: int) -> bool:
    """Whether a later change has other times than these.

    Args:
        modified: when the content was changed, ns since 1970; writers can set it back.
        changed: when the content was, or what the file system says of it, ns.
        when: when reading began, ns.
    """
    return max(modified, changed) + TICK_NS <= when
