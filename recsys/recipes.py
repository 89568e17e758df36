"""Named complete configs: each is a plain function that returns the `StudyConfig` of one data set's way to a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recsys.config import (
    DaysConfig,
    LossConfig,
    ModelConfig,
    NetworkConfig,
    RankerSettings,
    RefreshSettings,
    RetrievalConfig,
    SourceConfig,
    SpansConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.deskdrop import NEGATIVES, prepare_deskdrop
from recsys.data.errors import DataError
from recsys.data.kuairand import prepare_kuairand
from recsys.data.movielens import prepare_movielens_1m, prepare_movielens_100k
from recsys.data.synthetic import market_split, prepare_synthetic
from recsys.dates import HOUR_MS

PUBLISH_DELAY_MS = 6 * HOUR_MS
"""Of the recipes day by day: a day's vectors are there the next morning."""


@dataclass(frozen=True)
class Recipe:
    """A data set: how to prepare it, and the config that reads what was prepared."""

    config: Callable[[], StudyConfig]
    write: Callable[[Path, Path], None]
    needs_source: bool = True

    def check_source(self, source: Path | None) -> None:
        """Raise DataError where files are needed and no folder of them is given."""
        if self.needs_source and source is None:
            raise DataError("the folder of the raw files is missing: give it with --source (prepare) or --data (run)")

    def prepare(self, source: Path | None, out: Path) -> None:
        """Turn raw files in `source` into events and schemas in `out`.

        Raises:
            DataError: there is no source, or its files are not what they should be.
        """
        self.check_source(source)
        self.write(source or Path(), out)


def kuairand() -> StudyConfig:
    """KuaiRand-Pure: upstreams on the histories before 25 April 2022, rankers on the two weeks after."""
    source = SourceConfig(
        schema="history/schema.toml",
        events=("history/events/*/*.parquet",),
        users=("history/users/*.parquet",),
        items=("history/items/*.parquet",),
    )
    model = ModelConfig(token_dim=16, out_tokens=4, out_dim=16)
    training = TrainConfig(epochs=2, batch_size=512)
    days = "impressions/events/2022-{}/{}/*.parquet"

    def ranking(tab: str) -> RankerSettings:
        return RankerSettings(
            schema="impressions/schema.toml",
            train=tuple(days.format(day, tab) for day in ("04-2[5-9]", "04-30", "05-0[1-4]")),
            validation=(days.format("05-0[56]", tab),),
            test=(days.format("05-0[78]", tab),),
            tasks={"ctr": "is_click", "cvr": "long_view", "long_view": "long_view_any"},
            publish_delay_ms=0,
            network=NetworkConfig(embedding_dim=8),
            training=TrainConfig(epochs=4),
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
                model=model,
                loss=LossConfig(contrastive_label="long_view", contrastive_weight=0.1),
                training=training,
            ),
            UpstreamConfig(
                name="cvr",
                source=source,
                tasks=("is_like", "long_view"),
                model=model,
                loss=LossConfig(contrastive_label="is_like", contrastive_weight=0.1),
                training=replace(training, seed=1),
            ),
        ),
        rankers=ranking("*"),
        fragment=ranking("tab=1"),
        retrieval=RetrievalConfig(upstream="ctr"),
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
                model=ModelConfig(token_dim=16, out_tokens=4, out_dim=16),
                loss=LossConfig(contrastive_weight=0.1),
                training=TrainConfig(epochs=3, batch_size=512),
            ),
        ),
        rankers=RankerSettings(
            schema="ratings/schema.toml",
            train=events("train"),
            validation=events("validation"),
            test=events("test"),
            tasks={"ctr": "like"},
            publish_delay_ms=0,
            training=TrainConfig(epochs=6),
        ),
        retrieval=RetrievalConfig(upstream="ctr"),
    )


def synthetic() -> StudyConfig:
    """The synthetic market of `recsys.data.market`: what `recsys demo --full` runs."""
    upstream_days = market_split()
    source = SourceConfig(
        schema="market/schema.toml",
        events=upstream_days.upstream,
        users=("market/users/*.parquet",),
        items=("market/items/*.parquet",),
    )
    model = ModelConfig(token_dim=16, out_tokens=4, out_dim=16)
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
            training=TrainConfig(epochs=4),
        )

    return StudyConfig(
        name="Synthetic market",
        note="SYNTHETIC data with planted user and item factors. Users' taste for categories and brands shows in the "
        "histories of a month, which the rankers lack; one click in forty converts; one item in fourteen is replaced "
        "each day. The upstreams learned from the first seven days on both surfaces, the rankers from four days after "
        "them, tuned on the next and tested once on the last four.",
        upstreams=(
            UpstreamConfig(
                name="ctr",
                source=source,
                tasks=("click",),
                model=model,
                loss=LossConfig(contrastive_weight=0.1),
                training=TrainConfig(epochs=3, batch_size=256, sparse_lr=0.1),
            ),
            UpstreamConfig(
                name="cvr",
                source=source,
                tasks=("conversion", "click"),
                model=model,
                loss=LossConfig(contrastive_weight=0.1),
                training=TrainConfig(epochs=3, batch_size=256, sparse_lr=0.1, seed=1),
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
        rankers=replace(config.rankers, tasks={"ctr": "is_click"}, publish_delay_ms=PUBLISH_DELAY_MS),
        fragment=None,
        retrieval=None,
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
        rankers=replace(config.rankers, tasks={"ctr": "view"}, publish_delay_ms=PUBLISH_DELAY_MS),
        retrieval=None,
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
        rankers=replace(config.rankers, tasks={"ctr": "click"}, publish_delay_ms=PUBLISH_DELAY_MS),
        fragment=None,
        retrieval=None,
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


RECIPES: dict[str, Recipe] = {
    "kuairand": Recipe(kuairand, prepare_kuairand),
    "deskdrop": Recipe(deskdrop, prepare_deskdrop),
    "movielens-1m": Recipe(movielens_1m, prepare_movielens_1m),
    "movielens-100k": Recipe(movielens_100k, prepare_movielens_100k),
    "synthetic": Recipe(synthetic, lambda _, out: prepare_synthetic(out), needs_source=False),
    "demo": Recipe(demo, lambda _, out: prepare_synthetic(out, events_per_day=12_000), needs_source=False),
    "synthetic-small": Recipe(
        synthetic_small,
        lambda _, out: prepare_synthetic(out, users=600, items=200, events_per_day=2000),
        needs_source=False,
    ),
}
"""Names for `recsys run` and `recsys prepare`."""

DAILY: dict[str, Recipe] = {
    "kuairand": Recipe(kuairand_daily, prepare_kuairand),
    "deskdrop": Recipe(deskdrop_daily, prepare_deskdrop),
    "synthetic": Recipe(
        synthetic_daily,
        lambda _, out: prepare_synthetic(out, days=30, events_per_day=15_000, drift=0.2),
        needs_source=False,
    ),
    "synthetic-small": Recipe(
        synthetic_daily_small,
        lambda _, out: prepare_synthetic(out, users=600, items=200, days=10, events_per_day=2000, upstream_days=4),
        needs_source=False,
    ),
}
"""Names for `recsys daily`."""
