"""The ways of aggregation that a run publishes, and the series each of them goes to.

An upstream's own way (`RefreshSettings.aggregation`) goes to `user_<name>` and `item_<name>`. For the report's table
(`RefreshSettings.study`) the others of the paper's (arXiv 2509.04337) are kept beside it, of the same daily vectors:
`user_<name>.latest`, ... Cross representations (`RefreshSettings.cross`) go to `user_<name>_cross`.
"""

from __future__ import annotations

from recsys.config import CROSS, RefreshSettings

ENTITIES = ("user", "item")


def arm_of(refresh: RefreshSettings) -> str:
    """The upstream's own way, as an arm: `ma_0.8`."""
    return f"ma_{refresh.weight:g}" if refresh.aggregation == "ma" else refresh.aggregation


def series_of(arm: str, upstream: str, refresh: RefreshSettings) -> tuple[str, str]:
    """Names of the arm's user and item series."""
    suffix = "" if arm == arm_of(refresh) else f".{arm}"
    return f"user_{upstream}{suffix}", f"item_{upstream}{suffix}"


def cross_series(upstream: str) -> tuple[str, str]:
    """Names of an upstream's user and item series of cross representations, see recsys/refresh/cross.py."""
    return f"user_{upstream}{CROSS}", f"item_{upstream}{CROSS}"
