"""Configs of the synthetic market of `recsys.data.market`: the demo, its full size, day by day, and small ones."""

from __future__ import annotations

from dataclasses import replace

from recsys.config import (
    DaysConfig,
    RankerSettings,
    RefreshSettings,
    RetrievalConfig,
    SourceConfig,
    SpansConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.synthetic import market_split


def synthetic() -> StudyConfig:
    """The synthetic market of `recsys.data.market`: what `recsys demo --full` runs."""
    upstream_days = market_split()
    source = SourceConfig(
        schema="market/schema.toml",
        events=upstream_days.upstream,
        users=("market/users/*.parquet",),
        items=("market/items/*.parquet",),
    )
    features = (
        "user_id country age_bucket device user_interest user_impressions user_clicks item_id category brand price "
        "item_impressions item_clicks item_age_days hour surface position"
    )

    def ranking(surface: int | None) -> RankerSettings:
        split = market_split(surface=surface)
        return RankerSettings(
            schema="market/schema.toml",
            train=split.train,
            validation=split.validation,
            test=split.test,
            tasks={"ctr": "click", "cvr": "conversion"},
            features=tuple(features.split()),
            publish_delay_ms=0,
        )

    return StudyConfig(
        name="Synthetic market",
        note="SYNTHETIC data with planted user and item factors. Users' taste for categories and brands shows in the "
        "histories of a month, which the rankers lack; one click in forty converts; one item in fourteen is replaced "
        "each day. The upstreams learned from the first seven days on both surfaces, the rankers from four days after "
        "them, tuned on the next two and tested once on the last three.",
        upstreams=(
            UpstreamConfig(
                name="ctr",
                source=source,
                tasks=("click",),
            ),
            UpstreamConfig(
                name="cvr",
                source=source,
                tasks=("conversion", "click"),
                training=TrainConfig(seed=1),
            ),
        ),
        rankers=ranking(None),
        fragment=replace(ranking(0), seeds=(0, 1)),
        retrieval=RetrievalConfig(upstream="ctr"),
    )


def demo() -> StudyConfig:
    """The market of `synthetic` at what is worth waiting for: one seed, a pass for each upstream, no surface alone."""
    config = synthetic()
    upstreams = tuple(replace(upstream, training=replace(upstream.training, epochs=1)) for upstream in config.upstreams)
    return replace(config, upstreams=upstreams, rankers=replace(config.rankers, seeds=(0,)), fragment=None)


def synthetic_small() -> StudyConfig:
    """The same at a size that takes a minute."""
    config = synthetic()
    upstreams = tuple(
        replace(upstream, training=replace(upstream.training, epochs=1, batch_size=256))
        for upstream in config.upstreams
    )
    rankers = replace(config.rankers, seeds=(0,), training=replace(config.rankers.training, epochs=1, batch_size=256))
    return replace(config, name="Synthetic market, small", upstreams=upstreams, rankers=rankers, fragment=None)


def synthetic_daily() -> StudyConfig:
    """Thirty days of the synthetic market, whose users' tastes drift faster than the demo's."""
    config = synthetic()
    return replace(
        config,
        name="Synthetic market, day by day",
        note="SYNTHETIC data with planted user and item factors that drift: after a week the cosine between a user's "
        "factors and the old ones is 0.87. The upstream learned from the first seven days and goes on with each day "
        "after them. Each day one item in fourteen is replaced. Rankers lack the histories; they were trained on days "
        "8 to 24, tuned on days 25 and 26 and tested once on the last four, and read the vectors as of each event's "
        "own time.",
        upstreams=config.upstreams[:1],
        rankers=replace(config.rankers, tasks={"ctr": "click"}, publish_delay_ms=RankerSettings.publish_delay_ms),
        fragment=None,
        refresh=RefreshSettings(
            days=DaysConfig(
                events="market/events/{day}/*/*.parquet",
                first="2024-01-08",
                last="2024-01-30",
            ),
            study=True,
        ),
        spans=SpansConfig(
            train=("2024-01-08", "2024-01-24"),
            validation=("2024-01-25", "2024-01-26"),
            test=("2024-01-27", "2024-01-30"),
        ),
    )


def synthetic_daily_small() -> StudyConfig:
    """The same, ten days of a small market: two minutes."""
    config, small = synthetic_daily(), synthetic_small()
    source = replace(config.upstreams[0].source, events=market_split(upstream_days=4).upstream)
    return replace(
        config,
        name="Synthetic market, day by day, small",
        note=config.note.partition(":")[0] + ". Too small to show anything but that everything works.",
        upstreams=(replace(config.upstreams[0], source=source, training=small.upstreams[0].training),),
        rankers=replace(config.rankers, seeds=small.rankers.seeds, training=small.rankers.training),
        refresh=RefreshSettings(
            days=DaysConfig(
                events="market/events/{day}/*/*.parquet",
                first="2024-01-05",
                last="2024-01-10",
            ),
            study=True,
        ),
        spans=SpansConfig(
            train=("2024-01-05", "2024-01-07"),
            validation=("2024-01-08", "2024-01-08"),
            test=("2024-01-09", "2024-01-10"),
        ),
    )
