"""`recsys config`: every key, its default and its meaning, as TOML that can be edited."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from recsys.checks import KINDS
from recsys.config import StudyConfig, UpstreamConfig, from_dict, to_dict
from recsys.config.listing import listing, meanings
from recsys.data.schema import TABLES, Feature, Label, Schema
from tests.recsys.test_config import SMALL


def classes(kind: Any) -> set[type]:
    """A config class, and those that its fields hold."""
    inner = [each for hint in get_type_hints(kind).values() for each in (hint, *get_args(hint)) if is_dataclass(each)]
    return {kind}.union(*(classes(each) for each in inner))


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_key_is_listed_with_what_it_means(kind: type) -> None:
    text = listing(kind)
    tomllib.loads(text)
    flat = " ".join(text.replace("# ", "").split())
    for each in classes(kind):
        for entry in fields(each):
            meaning = meanings(each)[entry.name]
            assert meaning
            assert meaning.rstrip(".") in flat
            assert re.search(rf"(^#?|[.[]){entry.name}( =|\.NAME\]|\])", text, re.MULTILINE), entry.name


def test_every_key_of_a_schema_is_listed() -> None:
    text = listing(Schema, TABLES)
    listed = tomllib.loads(text)
    assert listed.keys() == {entry.name for entry in fields(Schema)} - TABLES.keys() | set(TABLES.values())
    (feature,), (label,) = listed["feature"], listed["label"]
    assert feature.keys() == {entry.name for entry in fields(Feature)}
    assert label.keys() == {entry.name for entry in fields(Label)}
    flat = " ".join(text.replace("# ", "").split())
    assert all(meanings(kind)[entry.name].rstrip(".") in flat for kind in (Feature, Label) for entry in fields(kind))


def test_what_is_listed_is_the_default_and_what_must_be_given_is_marked() -> None:
    listed = tomllib.loads(listing(UpstreamConfig))
    lines = [line for line in listing(UpstreamConfig).splitlines() if line.endswith("must be given")]
    marked = [line.partition(" ")[0] for line in lines if not line.startswith("#")]  # else of what may be left out
    assert marked == ["name", "[source]", "schema", "events"]
    listed["graph"]["relations"], listed["training"]["tables"] = [], {}  # off, as those are that may be empty
    upstream = to_dict(SMALL.upstreams[0])
    assert listed | {"name": upstream["name"], "source": upstream["source"]} == upstream


def test_what_must_be_given_is_all_that_must_be_edited() -> None:
    document = tomllib.loads(listing(StudyConfig))
    given = to_dict(SMALL)
    document["name"] = given["name"]
    document["upstreams"][0] |= {"name": "ctr", "source": given["upstreams"][0]["source"]}
    document["rankers"] |= {key: given["rankers"][key] for key in ("schema", "train", "validation", "test", "tasks")}
    assert from_dict(StudyConfig, document) == SMALL


def test_a_subclass_says_what_is_other_in_it() -> None:
    assert "\n[actions.NAME]\n" in listing(KINDS["log"])
    text = listing(KINDS["ranker"])
    assert "# Passes over the events, at most: the validation files" in text
    assert "epochs = 8" in text
