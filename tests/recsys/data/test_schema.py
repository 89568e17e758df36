from dataclasses import replace
from pathlib import Path

import pytest

from recsys.data.schema import Feature, Label, Schema, SchemaError


def _schema() -> Schema:
    return Schema(
        features=(
            Feature(name="country", owner="user", kind="id", rows=10),
            Feature(
                name="seen", owner="user", kind="sequence", rows=100, table="items", max_length=5, time="seen_time"
            ),
            Feature(name="bought", owner="user", kind="sequence", rows=100, table="items"),
            Feature(name="topics", owner="item", kind="ids", rows=20, max_length=3),
            Feature(name="price", owner="item", kind="dense"),
            Feature(name="picture", owner="item", kind="vector", width=4),
            Feature(name="hour", owner="context", kind="id", rows=24),
        ),
        labels=(Label(name="click"), Label(name="sale", valid="click")),
        outcomes=("play_time",),
        user_id="member",
    )


def test_toml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    _schema().save(path)
    assert Schema.load(path) == _schema()
    Schema().save(path)
    assert Schema.load(path) == Schema()


@pytest.mark.parametrize(
    "name", ['say "what"', "back\\slash", "Gefällt mir 👍", "\x00\t\n\x1f\x7f\x85", "[[label]]", "# no"]
)
def test_toml_holds_any_name_and_number(tmp_path: Path, name: str) -> None:
    schema = Schema(
        features=(Feature(name="price", owner="item", kind="dense"),),
        labels=(Label(name=name, kept_negatives=1e-7),),
        outcomes=("play_time", name + name),
        max_bad_rows=0.0,
        withdrawn=name + "?",
    )
    schema.save(tmp_path / "schema.toml")
    assert Schema.load(tmp_path / "schema.toml") == schema


def test_columns_names_every_column_once() -> None:
    assert _schema().columns() == (
        *("timestamp", "member", "item_id", "country", "seen", "seen_time", "bought", "topics"),
        *("price", "picture", "hour", "click", "sale"),
    )


def test_a_log_without_event_times(tmp_path: Path) -> None:
    price = Feature(name="price", owner="item", kind="dense")
    untimed = Schema(features=(price,), labels=(Label(name="click"),), timestamp="")
    assert not untimed.timed
    assert untimed.columns() == ("user_id", "item_id", "price", "click")
    assert untimed.select(labels=()).timestamp == ""
    untimed.save(tmp_path / "schema.toml")
    assert 'timestamp = ""' in (tmp_path / "schema.toml").read_text()
    assert Schema.load(tmp_path / "schema.toml") == untimed
    assert Schema().timed


def test_without_event_times_a_sequence_has_none() -> None:
    with pytest.raises(SchemaError, match=r"\['seen'\] have times, but timestamp is ''.*Leave out their `time`"):
        replace(_schema(), timestamp="")
    aged = replace(_schema().feature("seen"), time="")
    assert Schema(features=(aged, _schema().feature("bought")), timestamp="").columns()[2:] == ("seen", "bought")


def test_owned_by_keeps_schema_order() -> None:
    assert [x.name for x in _schema().owned_by("item", "context")] == ["topics", "price", "picture", "hour"]
    assert _schema().owned_by("interaction") == ()


def test_tables_and_age_keys() -> None:
    assert _schema().feature("seen").table_name == _schema().feature("bought").table_name == "items"
    assert _schema().feature("country").table_name == "country"
    assert _schema().feature("seen").age_key == "seen.age"


def test_select_turns_dropped_labels_into_outcomes() -> None:
    chosen = _schema().select(features=("price", "country"), labels=("click",))
    assert [x.name for x in chosen.features] == ["price", "country"]
    assert [x.name for x in chosen.labels] == ["click"]
    assert chosen.outcomes == ("play_time", "sale")
    assert chosen.user_id == "member"
    only_users = _schema().select(features=tuple(x.name for x in _schema().owned_by("user")), labels=())
    assert set(only_users.outcomes) == {"play_time", "click", "sale"}


@pytest.mark.parametrize("call", [lambda s: s.select(features=("nope",)), lambda s: s.feature("nope")])
def test_unknown_feature_lists_those_that_exist(call) -> None:
    with pytest.raises(SchemaError, match=r"'nope'.*country, seen"):
        call(_schema())


def test_unknown_label_lists_those_that_exist() -> None:
    with pytest.raises(SchemaError, match=r"'nope'.*click, sale"):
        _schema().select(labels=("nope",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"owner": "pin", "kind": "dense"}, "owner is 'pin'; use one of user"),
        ({"owner": "user", "kind": "float"}, "kind is 'float'; use one of id"),
        ({"owner": "user", "kind": "id", "rows": -1}, "rows is -1; use 1 or more, or leave it out"),
        ({"owner": "user", "kind": "dense", "rows": 5}, "rows is 5; a dense has no table"),
        ({"owner": "user", "kind": "dense", "table": "t"}, "table is 't'"),
        ({"owner": "user", "kind": "ids", "rows": 5, "max_length": -1}, "max_length is -1"),
        ({"owner": "user", "kind": "id", "rows": 5, "max_length": 3}, "max_length is 3; only ids and sequence"),
        ({"owner": "user", "kind": "ids", "rows": 5, "time": "t"}, "time is 't'; only a sequence"),
        ({"owner": "user", "kind": "vector"}, "width is 0; a vector has >= 1"),
        ({"owner": "user", "kind": "dense", "width": 3}, "width is 3"),
    ],
)
def test_feature_errors_name_field_value_and_remedy(values: dict, message: str) -> None:
    with pytest.raises(SchemaError, match=f"feature 'x': {message}"):
        Feature(name="x", **values)


def test_empty_names_are_refused() -> None:
    with pytest.raises(SchemaError, match="empty name"):
        Feature(name="", owner="user", kind="dense")
    with pytest.raises(SchemaError, match="empty name"):
        Label(name="")
    with pytest.raises(SchemaError, match="label itself"):
        Label(name="click", valid="click")
    for kept in (0, -0.1, 1.5):
        with pytest.raises(SchemaError, match=f"label 'click': kept_negatives is {kept}; use a share above 0"):
            Label(name="click", kept_negatives=kept)


@pytest.mark.parametrize("name", ["click", "sale", "play_time"])
def test_what_is_known_after_the_event_is_no_feature(name: str) -> None:
    leak = Feature(name=name, owner="context", kind="dense")
    with pytest.raises(SchemaError, match=f"{name}.*known only after the event"):
        Schema(features=(leak,), labels=(Label(name="sale", valid="click"),), outcomes=("play_time",))


def test_event_time_is_no_feature() -> None:
    with pytest.raises(SchemaError, match="event time"):
        Schema(features=(Feature(name="timestamp", owner="context", kind="dense"),))


def test_repeated_features_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"'x'.*listed twice"):
        Schema(features=tuple(Feature(name="x", owner=owner, kind="dense") for owner in ("user", "item")))


def test_repeated_labels_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"labels \['x'\] are listed twice"):
        Schema(labels=(Label(name="x"), Label(name="x", valid="y")))
    with pytest.raises(SchemaError, match=r"labels \['click'\] are listed twice"):
        _schema().select(labels=("click", "click"))


@pytest.mark.parametrize(("column", "other", "own"), [("member", "item", "user"), ("item_id", "user", "item")])
def test_an_entitys_id_is_no_feature_of_the_other_entity(column: str, other: str, own: str) -> None:
    """Else a user's vector would tell which item the row was about."""
    with pytest.raises(SchemaError, match=f"feature '{column}' has owner '{other}': it is the other entity's id"):
        Schema(features=(Feature(name=column, owner=other, kind="id", rows=9),), user_id="member")
    for owner in (own, "context", "interaction"):
        Schema(features=(Feature(name=column, owner=owner, kind="id", rows=9),), user_id="member")


def test_a_name_that_a_timed_sequence_takes_is_refused() -> None:
    seen = Feature(name="seen", owner="user", kind="sequence", rows=9, time="seen_time")
    with pytest.raises(SchemaError, match=r"features \['seen.age'\] are named as a timed sequence's ages are"):
        Schema(features=(seen, Feature(name="seen.age", owner="item", kind="id", rows=9)))


def test_a_shared_table_has_one_size_within_an_owner() -> None:
    first = Feature(name="a", owner="user", kind="id", rows=10, table="t")
    with pytest.raises(SchemaError, match="rows = 10 and 11"):
        Schema(features=(first, Feature(name="b", owner="user", kind="id", rows=11, table="t")))
    Schema(features=(first, Feature(name="b", owner="item", kind="id", rows=11, table="t")))  # another tower's table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestamp = ", "schema.toml: "),
        ("surprise = 1", "unknown key 'surprise'; known keys: features"),
        ("[[feature]]\nname = 'x'\nowner = 'user'\nkind = 'dense'\nsize = 3", "feature 'x': unknown key 'size'"),
        ("[[feature]]\nname = 'x'\nowner = 'user'", "feature 'x': .*kind"),
        ("[[label]]\nname = 'x'\nwhen = 'y'", "label 'x': unknown key 'when'"),
        ("[feature]\nname = 'x'", r"feature is no list: write \[\[feature\]\]"),
        ("label = ['x']", r"label is no list: write \[\[label\]\]"),
        ("outcomes = 'play_time'", "outcomes is no list: write outcomes = "),
        ("outcomes = [3]", "outcomes is no list"),
        ("timestamp = 5", "timestamp is 5; use a string"),
        ("[[feature]]\nname = 3\nowner = 'user'\nkind = 'dense'", "feature 3: name is 3; use a string"),
        (
            "[[feature]]\nname = 'x'\nowner = 'user'\nkind = 'id'\nrows = '5'",
            "feature 'x': rows is '5'; use an integer",
        ),
        ("[[feature]]\nname = 'x'\nowner = 'user'\nkind = 'id'\nrows = 5.5", "rows is 5.5; use an integer"),
        ("[[feature]]\nname = 'x'\nowner = 'user'\nkind = 'id'\nrows = true", "rows is True; use an integer"),
        ("[[label]]\nname = 'x'\n[[label]]\nname = 'x'", r"labels \['x'\] are listed twice"),
    ],
)
def test_load_errors_begin_with_the_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(text)
    with pytest.raises(SchemaError, match=message) as caught:
        Schema.load(path)
    assert str(caught.value).startswith(str(path))
