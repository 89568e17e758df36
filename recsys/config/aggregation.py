"""The ways in which a day's vectors and those of the days before become one (arXiv 2509.04337)."""

from __future__ import annotations

AGGREGATIONS = ("ma", "latest", "average")
"""Moving average; today's overwrites; mean of all days."""
STUDIED = {
    "latest": ("latest", 0.8),
    "ma_0.2": ("ma", 0.2),
    "ma_0.5": ("ma", 0.5),
    "ma_0.8": ("ma", 0.8),
    "average": ("average", 0.8),
}
"""Arm -> method and weight, in the order of the paper's table."""
CROSS = "_cross"
"""What the series of an upstream's cross representations have at the end of their names: `user_ctr_cross`."""
