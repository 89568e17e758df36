"""Configs of public logs: KuaiRand-Pure, Deskdrop, MovieLens; once, and day by day where there are days."""

from __future__ import annotations

from dataclasses import replace

from recsys.config import (
    DaysConfig,
    LossConfig,
    RankerSettings,
    RefreshSettings,
    RetrievalConfig,
    SourceConfig,
    SpansConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.deskdrop import NEGATIVES


def kuairand() -> StudyConfig:
    """KuaiRand-Pure: upstreams on the histories before 25 April 2022, rankers on the two weeks after."""
    source = SourceConfig(
        schema="history/schema.toml",
        events=("history/events/*/*.parquet",),
        users=("history/users/*.parquet",),
        items=("history/items/*.parquet",),
    )
    days = "impressions/events/2022-{}/{}/*.parquet"

    def ranking(tab: str) -> RankerSettings:
        return RankerSettings(
            schema="impressions/schema.toml",
            train=tuple(days.format(day, tab) for day in ("04-2[5-9]", "04-30", "05-0[1-4]")),
            validation=(days.format("05-0[56]", tab),),
            test=(days.format("05-0[78]", tab),),
            tasks={"ctr": "is_click", "cvr": "long_view", "long_view": "long_view_any"},
            publish_delay_ms=0,
        )

    return StudyConfig(
        name="KuaiRand-Pure",
        note="Real impressions of a short-video app. Upstreams were trained on the histories before 25 April 2022 "
        "alone; rankers were trained on 25 April - 4 May, tuned on 5-6 May and tested once on 7-8 May (China days). "
        "ctr = click; cvr = long view given a click; long_view = long view on every impression. "
        "Published KuaiRand results use other splits and are not comparable.",
        upstreams=(
            UpstreamConfig(
                name="ctr",
                source=source,
                tasks=("long_view",),
                loss=LossConfig(contrastive_label="long_view"),
            ),
            UpstreamConfig(
                name="cvr",
                source=source,
                tasks=("is_like", "long_view"),
                loss=LossConfig(contrastive_label="is_like"),
                training=TrainConfig(seed=1),
            ),
        ),
        rankers=ranking("*"),
        fragment=ranking("tab=1"),
        retrieval=RetrievalConfig(upstream="ctr"),
    )


def kuairand_daily() -> StudyConfig:
    """KuaiRand-Pure day by day: the ctr upstream goes on with the impressions, rankers read it as of each event."""
    config = kuairand()
    return replace(
        config,
        name="KuaiRand-Pure, day by day",
        note="Real impressions of a short-video app. The upstream was trained on the histories before 25 April 2022 "
        "and goes on with each day of impressions (China days): label long view, features made of what the user had "
        "done before. Rankers predict clicks without those features; they were trained on 25 April - 4 May, tuned on "
        "5-6 May and tested once on 7-8 May, and read the vectors as of each event's own time.",
        upstreams=config.upstreams[:1],
        rankers=replace(config.rankers, tasks={"ctr": "is_click"}, publish_delay_ms=RankerSettings.publish_delay_ms),
        fragment=None,
        refresh=RefreshSettings(
            days=DaysConfig(
                events="impressions/events/{day}/*/*.parquet",
                utc_offset_hours=8,
                first="2022-04-25",
                last="2022-05-08",
            ),
            study=True,
        ),
        spans=SpansConfig(
            train=("2022-04-25", "2022-05-04"),
            validation=("2022-05-05", "2022-05-06"),
            test=("2022-05-07", "2022-05-08"),
        ),
    )


def deskdrop() -> StudyConfig:
    """Deskdrop: upstreams on March to July 2016, rankers on the four months after, tested on the last six weeks."""
    source = SourceConfig(schema="views/schema.toml", events=("views/events/2016-0[3-7]-*/*.parquet",))
    features = (
        "user_id user_views user_likes item_id article_views article_likes article_views_3h article_views_24h "
        "article_views_48h article_age_hours country hour weekday"
    )
    days = "views/events/2016-{}/*.parquet"
    return StudyConfig(
        name="Deskdrop",
        note="A company's real feed of articles, most of which live for days. The log has no impressions: ctr tells a "
        f"user's first view of an article from {NEGATIVES} articles that others viewed in the hours around it and this "
        "user never did, so its calibration means nothing outside this table; cvr = like within the session given a "
        "view. Upstreams learned from March - July 2016, rankers from August and September without the histories, "
        "tuned on 1-15 October and tested once on 16 October - 30 November (days of UTC-3).",
        upstreams=(
            UpstreamConfig(name="ctr", source=source, tasks=("view",)),
            UpstreamConfig(name="cvr", source=source, tasks=("like", "view"), training=TrainConfig(seed=1)),
        ),
        rankers=RankerSettings(
            schema="views/schema.toml",
            train=(days.format("0[89]-*"),),
            validation=(days.format("10-0*"), days.format("10-1[0-5]")),
            test=(days.format("10-1[6-9]"), days.format("10-[23]*"), days.format("11-*")),
            tasks={"ctr": "view", "cvr": "like"},
            features=tuple(features.split()),
            publish_delay_ms=0,
        ),
        retrieval=RetrievalConfig(upstream="ctr"),
    )


def deskdrop_daily() -> StudyConfig:
    """Deskdrop day by day: the ctr upstream learned until August and goes on; the test is that of `deskdrop`."""
    config = deskdrop()
    first = config.upstreams[0]
    source = replace(first.source, events=("views/events/2016-0[3-8]-*/*.parquet",))
    return replace(
        config,
        name="Deskdrop, day by day",
        note="A company's real feed of articles, most of which live for days; a view is told from "
        f"{NEGATIVES} articles that others viewed in the hours around it and this user never did. The upstream learned "
        "from March - August 2016 and goes on with each day (UTC-3). Rankers lack the histories; they were trained on "
        "September, tuned on 1-15 October and tested once on 16 October - 30 November, and read the vectors as of each "
        "event's own time.",
        upstreams=(replace(first, source=source),),
        rankers=replace(config.rankers, tasks={"ctr": "view"}, publish_delay_ms=RankerSettings.publish_delay_ms),
        refresh=RefreshSettings(
            days=DaysConfig(
                events="views/events/{day}/*.parquet",
                utc_offset_hours=-3,
                first="2016-09-01",
                last="2016-11-30",
            ),
            study=True,
        ),
        spans=SpansConfig(
            train=("2016-09-01", "2016-09-30"),
            validation=("2016-10-01", "2016-10-15"),
            test=("2016-10-16", "2016-11-30"),
        ),
        ranks=1,  # a quiet Saturday has a single row
    )


def movielens_1m() -> StudyConfig:
    """MovieLens 1M: like (rating > 3), random split; upstream and ranker learn from disjoint rows."""
    return _movielens(
        "MovieLens 1M",
        "Real ratings, like = rating > 3, random 8:1:1 split. The rows have no usable times, so the training rows were "
        "halved at random: the upstream learned from one half, the rankers from the other. A ranker that is given both "
        "halves itself, without vectors, is the bar to hold these figures against; it is not in the table.",
    )


def movielens_100k() -> StudyConfig:
    """MovieLens 100K: like (rating > 3), split by time."""
    return _movielens(
        "MovieLens 100K",
        "Real ratings, like = rating > 3, split by time: the upstream learned from the first half, the rankers from "
        "the next quarter, tuned on the next tenth, tested on the rest.",
    )


def _movielens(name: str, note: str) -> StudyConfig:
    def events(part: str) -> tuple[str, ...]:
        return (f"ratings/events/{part}/*.parquet",)

    return StudyConfig(
        name=name,
        note=note,
        upstreams=(
            UpstreamConfig(
                name="ctr",
                source=SourceConfig(
                    schema="ratings/schema.toml",
                    events=events("upstream"),
                    users=("ratings/users/*.parquet",),
                    items=("ratings/items/*.parquet",),
                ),
            ),
        ),
        rankers=RankerSettings(
            schema="ratings/schema.toml",
            train=events("train"),
            validation=events("validation"),
            test=events("test"),
            tasks={"ctr": "like"},
            publish_delay_ms=0,
        ),
        retrieval=RetrievalConfig(upstream="ctr"),
    )
