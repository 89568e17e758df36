"""Mistakes in a config's TOML, and changes of single values, by path."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from recsys.config import (
    ConfigError,
    RankerConfig,
    RefreshConfig,
    StudyConfig,
    UpstreamConfig,
    from_dict,
    override,
    to_dict,
)
from tests.recsys.test_config import FULL, SMALL


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("bogus", 1, "unknown key bogus; `recsys config` lists every key"),
        ("upstreams.0.training.epoch", 1, r"unknown key upstreams.ctr.training.epoch \(did you mean 'epochs'\?\); "),
        ("upstreams.0.training.epochs", True, "upstreams.ctr.training.epochs is True; it must be an integer"),
        ("upstreams.0.training.epochs", 1.0, "upstreams.ctr.training.epochs is 1.0; it must be an integer"),
        ("upstreams.0.training.sparse_lr", "high", "upstreams.ctr.training.sparse_lr is 'high'; it must be a number"),
        ("upstreams.0.training.sparse_lr", True, "upstreams.ctr.training.sparse_lr is True; it must be a number"),
        ("upstreams.0.source.events", "log/*.parquet", "upstreams.ctr.source.events is 'log/.*; it must be a list"),
        ("upstreams.0.source.events", ["a", 3], "upstreams.ctr.source.events.1 is 3; it must be a string"),
        ("upstreams.0.model.layers", ["mlp"], "upstreams.ctr.model.layers.0 is 'mlp'; it must be a list"),
        ("upstreams.0.model", 5, "upstreams.ctr.model is 5; it must be a table"),
        ("upstreams.0.model.heads", 3, "upstreams.ctr.model.heads is 3; it must divide token_dim = 16"),
        ("upstreams.0.name", 3, "upstreams.0.name is 3; it must be a string"),
        ("upstreams.0.name", "", "upstreams.0.name is ''; use up to 100"),
        ("upstreams", {"name": "ctr"}, "upstreams is {'name': 'ctr'}; it must be a list"),
        ("upstreams", "ctr", "upstreams is 'ctr'; it must be a list"),
        ("refresh.gates.max_skew", 2, "refresh.gates.max_skew is 2.0; use a number from 0 to 1"),
        ("refresh.study", 1, "refresh.study is 1; it must be true or false"),
        ("refresh.retention.keep_last", 1.5, "refresh.retention.keep_last is 1.5; it must be an integer"),
        ("rankers.train", [3], "rankers.train.0 is 3; it must be a string"),
        ("rankers.seeds", 3, "rankers.seeds is 3; it must be a list"),
        ("rankers.seeds", [True], "rankers.seeds.0 is True; it must be an integer"),
        ("rankers.tasks", "ctr", "rankers.tasks is 'ctr'; it must be a table"),
        ("rankers.tasks", {"ctr": 3}, "rankers.tasks.ctr is 3; it must be a string"),
        ("retrieval", 3, "retrieval is 3; it must be a table"),
        ("name", 3, "name is 3; it must be a string"),
        ("ranks", "2", "ranks is '2'; it must be an integer"),
    ],
)
def test_a_wrong_type_or_key_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    document = to_dict(SMALL)
    *parents, last = path.split(".")
    node: Any = document
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    (tmp_path / "config.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        StudyConfig.load(tmp_path / "config.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'config.toml'}: ")


@pytest.mark.parametrize("key", ["name", "upstreams", "rankers"])
def test_a_missing_key_is_named(key: str) -> None:
    document = to_dict(SMALL)
    del document[key]
    with pytest.raises(ConfigError, match=f"^{key} is missing; `recsys config` says"):
        from_dict(StudyConfig, document)


def test_a_missing_key_deep_down_is_named() -> None:
    document = to_dict(SMALL)
    del document["upstreams"][0]["source"]["schema"]
    with pytest.raises(ConfigError, match=r"^upstreams\.ctr\.source\.schema is missing"):
        from_dict(StudyConfig, document)


@pytest.mark.parametrize(
    ("kind", "document", "hints"),
    [
        (StudyConfig, {"downstream": {}}, ["unknown key downstream (it is [rankers] now"]),
        (
            StudyConfig,
            {"daily": {}, "bogus": 1},
            [
                "daily (events, utc_offset_hours, first and last are in [refresh.days] now; train, validation",
                "unknown key bogus;",
            ],
        ),
        (
            StudyConfig,
            to_dict(SMALL) | {"upstreams": [{"name": "cvr", "refresh": {}}]},
            ["unknown key upstreams.cvr.refresh (its keys are in [refresh] of the study now"],
        ),
        (StudyConfig, to_dict(SMALL) | {"refresh": {"epochs": 2}}, ["refresh.epochs (it is in [refresh.days] now)"]),
        (StudyConfig, to_dict(SMALL) | {"rankers": {"ranker": {}}}, ["rankers.ranker (it is `network` now)"]),
        *((kind, to_dict(SMALL), ["upstreams (this is a study's"]) for kind in (UpstreamConfig, RefreshConfig)),
        (RankerConfig, to_dict(SMALL), ["upstreams (this is a study's", "a job takes its own: see OUT/configs"]),
    ],
)
def test_what_an_earlier_format_or_another_job_had_is_explained(
    kind: type, document: dict[str, Any], hints: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(kind, document)
    for hint in hints:
        assert hint in str(caught.value)


@pytest.mark.parametrize("content", [b"name = ", b"name = 'a'\nname = 'b'", b"\xff"])
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: "):
        StudyConfig.load(path)
    with pytest.raises(ConfigError, match=r"absent\.toml: .*No such file"):
        StudyConfig.load(tmp_path / "absent.toml")


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
        ("rankers.seeds=[9]", lambda c: c.rankers.seeds, (9,)),
        ("rankers.tasks={cvr='buy'}", lambda c: c.rankers.tasks, {"cvr": "buy"}),
        ("rankers.tasks.ctr=buy", lambda c: c.rankers.tasks, {"ctr": "buy"}),
        ("retrieval.k=[3]", lambda c: c.retrieval.k, (3,)),
        ("fragment.network.dropout=0", lambda c: c.fragment.network.dropout, 0.0),
    ],
)
def test_override(assignment: str, read: Callable[[StudyConfig], Any], expected: Any) -> None:
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
        ("rank=1", r"unknown key rank \(did you mean 'ranks'\?\)"),
        ("upstreams.dlrm.training.epochs=1", r"no 'dlrm' there \(there are: ctr, cvr\)"),
        ("upstreams.ctv.training.epochs=1", r"no 'ctv' there \(did you mean 'c[tv][rv]'"),
        ("upstreams.2.training.epochs=1", "no '2' there"),
        ("upstreams.ctr.training.epoch=1", r"unknown key upstreams.ctr.training.epoch \(did you mean 'epochs'"),
        ("upstreams.ctr.training.epochs.x=1", "'upstreams.ctr.training.epochs.x': no such key"),
        ("upstreams.ctr.model.layers.0.0=mlp", "'upstreams.ctr.model.layers.0.0': no such key"),
        ("upstreams.ctr.model.layers.x.y=mlp", "no 'x' there"),
        ("rankers.train.x.y=1", "no 'x' there"),
        ("rankers.seeds.0=1", "'rankers.seeds.0': no such key"),
        ("=1", "'': no such key"),
        ("ranks=0", "ranks is 0; use 1 or more"),
        ("ranks=two", "ranks is 'two'; it must be an integer"),
        ("upstreams.ctr.name=cvr", r"upstreams are named \['cvr', 'cvr'\]"),
    ],
)
def test_override_errors(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(FULL, (assignment,))
