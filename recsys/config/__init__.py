"""The one config mechanism: keyword-only dataclasses, checked on construction, loaded from and saved as TOML.

Each job has one: an upstream, its refresh, rankers. `StudyConfig` composes them into a whole way from events to report;
`recsys.recipes` holds named complete ones. Paths are relative to the data folder given on the command line.
"""

from recsys.config.aggregation import AGGREGATIONS, CROSS, STUDIED
from recsys.config.contrastive import ContrastiveConfig
from recsys.config.days import DaysConfig
from recsys.config.graph import EndConfig, GraphConfig, RelationConfig
from recsys.config.log import ActionConfig, EntityTable, ItemTable, LogConfig, LogFiles, NegativesConfig, PastConfig
from recsys.config.ranker import ArmConfig, NetworkConfig, RankerConfig, RankerSettings, RetrievalConfig
from recsys.config.reading import Reading, from_dict
from recsys.config.refresh import GateConfig, PriorConfig, RefreshConfig, RefreshSettings, RetentionConfig
from recsys.config.rules import INTERACTIONS, ConfigError
from recsys.config.sharding import TableConfig
from recsys.config.study import SpansConfig, StudyConfig
from recsys.config.toml import Config, assign, override, parse_assignment, read_document, to_dict
from recsys.config.training import RankerTrainConfig, TrainConfig
from recsys.config.two_tower import TwoTowerConfig, TwoTowerSettings
from recsys.config.upstream import KINDS, LossConfig, ModelConfig, SourceConfig, UpstreamConfig

__all__ = [
    "AGGREGATIONS",
    "CROSS",
    "INTERACTIONS",
    "KINDS",
    "STUDIED",
    "ActionConfig",
    "ArmConfig",
    "Config",
    "ConfigError",
    "ContrastiveConfig",
    "DaysConfig",
    "EndConfig",
    "EntityTable",
    "GateConfig",
    "GraphConfig",
    "ItemTable",
    "LogConfig",
    "LogFiles",
    "LossConfig",
    "ModelConfig",
    "NegativesConfig",
    "NetworkConfig",
    "PastConfig",
    "PriorConfig",
    "RankerConfig",
    "RankerSettings",
    "RankerTrainConfig",
    "Reading",
    "RefreshConfig",
    "RefreshSettings",
    "RelationConfig",
    "RetentionConfig",
    "RetrievalConfig",
    "SourceConfig",
    "SpansConfig",
    "StudyConfig",
    "TableConfig",
    "TrainConfig",
    "TwoTowerConfig",
    "TwoTowerSettings",
    "UpstreamConfig",
    "assign",
    "from_dict",
    "override",
    "parse_assignment",
    "read_document",
    "to_dict",
]
