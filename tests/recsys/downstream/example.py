"""A job of small rankers on a small market."""

from recsys.config import NetworkConfig, RankerSettings, RankerTrainConfig
from recsys.data.synthetic import market_split
from recsys.downstream.ranking import Ranker
from recsys.study.ablation import ablation_arms, ranker_job

SPLIT = market_split(days=6, upstream_days=2)
RANKERS = RankerSettings(
    schema="market/schema.toml",
    train=SPLIT.train,
    validation=SPLIT.validation,
    test=SPLIT.test,
    tasks={"ctr": "click", "cvr": "conversion"},
    publish_delay_ms=0,
    features=("user_id", "country", "price", "hour", "item_id"),
    seeds=(0, 1),
    network=NetworkConfig(embedding_dim=4, projection_dim=4, hidden=(8,)),
    training=RankerTrainConfig(epochs=2, batch_size=64, shuffle_batches=2),
)
CONFIG = ranker_job("tasks", RANKERS, ablation_arms(["ctr"]))
NONE = Ranker("tasks", "ctr", "none", (), 0)
USER = Ranker("tasks", "ctr", "ctr_user", ("user_ctr",), 0)
BOTH = Ranker("tasks", "cvr", "ctr_user_item", ("user_ctr", "item_ctr"), 0)
