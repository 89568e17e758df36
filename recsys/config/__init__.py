"""The one config mechanism: keyword-only dataclasses, checked on construction, loaded from and saved as TOML.

`RunConfig` describes a whole way from events to report; `recsys.recipes` holds named complete ones. Paths are relative
to the data folder given on the command line.
"""

from recsys.config.aggregation import AGGREGATIONS, STUDIED
from recsys.config.daily import DailyConfig
from recsys.config.downstream import DownstreamConfig, RankerConfig, RetrievalConfig
from recsys.config.refresh import GateConfig, RefreshConfig
from recsys.config.rules import ConfigError
from recsys.config.run import RunConfig, from_dict, override
from recsys.config.training import TrainConfig
from recsys.config.upstream import INTERACTIONS, LossConfig, ModelConfig, SourceConfig, UpstreamConfig

__all__ = [
    "AGGREGATIONS",
    "INTERACTIONS",
    "STUDIED",
    "ConfigError",
    "DailyConfig",
    "DownstreamConfig",
    "GateConfig",
    "LossConfig",
    "ModelConfig",
    "RankerConfig",
    "RefreshConfig",
    "RetrievalConfig",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
    "UpstreamConfig",
    "from_dict",
    "override",
]
