"""Configs of the Complete Journey, a retail panel, provenance disputed: once, as a demo, and week by week."""

from __future__ import annotations

from dataclasses import replace

from recsys.config import (
    DaysConfig,
    GraphConfig,
    RankerSettings,
    RefreshSettings,
    RetrievalConfig,
    SourceConfig,
    SpansConfig,
    StudyConfig,
    UpstreamConfig,
)
from recsys.data.completejourney import FEATURES
from recsys.recipes.tables import relation, table_arms

_OF = ("manufacturer", "department", "brand", "product_category", "product_type")
"""What the graph knows of a product."""
_TASK = (
    "A retail panel of 2017, provenance disputed: its publishers do not agree on whether it is real or simulated. "
    "bought = whether a household buys a product this week, among those on display or in the mailer of the store where "
    "it used to shop, in weeks in which it shops there; of the products not bought one in 250 is a row, so calibration "
    "is of this sample; redeemed = with a coupon, given bought. "
)


def completejourney() -> StudyConfig:
    """The first half of the year teaches the upstreams, three months the rankers; tested on the last eight weeks."""
    until_july = ("2017-0[1-5]-*", "2017-06-[01]*")
    weeks = ("2016-*", *until_july)
    until_june = weeks[:2]
    # No campaign begins from 1 to 25 June.
    bought = SourceConfig(schema="graph/schema.toml", events=_links("bought", *weeks))
    return StudyConfig(
        name="Complete Journey (retail panel, provenance disputed)",
        note=f"{_TASK}Upstreams learned from the weeks before 26 June: mf from all purchases, graph from these, "
        "campaigns, coupons and what products are, ctr from the rows. "
        "Rankers, which have all features but the histories, were trained on 26 June - 1 October, tuned on 2 October - "
        "5 November and tested once on 6 November - 31 December (weeks from Monday on).",
        upstreams=(
            UpstreamConfig(name="mf", kind="contrastive", source=bought, tasks=("bought",)),
            UpstreamConfig(
                name="graph",
                kind="graph",
                source=bought,
                tasks=("bought",),
                graph=GraphConfig(
                    relations=(
                        relation("bought", "user=user_id", "item=item_id"),
                        relation(
                            "targeted", "user=user_id", "campaign=campaign", events=_links("targeted", *until_june)
                        ),
                        relation("covers", "coupon=coupon", "item=item_id", events=_links("covers", *until_june)),
                        relation("redeemed", "user=user_id", "coupon=coupon", events=_links("redeemed", *weeks)),
                        *(relation(f"of_{x}", "item=item_id", f"{x}={x}", events=("graph/of/*.parquet",)) for x in _OF),
                    )
                ),
            ),
            UpstreamConfig(
                name="ctr",
                source=SourceConfig(
                    schema="offers/schema.toml",
                    events=_offers(*until_july),
                    users=("offers/users/*.parquet",),
                    items=("offers/items/*.parquet",),
                ),
                tasks=("bought", "redeemed"),
            ),
        ),
        rankers=RankerSettings(
            schema="offers/schema.toml",
            train=_offers("2017-06-26", "2017-0[789]-*"),
            validation=_offers("2017-10-*"),
            test=_offers("2017-11-*", "2017-12-*"),
            tasks={"bought": "bought", "redeemed": "redeemed"},
            features=tuple(feature.name for feature in FEATURES if feature.kind != "sequence"),
            publish_delay_ms=0,
        ),
        arms=table_arms("mf", "graph", "ctr"),
        retrieval=RetrievalConfig(upstream="mf"),
    )


def completejourney_demo() -> StudyConfig:
    """The same at what is worth waiting for: one seed, a pass for each upstream."""
    config = completejourney()
    upstreams = tuple(replace(upstream, training=replace(upstream.training, epochs=1)) for upstream in config.upstreams)
    return replace(config, upstreams=upstreams, rankers=replace(config.rankers, seeds=(0,)))


def completejourney_daily() -> StudyConfig:
    """Week by week: a day of the refresh loop is a week. The test is that of `completejourney`."""
    config = completejourney()
    (ctr,) = (upstream for upstream in config.upstreams if upstream.name == "ctr")
    return replace(
        config,
        name=f"{config.name}, week by week",
        note=f"{_TASK}The upstream learned from the weeks before 26 June and goes on with each week. Rankers, which "
        "have all features but the histories, were trained on 26 June - 1 October, tuned on 2 October - 5 November "
        "and tested once on 6 November - 31 December, and read the vectors as of six in the morning of each Monday.",
        upstreams=(ctr,),
        arms=(),
        rankers=replace(config.rankers, tasks={"bought": "bought"}, publish_delay_ms=RankerSettings.publish_delay_ms),
        retrieval=RetrievalConfig(upstream="ctr"),
        refresh=RefreshSettings(
            days=DaysConfig(
                events="offers/events/{day}/*.parquet",
                hours=168,
                utc_offset_hours=-5,
                first="2017-06-26",
                last="2017-12-25",
            ),
            study=True,
        ),
        spans=SpansConfig(
            train=("2017-06-26", "2017-09-25"),
            validation=("2017-10-02", "2017-10-30"),
            test=("2017-11-06", "2017-12-25"),
        ),
    )


def _links(name: str, *weeks: str) -> tuple[str, ...]:
    return tuple(f"graph/{name}/{week}/*.parquet" for week in weeks)


def _offers(*weeks: str) -> tuple[str, ...]:
    return tuple(f"offers/events/{week}/*.parquet" for week in weeks)
