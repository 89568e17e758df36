"""The kinds of rankers, by the name that `network.kind` has for them."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.config import NetworkConfig
from recsys.data.schema import Schema
from recsys.models.dcnv2_ranker import DCNv2Ranker
from recsys.models.dhen_ranker import DHENRanker
from recsys.models.dlrm import DLRM
from recsys.models.ranker import Ranker
from recsys.models.series import SeriesSpec

_KINDS: dict[str, type[DLRM] | type[DCNv2Ranker] | type[DHENRanker]] = {
    "dlrm": DLRM,
    "dcnv2": DCNv2Ranker,
    "dhen": DHENRanker,
}


def build_ranker(schema: Schema, config: NetworkConfig, series: Sequence[SeriesSpec] = (), tasks: int = 1) -> Ranker:
    """The ranker that the config asks for; arguments and errors as of `DLRM`."""
    return _KINDS[config.kind](schema, config, series, tasks)
