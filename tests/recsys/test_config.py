import copy
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import (
    ConfigError,
    DailyConfig,
    DownstreamConfig,
    GateConfig,
    LossConfig,
    ModelConfig,
    RankerConfig,
    RefreshConfig,
    RetrievalConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    UpstreamConfig,
    from_dict,
    override,
)
from recsys.recipes import DAILY, RECIPES

SOURCE = SourceConfig(schema="log/schema.toml", events=("log/events/*.parquet",))
DOWNSTREAM = DownstreamConfig(
    schema="log/schema.toml", train=("a/*",), validation=("b/*",), test=("c/*",), tasks={"ctr": "click"}
)


def _downstream(**changes: Any) -> DownstreamConfig:
    return replace(DOWNSTREAM, **changes)


SMALL = RunConfig(name="small", upstreams=(UpstreamConfig(name="ctr", source=SOURCE),), downstream=DOWNSTREAM)
FULL = RunConfig(
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
            refresh=RefreshConfig(aggregation="average", align="procrustes", gates=GateConfig(max_skew=0.1)),
        ),
        UpstreamConfig(name="cvr", source=SOURCE),
    ),
    downstream=replace(DOWNSTREAM, features=("user_id",), publish_delay_ms=1000, seeds=(5, 3)),
    fragment=replace(DOWNSTREAM, tasks={"ctr": "click", "cvr": "buy"}, ranker=RankerConfig(hidden=())),
    retrieval=RetrievalConfig(upstream="cvr", label="buy", k=(1, 5)),
    daily=DailyConfig(
        events="e/{day}/*",
        utc_offset_hours=5.5,
        first="2024-02-28",
        last="2024-03-02",
        train=("2024-02-28", "2024-02-29"),
        validation=("2024-03-01", "2024-03-01"),
        test=("2024-03-02", "2024-03-02"),
        publish_delay_ms=5,
        study=False,
    ),
    ranks=3,
)
DAYS = FULL.days()


@pytest.mark.parametrize("config", [SMALL, FULL, *(r.config() for r in (*RECIPES.values(), *DAILY.values()))])
def test_toml_round_trip(tmp_path: Path, config: RunConfig) -> None:
    config.save(tmp_path / "config.toml")
    loaded = RunConfig.load(tmp_path / "config.toml")
    assert loaded == config
    assert hash(loaded.upstreams) == hash(config.upstreams)  # tuples, not lists, all the way down


def test_a_saved_config_names_every_value(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "config.toml")
    document = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert set(document["upstreams"][0]["training"]) == set(asdict(TrainConfig()))
    assert "fragment" not in document
    assert "retrieval" not in document


def test_integers_serve_as_numbers() -> None:
    assert FULL.upstreams[0].training.sparse_lr == 1
    document = _document(FULL)
    document["upstreams"][0]["training"]["sparse_lr"] = 2
    value = from_dict(document).upstreams[0].training.sparse_lr
    assert value == 2.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SourceConfig(schema="", events=("x",)), "source.schema is empty: give"),
        (lambda: SourceConfig(schema="x", events=()), "source.events is empty: give"),
        *(
            (lambda name=name: ModelConfig(**{name: 0}), f"model.{name} is 0; use 1 or more")
            for name in ("token_dim", "tokens", "heads", "out_tokens", "out_dim")
        ),
        (lambda: ModelConfig(sequence_layers=-1), "model.sequence_layers is -1; use 0 or more"),
        (lambda: ModelConfig(token_dim=12, heads=5), "model.heads is 5; it must divide token_dim = 12"),
        (lambda: ModelConfig(token_dim=6), "model.token_dim is 6; tables need a multiple of 4"),
        (lambda: ModelConfig(layers=()), "model.layers is empty; give"),
        (lambda: ModelConfig(layers=(("mlp",), ())), "model.layers has a layer without modules; give"),
        (lambda: ModelConfig(layers=(("cnn",),)), "model.layers names 'cnn'; use one of masknet, dcnv2"),
        (lambda: ModelConfig(dropout=1.0), "model.dropout is 1.0; use 0 <= dropout < 1"),
        (lambda: ModelConfig(dropout=-0.1), "model.dropout is -0.1"),
        (lambda: LossConfig(temperature=0), "loss.temperature is 0; use more than 0"),
        (lambda: LossConfig(contrastive_weight=-1), "loss.contrastive_weight is -1; use 0 or more"),
        *(
            (lambda name=name: TrainConfig(**{name: 0}), f"training.{name} is 0; use 1 or more")
            for name in ("epochs", "batch_size", "log_every")
        ),
        *(
            (lambda name=name: TrainConfig(**{name: -1}), f"training.{name} is -1; use 0 or more")
            for name in ("shuffle_batches", "checkpoint_every", "weight_decay")
        ),
        (lambda: TrainConfig(seed=-1), r"training.seed is -1; use 0 <= seed < 2\^32"),
        (lambda: TrainConfig(seed=2**32), "training.seed is 4294967296; use"),
        (lambda: TrainConfig(sparse_lr=0), "training.sparse_lr is 0; use more than 0"),
        (lambda: TrainConfig(dense_lr=float("nan")), "training.dense_lr is nan; use more than 0"),
        (lambda: UpstreamConfig(name="a-b", source=SOURCE), "upstream.name is 'a-b'; use"),
        (lambda: UpstreamConfig(name="", source=SOURCE), "upstream.name is ''; use"),
        (lambda: UpstreamConfig(name="klick_ü", source=SOURCE), "upstream.name is 'klick_ü'; use"),
        (lambda: UpstreamConfig(name="x" * 101, source=SOURCE), "upstream.name is 'xxx.*; use up to 100"),
        (lambda: UpstreamConfig(name="x", source=SOURCE, tasks=("a", "a")), "upstream.tasks is .*; name each label on"),
        (
            lambda: RefreshConfig(aggregation="sum"),
            "refresh.aggregation is 'sum'; use one of 'ma', 'latest', 'average'",
        ),
        (lambda: RefreshConfig(dtype="f8"), "refresh.dtype is 'f8'; use one of 'float32'"),
        (lambda: RefreshConfig(align="affine"), "refresh.align is 'affine'; use one of '', 'procrustes'"),
        (lambda: RefreshConfig(weight=1.0), "refresh.weight is 1.0; use 0 <= weight < 1"),
        (lambda: RefreshConfig(time_to_live_days=0), "refresh.time_to_live_days is 0; use 1 or more"),
        (lambda: RefreshConfig(epochs=0), "refresh.epochs is 0; use 1 or more"),
        (lambda: RefreshConfig(delta_below=2.0), "refresh.delta_below is 2.0; use a share"),
        (lambda: RefreshConfig(tag=""), "refresh.tag is empty; name the tag"),
        (lambda: GateConfig(min_coverage=1.5), "refresh.gates.min_coverage is 1.5; use a number from 0 to 1"),
        (lambda: GateConfig(max_drift=-1.0), "refresh.gates.max_drift is -1.0; use a number from 0 to 2"),
        (lambda: replace(DAYS, events="e/*"), "daily.events is 'e/[*]'; give a pattern .*with {day} in it"),
        (lambda: replace(DAYS, events="/e/{day}"), "daily.events is '/e/{day}'; give .* relative to the data folder"),
        (lambda: replace(DAYS, utc_offset_hours=15), "daily.utc_offset_hours is 15; use hours from -14 to 14"),
        (lambda: replace(DAYS, first="2024-2-28"), "daily.first names the day '2024-2-28'; write it as 2024-01-31"),
        (lambda: replace(DAYS, last="2024-02-30"), "daily.last names the day '2024-02-30'"),
        (lambda: replace(DAYS, last="2024-02-01"), "daily.first is 2024-02-28, after daily.last = 2024-02-01: swap"),
        (lambda: replace(DAYS, train=("2024-02-28",)), r"daily.train is \['2024-02-28'\]; give its first and its last"),
        (lambda: replace(DAYS, train=("2024-02-29", "2024-02-28")), "daily.train begins on 2024-02-29, after its end"),
        (lambda: replace(DAYS, test=("2024-03-02", "2024-03-03")), "daily.test is .* choose days from daily.first"),
        (lambda: replace(DAYS, validation=DAYS.train), "must follow one another without a common day"),
        (lambda: replace(DAYS, publish_delay_ms=-1), "daily.publish_delay_ms is -1; use 0 or more"),
        (lambda: replace(SMALL).days(), r"daily is missing: give the config a \[daily\] section"),
        (lambda: RankerConfig(embedding_dim=0), "ranker.embedding_dim is 0; use 1 or more"),
        (lambda: RankerConfig(embedding_dim=6), "ranker.embedding_dim is 6; tables need a multiple of 4"),
        (lambda: RankerConfig(projection_dim=0), "ranker.projection_dim is 0; use 1 or more"),
        (lambda: RankerConfig(hidden=(4, 0)), r"ranker.hidden is \(4, 0\); use widths of 1 or more"),
        (lambda: RankerConfig(dropout=1), "ranker.dropout is 1; use 0 <= p < 1"),
        (lambda: RankerConfig(entity_dropout=-1), "ranker.entity_dropout is -1; use 0 <= p < 1"),
        *(
            (lambda name=name: _downstream(**{name: ()}), f"downstream.{name} is empty; give at least one")
            for name in ("train", "validation", "test", "seeds")
        ),
        (lambda: replace(DOWNSTREAM, tasks={}), "downstream.tasks is empty; name at least one"),
        (lambda: replace(DOWNSTREAM, tasks={"a/b": "x"}), "downstream.tasks names 'a/b'; use letters"),
        (lambda: replace(DOWNSTREAM, tasks={"..": "x"}), "downstream.tasks names '..'; use letters"),
        (lambda: replace(DOWNSTREAM, seeds=(1, 1)), r"downstream.seeds is \(1, 1\); use different ones"),
        (lambda: replace(DOWNSTREAM, seeds=(-1,)), r"downstream.seeds is \(-1,\); use .*0 <= seed"),
        (lambda: replace(DOWNSTREAM, publish_delay_ms=-1), "downstream.publish_delay_ms is -1; use 0 or more"),
        (lambda: RetrievalConfig(k=()), r"retrieval.k is \(\); give cut-offs of 1 or more"),
        (lambda: RetrievalConfig(k=(10, 0)), r"retrieval.k is \(10, 0\); give cut-offs of 1 or more"),
        (lambda: replace(SMALL, upstreams=()), "upstreams is empty; give at least one"),
        (lambda: replace(SMALL, upstreams=SMALL.upstreams * 2), r"upstreams are named \['ctr', 'ctr'\]; make"),
        (lambda: replace(SMALL, ranks=0), "ranks is 0; use 1 or more"),
        (lambda: replace(SMALL, retrieval=RetrievalConfig(upstream="x")), "retrieval.upstream is 'x'; use one of ctr"),
    ],
)
def test_values_are_checked_on_construction(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("bogus", 1, "unknown key 'bogus'; see recsys/config/"),
        ("upstreams.0.training.epoch", 1, "unknown key 'epoch'"),
        ("upstreams.0.training.epochs", True, '"upstreams.training.epochs" - should be "int" .*"True"'),
        ("upstreams.0.training.epochs", 1.0, '"upstreams.training.epochs" - should be "int" .*"1.0"'),
        ("upstreams.0.training.sparse_lr", "high", '"upstreams.training.sparse_lr" - should be "float" .*"high"'),
        ("upstreams.0.training.sparse_lr", True, '"upstreams.training.sparse_lr" - should be "float" .*"True"'),
        ("upstreams.0.source.events", "log/*.parquet", '"upstreams.source.events" - should be "list" .*"log/'),
        ("upstreams.0.model.layers", ["mlp"], '"upstreams.model.layers" - should be "list" .*"mlp"'),
        ("upstreams.0.model", 5, '"upstreams.model" - should be "ModelConfig" .*"5"'),
        ("upstreams", {"name": "ctr"}, '"upstreams" - should be "list"'),
        ("upstreams", "ctr", '"upstreams" - should be "list" .*"ctr"'),
        ("downstream.train", [3], '"downstream.train" - should be "str" .*"3"'),
        ("downstream.seeds", 3, '"downstream.seeds" - should be "list" .*"3"'),
        ("downstream.seeds", [True], '"downstream.seeds" - should be "int" .*"True"'),
        ("downstream.tasks", "ctr", '"downstream.tasks" - should be "dict" .*"ctr"'),
        ("downstream.tasks", {"ctr": 3}, '"downstream.tasks" - should be "str" .*"3"'),
        ("retrieval", 3, '"retrieval" - should be .*RetrievalConfig.*"3"'),
        ("name", 3, '"name" - should be "str" .*"3"'),
        ("ranks", "2", '"ranks" - should be "int" .*"2"'),
    ],
)
def test_a_wrong_type_or_key_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    document = _document(SMALL)
    *parents, last = path.split(".")
    node: Any = document
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    (tmp_path / "config.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig.load(tmp_path / "config.toml")
    assert str(caught.value).startswith(str(tmp_path / "config.toml"))


@pytest.mark.parametrize("key", ["name", "upstreams", "downstream"])
def test_a_missing_key_is_named(key: str) -> None:
    document = _document(SMALL)
    del document[key]
    with pytest.raises(ConfigError, match=f'missing value for field "{key}"'):
        from_dict(document)


@pytest.mark.parametrize("content", [b"name = ", b"name = 'a'\nname = 'b'", b"\xff"])
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: "):
        RunConfig.load(path)
    with pytest.raises(ConfigError, match=r"absent\.toml: .*No such file"):
        RunConfig.load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("assignment", "read", "expected"),
    [
        ("ranks=4", lambda c: c.ranks, 4),
        ("name=mine", lambda c: c.name, "mine"),
        ('name="quoted"', lambda c: c.name, "quoted"),
        ("note=a=b", lambda c: c.note, "a=b"),
        ("upstreams.0.training.epochs=2", lambda c: c.upstreams[0].training.epochs, 2),
        ("upstreams.cvr.training.sparse_lr=1", lambda c: c.upstreams[1].training.sparse_lr, 1.0),
        ("upstreams.1.source.users=['u/*']", lambda c: c.upstreams[1].source.users, ("u/*",)),
        ("upstreams.ctr.model.layers=[['mlp'], ['dcnv2']]", lambda c: c.upstreams[0].model.layers[1], ("dcnv2",)),
        ("downstream.seeds=[9]", lambda c: c.downstream.seeds, (9,)),
        ("downstream.tasks={cvr='buy'}", lambda c: c.downstream.tasks, {"cvr": "buy"}),
        ("downstream.tasks.ctr=buy", lambda c: c.downstream.tasks, {"ctr": "buy"}),
        ("retrieval.k=[3]", lambda c: c.retrieval.k, (3,)),
        ("fragment.ranker.dropout=0", lambda c: c.fragment.ranker.dropout, 0.0),
    ],
)
def test_override(assignment: str, read: Callable[[RunConfig], Any], expected: Any) -> None:
    before = copy.deepcopy(FULL)
    changed = override(FULL, (assignment,))
    assert read(changed) == expected
    assert before == FULL
    name = assignment.partition("=")[0].split(".")[0]
    assert all(
        getattr(changed, other) == getattr(FULL, other) for other in asdict(FULL) if other != name
    )  # nothing beside it moved


def test_overrides_apply_in_order() -> None:
    assert override(FULL, ()) == FULL
    assert override(FULL, ("ranks=4", "ranks=5")).ranks == 5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ranks", "'ranks' has no '='; write path=value"),
        ("rank=1", "'rank': no such key"),
        ("upstreams.dlrm.training.epochs=1", "no 'dlrm' there"),
        ("upstreams.2.training.epochs=1", "no '2' there"),
        ("upstreams.ctr.training.epoch=1", "'upstreams.ctr.training.epoch': no such key"),
        ("upstreams.ctr.training.epochs.x=1", "'upstreams.ctr.training.epochs.x': no such key"),
        ("upstreams.ctr.model.layers.0.0=mlp", "'upstreams.ctr.model.layers.0.0': no such key"),
        ("upstreams.ctr.model.layers.x.y=mlp", "no 'x' there"),
        ("downstream.train.x.y=1", "no 'x' there"),
        ("downstream.seeds.0=1", "'downstream.seeds.0': no such key"),
        ("=1", "'': no such key"),
        ("ranks=0", "ranks is 0; use 1 or more"),
        ("ranks=two", '"ranks" - should be "int" .*"two"'),
        ("upstreams.ctr.name=cvr", r"upstreams are named \['cvr', 'cvr'\]"),
    ],
)
def test_override_errors(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(FULL, (assignment,))


def test_upstream_by_name() -> None:
    assert FULL.upstream("cvr") is FULL.upstreams[1]
    with pytest.raises(ConfigError, match="unknown upstream 'x'; the config has: ctr, cvr"):
        FULL.upstream("x")
    assert ModelConfig(out_tokens=3, out_dim=5).vector_dim == 15


@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_survives_toml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.toml"
    config = replace(SMALL, name=text, note=text)
    config.save(path)
    assert RunConfig.load(path) == config


def _document(config: RunConfig) -> dict[str, Any]:
    """What `save` writes."""
    return tomllib.loads(tomli_w.dumps({k: v for k, v in asdict(config).items() if v is not None}))
