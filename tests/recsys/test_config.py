import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import (
    ArmConfig,
    Config,
    ConfigError,
    ContrastiveConfig,
    DaysConfig,
    GateConfig,
    GraphConfig,
    LossConfig,
    ModelConfig,
    NetworkConfig,
    RankerConfig,
    RankerSettings,
    RankerTrainConfig,
    RefreshSettings,
    RetentionConfig,
    RetrievalConfig,
    SourceConfig,
    SpansConfig,
    StudyConfig,
    TrainConfig,
    TwoTowerSettings,
    UpstreamConfig,
    from_dict,
    to_dict,
)
from recsys.recipes import DAILY, RECIPES

SOURCE = SourceConfig(schema="log/schema.toml", events=("log/events/*.parquet",))
RANKERS = RankerSettings(
    schema="log/schema.toml", train=("a/*",), validation=("b/*",), test=("c/*",), tasks={"ctr": "click"}
)


def _rankers(**changes: Any) -> RankerSettings:
    return replace(RANKERS, **changes)


def _named(name: str) -> UpstreamConfig:
    return UpstreamConfig(name=name, source=SOURCE)


SMALL = StudyConfig(name="small", upstreams=(UpstreamConfig(name="ctr", source=SOURCE),), rankers=RANKERS)
FULL = StudyConfig(
    name='quoted "name", ü',
    note="two\nlines",
    upstreams=(
        UpstreamConfig(
            name="ctr",
            source=SourceConfig(schema="s", events=("e/*", "f/*"), users=("u/*",), items=("i/*",)),
            tasks=("click", "buy"),
            features=("user_id", "item_id"),
            model=ModelConfig(token_dim=8, layers=(("masknet",), ("transformer", "dcnv2", "mlp")), dropout=0.5),
            loss=LossConfig(contrastive_label="buy", contrastive_weight=0, temperature=1),
            training=TrainConfig(epochs=3, sparse_lr=1, checkpoint_every=0, seed=7),
        ),
        UpstreamConfig(name="cvr", source=SOURCE),
    ),
    rankers=replace(RANKERS, features=("user_id",), publish_delay_ms=1000, seeds=(5, 3)),
    fragment=replace(RANKERS, tasks={"ctr": "click", "cvr": "buy"}, network=NetworkConfig(hidden=())),
    retrieval=RetrievalConfig(upstream="cvr", label="buy", k=(1, 5)),
    refresh=RefreshSettings(
        days=DaysConfig(events="e/{day}/*", utc_offset_hours=5.5, first="2024-02-28", last="2024-03-02"),
        aggregation="average",
        align="procrustes",
        gates=GateConfig(max_skew=0.1),
        study=True,
    ),
    spans=SpansConfig(
        train=("2024-02-28", "2024-02-29"),
        validation=("2024-03-01", "2024-03-01"),
        test=("2024-03-02", "2024-03-02"),
    ),
    ranks=3,
)
SEEDED = replace(FULL, upstream_seeds=(7, 9), spans=None)
DAYS, SPANS = FULL.daily()
REFRESH = replace(
    FULL.refresh_of(FULL.upstreams[0]),
    retention=RetentionConfig(keep_last=3, keep_days=1.5),
    days=replace(DAYS, last=""),
)
JOB = RankerConfig(
    name="mine",
    schema="s",
    train=("a",),
    validation=("b",),
    test=("c",),
    tasks={"ctr": "click"},
    arms=(ArmConfig(name="none"), ArmConfig(name="ma_0.8", series=("user_ctr", "item_ctr"), once=True)),
    seed_suffixes=("", "_s1"),
)


RECIPE_CONFIGS = [recipe.config() for recipe in (*RECIPES.values(), *DAILY.values())]


@pytest.mark.parametrize("config", [SMALL, FULL, SEEDED, *FULL.upstreams, REFRESH, JOB, *RECIPE_CONFIGS])
def test_toml_round_trip(tmp_path: Path, config: Config) -> None:
    config.save(tmp_path / "config.toml")
    loaded = type(config).load(tmp_path / "config.toml")
    assert loaded == config


def test_upstreams_are_trained_once_a_seed() -> None:
    """The first keeps its name; nothing else differs but the seed."""
    assert FULL.trainings() == FULL.upstreams
    trained = SEEDED.trainings()
    assert [(each.name, each.training.seed) for each in trained] == [
        ("ctr", 7),
        ("cvr", 7),
        ("ctr_s9", 9),
        ("cvr_s9", 9),
    ]
    for each, upstream in zip(trained, FULL.upstreams * 2, strict=True):
        alike = replace(each, name=upstream.name, training=replace(each.training, seed=upstream.training.seed))
        assert alike == upstream


@pytest.mark.parametrize(
    ("seeds", "suffixes", "read"),
    [
        ((5,), ("",), ["user_a"]),
        ((5, 3, 0), ("",), ["user_a", "user_a", "user_a"]),
        ((5, 3, 0), ("", "_s1", "_s2"), ["user_a", "user_a_s1", "user_a_s2"]),
        ((5, 3, 0, 1), ("", "_s1", "_s2"), ["user_a", "user_a_s1", "user_a_s2", "user_a"]),
    ],
)
def test_rankers_of_a_seed_read_a_training_of_the_upstreams(
    seeds: tuple[int, ...], suffixes: tuple[str, ...], read: list[str]
) -> None:
    job = replace(JOB, seeds=seeds, seed_suffixes=suffixes)
    arm = ArmConfig(name="a", series=("user_a", "item_b"))
    found = [job.series(arm, seed) for seed in seeds]
    assert [user for user, _ in found] == read
    assert [item for _, item in found] == [name.replace("user_a", "item_b") for name in read]
    assert job.series(ArmConfig(name="none"), seeds[-1]) == ()


def test_recipes_study_the_ways_of_aggregation_only_where_they_report_them() -> None:
    assert [recipe.config().refresh.study for recipe in RECIPES.values()] == [False] * len(RECIPES)
    assert all(recipe.config().refresh.study for recipe in DAILY.values())
    assert not RefreshSettings().study


def test_vectors_of_days_are_read_only_once_a_cycle_can_have_published_them() -> None:
    assert RANKERS.publish_delay_ms == 6 * 3_600_000
    assert {recipe.config().rankers.publish_delay_ms for recipe in DAILY.values()} == {6 * 3_600_000}
    assert {recipe.config().rankers.publish_delay_ms for recipe in RECIPES.values()} == {0}


def test_recipes_have_the_defaults() -> None:
    """One table of defaults: a recipe says what is read and split how. Those made to be short are exceptions."""
    short = {"demo", "completejourney-demo", "synthetic-small"}
    for name, recipe in (*RECIPES.items(), *DAILY.items()):
        study = recipe.config()
        for upstream in () if name in short else study.upstreams:
            assert upstream.model == ModelConfig()
            said = {"contrastive_label": upstream.loss.contrastive_label}
            if upstream.kind == "contrastive":  # which is nothing but its loss
                said |= {key: getattr(upstream.loss, key) for key in ("positives", "uniform_negatives")}
            assert upstream.loss == LossConfig(**said)
            assert upstream.contrastive == ContrastiveConfig()
            assert upstream.graph == GraphConfig(relations=upstream.graph.relations)
            assert upstream.training == TrainConfig(seed=upstream.training.seed)
        for rankers in filter(None, (study.rankers, study.fragment)):
            assert rankers.network == NetworkConfig()
            assert name in short or rankers.training == RankerTrainConfig()
        assert study.refresh == RefreshSettings(days=study.refresh.days, study=study.refresh.study)


def test_a_saved_config_names_every_value(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "config.toml")
    document = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert set(document["upstreams"][0]["training"]) == set(asdict(TrainConfig()))
    assert "fragment" not in document
    assert "retrieval" not in document


def test_what_is_left_out_of_a_rankers_training_is_a_rankers_default() -> None:
    document = to_dict(SMALL)
    document["rankers"]["training"] = {"batch_size": 8}
    document["upstreams"][0]["training"] = {"batch_size": 8}
    read = from_dict(StudyConfig, document)
    assert read.rankers.training.epochs == SMALL.rankers.training.epochs > 1
    assert read.upstreams[0].training.epochs == SMALL.upstreams[0].training.epochs == TrainConfig().epochs
    assert from_dict(StudyConfig, to_dict(read)) == read


def test_integers_serve_as_numbers() -> None:
    assert FULL.upstreams[0].training.sparse_lr == 1
    document = to_dict(FULL)
    document["upstreams"][0]["training"]["sparse_lr"] = 2
    value = from_dict(StudyConfig, document).upstreams[0].training.sparse_lr
    assert value == 2.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SourceConfig(schema="", events=("x",)), "schema is empty: give"),
        (lambda: SourceConfig(schema="x", events=()), "events is empty: give"),
        *(
            (lambda name=name: ModelConfig(**{name: 0}), f"{name} is 0; use 1 or more")
            for name in ("token_dim", "tokens", "heads", "out_tokens", "out_dim")
        ),
        (lambda: ModelConfig(sequence_layers=-1), "sequence_layers is -1; use 0 or more"),
        (lambda: ModelConfig(token_dim=12, heads=5), "heads is 5; it must divide token_dim = 12"),
        (lambda: ModelConfig(token_dim=6), "token_dim is 6; tables need a multiple of 4"),
        (lambda: ModelConfig(layers=()), "layers is empty; give"),
        (lambda: ModelConfig(layers=(("mlp",), ())), "layers has a layer without modules; give"),
        (lambda: ModelConfig(layers=(("cnn",),)), "layers names 'cnn'; use one of masknet, dcnv2"),
        (lambda: ModelConfig(dropout=1.0), "dropout is 1.0; use 0 <= dropout < 1"),
        (lambda: ModelConfig(dropout=-0.1), "dropout is -0.1"),
        (lambda: LossConfig(temperature=0), "temperature is 0; use more than 0"),
        (lambda: LossConfig(contrastive_weight=-1), "contrastive_weight is -1; use 0 or more"),
        (lambda: LossConfig(uniform_negatives=-1), "uniform_negatives is -1; use 0 or more"),
        *(
            (lambda name=name: TrainConfig(**{name: 0}), f"{name} is 0; use 1 or more")
            for name in ("epochs", "log_every")
        ),
        *(
            (lambda name=name: TrainConfig(**{name: -1}), f"{name} is -1; use 0 or more")
            for name in ("shuffle_batches", "checkpoint_every", "weight_decay")
        ),
        (lambda: TrainConfig(batch_size=-1), "batch_size is -1; use 1 or more, or 0: what the rows allow"),
        (lambda: TrainConfig(seed=-1), r"seed is -1; use 0 <= seed < 2\^32"),
        (lambda: TrainConfig(seed=2**32), "seed is 4294967296; use"),
        (lambda: TrainConfig(sparse_lr=0), "sparse_lr is 0; use more than 0"),
        (lambda: TrainConfig(dense_lr=float("nan")), "dense_lr is nan; use more than 0"),
        (lambda: UpstreamConfig(name="a-b", source=SOURCE), "name is 'a-b'; use"),
        (lambda: UpstreamConfig(name="", source=SOURCE), "name is ''; use"),
        (lambda: UpstreamConfig(name="klick_ü", source=SOURCE), "name is 'klick_ü'; use"),
        (lambda: UpstreamConfig(name="x" * 101, source=SOURCE), "name is 'xxx.*; use up to 100"),
        (lambda: UpstreamConfig(name="x", source=SOURCE, tasks=("a", "a")), "tasks is .*; name each label on"),
        (
            lambda: RefreshSettings(aggregation="sum"),
            "aggregation is 'sum'; use one of 'ma', 'latest', 'average'",
        ),
        (lambda: RefreshSettings(dtype="f8"), "dtype is 'f8'; use one of 'float32'"),
        (lambda: RefreshSettings(align="affine"), "align is 'affine'; use one of '', 'procrustes'"),
        (lambda: RefreshSettings(weight=1.0), "weight is 1.0; use 0 <= weight < 1"),
        (lambda: RefreshSettings(time_to_live_days=0), "time_to_live_days is 0; use 1 or more"),
        (lambda: RefreshSettings(delta_below=2.0), "delta_below is 2.0; use a share"),
        (lambda: RefreshSettings(tag=""), "tag is empty; name the tag"),
        (lambda: GateConfig(min_coverage=1.5), "min_coverage is 1.5; use a number from 0 to 1"),
        (lambda: GateConfig(max_drift=-1.0), "max_drift is -1.0; use a number from 0 to 2"),
        (lambda: replace(DAYS, events="e/*"), "events is 'e/[*]'; give a pattern .*with {day} in it"),
        (lambda: replace(DAYS, events="/e/{day}"), "events is '/e/{day}'; give .* relative to the data folder"),
        (lambda: replace(DAYS, utc_offset_hours=15), "utc_offset_hours is 15; use hours from -14 to 14"),
        (lambda: replace(DAYS, first="2024-2-28"), "first names the day '2024-2-28'; write it as 2024-01-31"),
        (lambda: replace(DAYS, last="2024-02-30"), "last names the day '2024-02-30'"),
        (lambda: replace(DAYS, last="2024-02-01"), "first is 2024-02-28, after last = 2024-02-01: swap"),
        (lambda: replace(SPANS, train=("2024-02-28",)), r"train is \['2024-02-28'\]; give its first and its last"),
        (lambda: replace(SPANS, train=("2024-02-29", "2024-02-28")), "train begins on 2024-02-29, after its end"),
        (
            lambda: replace(FULL, spans=replace(SPANS, test=("2024-03-02", "2024-03-03"))),
            "spans.test is .*; choose days from refresh.days.first = 2024-02-28 to",
        ),
        (lambda: replace(SPANS, validation=SPANS.train), "must follow one another without a common day"),
        (lambda: UpstreamConfig(name="x", source=SOURCE, held_out=0.6), "held_out is 0.6; use a share from 0 to 0.5"),
        (lambda: replace(DAYS, hours=5), "hours is 5; use a divisor of 24, for parts of days, or a multiple, for se"),
        (lambda: replace(DAYS, hours=0), "hours is 0; use"),
        (lambda: replace(DAYS, hours=6), "first names the day '2024-02-28'; write it as 2024-01-31T18, beginning at a"),
        (lambda: replace(DAYS, hours=168), "last is 2024-03-02, no day of 168 hours from 2024-02-28 on"),
        (lambda: replace(DAYS, epochs=0), "epochs is 0; use 1 or more"),
        (lambda: replace(DAYS, batch_size=-1), "batch_size is -1; use 1 or more, or 0"),
        (lambda: replace(SMALL).daily(), r"refresh.days or spans is missing: say in \[refresh.days\] where"),
        (lambda: replace(REFRESH, days=None).day_by_day(), r"days is missing: give the config a \[days\] section"),
        (lambda: replace(FULL, refresh=RefreshSettings()), "refresh.days.last is missing"),
        (lambda: replace(FULL, refresh=replace(FULL.refresh, days=REFRESH.days)), "refresh.days.last is missing"),
        (
            lambda: replace(FULL, refresh=replace(FULL.refresh, retention=RetentionConfig(keep_last=2))),
            "refresh.retention lets versions go that the rankers of spans read",
        ),
        (lambda: RetentionConfig(keep_last=0), "keep_last is 0; use 1 or more"),
        (lambda: RetentionConfig(keep_days=-1), "keep_days is -1; use 0 or more"),
        (lambda: replace(JOB, name="a/b"), "name is 'a/b'; use letters, digits and _"),
        (lambda: replace(JOB, arms=()), "arms is empty; give one at least"),
        (lambda: replace(JOB, arms=JOB.arms * 2), r"arms are named \['none', .*; make the names different"),
        (lambda: replace(JOB, seeds=()), "seeds is empty; give at least one"),
        (lambda: ArmConfig(name="a/b"), "name is 'a/b'; use letters, digits, _ and ."),
        (lambda: ArmConfig(name="a", history=65), "history is 65; use 0 to 64 versions"),
        (
            lambda: ArmConfig(name="a", history=8, history_pooling="atention"),
            r"history_pooling is 'atention' \(did you mean 'attention'\?\); use one of mean, attention",
        ),
        (lambda: ArmConfig(name="a", history_pooling="attention"), "'attention', but history is 0: say how many"),
        (lambda: NetworkConfig(join="row"), r"join is 'row' \(did you mean 'raw'\?\); use one of each, raw, together"),
        (lambda: NetworkConfig(join_dim=0), "join_dim is 0; use 1 or more"),
        (lambda: NetworkConfig(embedding_dim=0), "embedding_dim is 0; use 1 or more"),
        (lambda: NetworkConfig(embedding_dim=6), "embedding_dim is 6; tables need a multiple of 4"),
        (lambda: NetworkConfig(projection_dim=0), "projection_dim is 0; use 1 or more"),
        (lambda: NetworkConfig(hidden=(4, 0)), r"hidden is \(4, 0\); use widths of 1 or more"),
        (lambda: NetworkConfig(dropout=1), "dropout is 1; use 0 <= p < 1"),
        (lambda: NetworkConfig(entity_dropout=-1), "entity_dropout is -1; use 0 <= p < 1"),
        *(
            (lambda name=name: _rankers(**{name: ()}), f"{name} is empty; give at least one")
            for name in ("train", "validation", "test", "seeds")
        ),
        (lambda: replace(RANKERS, tasks={}), "tasks is empty; name at least one"),
        (lambda: replace(RANKERS, tasks={"a/b": "x"}), "tasks names 'a/b'; use letters"),
        (lambda: replace(RANKERS, tasks={"..": "x"}), "tasks names '..'; use letters"),
        (lambda: replace(RANKERS, seeds=(1, 1)), r"seeds is \(1, 1\); use different ones"),
        (lambda: replace(RANKERS, seeds=(-1,)), r"seeds is \(-1,\); use .*0 <= seed"),
        (lambda: replace(RANKERS, publish_delay_ms=-1), "publish_delay_ms is -1; use 0 or more"),
        (lambda: RetrievalConfig(k=()), r"k is \(\); give cut-offs of 1 or more"),
        (lambda: RetrievalConfig(k=(10, 0)), r"k is \(10, 0\); give cut-offs of 1 or more"),
        (lambda: replace(SMALL, upstreams=()), "upstreams is empty; give at least one"),
        (lambda: replace(SMALL, upstreams=SMALL.upstreams * 2), r"upstreams are named \['ctr', 'ctr'\]; make"),
        (lambda: replace(JOB, seed_suffixes=()), "seed_suffixes is empty"),
        (lambda: replace(SMALL, upstream_seeds=(1, 1)), r"upstream_seeds is \(1, 1\); use different ones"),
        (lambda: replace(SMALL, upstream_seeds=(2**32,)), "upstream_seeds is .*; use .*0 <= seed < 2"),
        (
            lambda: replace(SMALL, upstream_seeds=(0, 1, 2, 3)),
            "rankers.seeds are fewer, and nobody would read",
        ),
        (
            lambda: replace(SMALL, upstream_seeds=(0, 1), fragment=replace(RANKERS, seeds=(4,))),
            "fragment.seeds are fewer, .*; give fragment as many seeds",
        ),
        (
            lambda: replace(SMALL, upstream_seeds=(0, 1), upstreams=(SMALL.upstreams[0], _named("ctr_s1"))),
            r"upstreams are named \['ctr', 'ctr_s1', 'ctr_s1', .*; make the names different",
        ),
        (
            lambda: replace(SMALL, upstream_seeds=(0, 2**31), upstreams=(_named("x" * 95),)),
            "name is 'xxx.*_s2147483648'; use up to 100",
        ),
        (
            lambda: replace(FULL, upstream_seeds=(0, 1)).daily(),
            r"upstream_seeds is \(0, 1\): day by day every upstream is trained and refreshed once; leave it out",
        ),
        (
            lambda: replace(FULL, two_tower=TwoTowerSettings(name="towers")).daily(),
            "two_tower is given, named 'towers': it is trained once; leave it out of .*, or use `recsys run`",
        ),
        (
            lambda: replace(FULL, two_tower=None, arms=(ArmConfig(name="a"), ArmConfig(name="b"))).daily(),
            "arms are a, b: day by day .*; leave them out, or use `recsys run`",
        ),
        (lambda: replace(SMALL, ranks=0), "ranks is 0; use 1 or more"),
        (lambda: replace(SMALL, retrieval=RetrievalConfig(upstream="x")), "retrieval.upstream is 'x'; use one of ctr"),
    ],
)
def test_values_are_checked_on_construction(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_width_of_a_vector() -> None:
    assert ModelConfig(out_tokens=3, out_dim=5).vector_dim == 15


@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_survives_toml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.toml"
    config = replace(SMALL, name=text, note=text)
    config.save(path)
    assert StudyConfig.load(path) == config


@pytest.mark.parametrize(
    ("rows", "upstream", "ranker"),
    [(0, 64, 128), (12_799, 64, 128), (25_600, 256, 128), (40_000, 256, 128), (63_000, 512, 256), (10**8, 512, 1024)],
)
def test_a_batch_size_that_is_left_out_is_what_the_rows_allow(rows: int, upstream: int, ranker: int) -> None:
    assert TrainConfig().sized(rows).batch_size == upstream
    assert RankerTrainConfig().sized(rows).batch_size == ranker
    assert TrainConfig(batch_size=7).sized(rows) == TrainConfig(batch_size=7)
    assert TrainConfig().sized(rows, steps=16).batch_size >= upstream
