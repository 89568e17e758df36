"""Events that lie in an object store are read there, as those of a folder are."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.config import TrainConfig
from recsys.data import objects as objects_module
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.objects import ObjectPath, located
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.identity import identify_files
from recsys.refresh.days import available_days, find_day
from recsys.refresh.fingerprints import Fingerprints
from recsys.upstream import train_upstream
from tests.recsys.data.events import SCHEMA, write_files
from tests.recsys.refresh.daily_example import DAILY, DAYS, write_day
from tests.recsys.refresh.example import CONFIG, write_log
from tests.s3 import S3_BUCKET

PATTERNS = ("*.parquet", "a/*.parquet", "a/**/*.parquet", "**/*.parquet", "*/part-?.parquet", "a/b/part-[12].parquet")


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Path]]:
    """A client, and a place in the store of the test's own."""
    objects_module._system.cache_clear()
    yield s3, located(Path(f"s3://{S3_BUCKET}/{request.node.name}"))
    objects_module._system.cache_clear()


def upload(client: Any, folder: Path, to: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            key = "/".join((*to.parts[2:], *file.relative_to(folder).parts))
            client.put_object(Bucket=S3_BUCKET, Key=key, Body=file.read_bytes())
    return to


def test_what_is_no_object_stays_as_it_is(tmp_path: Path) -> None:
    assert located(tmp_path) is tmp_path
    assert located(Path("s3/events")) == Path("s3/events")
    assert located(Path()) == Path()
    path = located(Path("gs://bucket/events/a.parquet"))
    assert isinstance(path, ObjectPath)
    assert (path / "b").relative_to(path).as_posix() == "b"
    assert isinstance(pickle.loads(pickle.dumps(path)), ObjectPath)


@pytest.mark.parametrize("pattern", [*PATTERNS, "none/*"])
def test_globs_find_what_they_find_in_a_folder(bucket: tuple[Any, Path], tmp_path: Path, pattern: str) -> None:
    client, place = bucket
    for name in ("x.parquet", "a/part-0.parquet", "a/b/part-1.parquet", "a/b/c/part-12.parquet", "a/b/x.txt", "d/e.f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"some")
    upload(client, tmp_path, place)
    wanted = sorted(path.relative_to(tmp_path) for path in tmp_path.glob(pattern) if path.is_file())
    found = sorted(path for path in place.glob(pattern) if path.is_file())
    assert [path.relative_to(place) for path in found] == wanted
    assert all(isinstance(path, ObjectPath) for path in found)


def test_events_are_those_of_the_folder(bucket: tuple[Any, Path], tmp_path: Path) -> None:
    client, place = bucket
    folder = tmp_path / "data"
    (folder / "events").mkdir(parents=True)
    write_files(folder / "events", [30, 5], row_group=7)
    SCHEMA.save(folder / "schema.toml")
    upload(client, folder, place)
    assert Schema.load(place / "schema.toml") == SCHEMA
    streams, identities = [], []
    for root in (folder, place):
        files = find_files(root, ("events/*.parquet",))
        streams.append(list(EventStream(files, SCHEMA, batch_size=4, workers=2, shuffle_batches=2)))
        identities.append(identify_files(files, root))
    assert identities[0] == identities[1]
    for here, there in zip(*streams, strict=True):
        assert here.user_ids.tolist() == there.user_ids.tolist()
        assert here.sparse.values().tolist() == there.sparse.values().tolist()
    with pytest.raises(DataError, match=r"matches nothing in s3:/vectors/.*did you mean 'events/\*.parquet'"):
        find_files(place, ("event/*.parquet",))


def test_days_are_found_and_known_again(bucket: tuple[Any, Path], tmp_path: Path) -> None:
    client, place = bucket
    for day in DAYS[:2]:
        write_day(tmp_path / "data", day)
    upload(client, tmp_path / "data", place)
    assert len(find_day(place, DAILY, DAYS[1])) == 1
    there = available_days(place, DAILY, tmp_path / "there.json").events
    assert there == available_days(tmp_path / "data", DAILY, tmp_path / "here.json").events
    path = place / "days" / DAYS[0] / "part-0.parquet"
    client.put_object(Bucket=S3_BUCKET, Key="/".join(path.parts[2:]), Body=b"another")
    assert Fingerprints(place, tmp_path / "there.json").of([path]) != there[DAYS[0]]


def test_objects_are_not_written(bucket: tuple[Any, Path]) -> None:
    _, place = bucket
    with pytest.raises(OSError, match="is an object that is read"):
        (place / "a").write_text("b")
    with pytest.raises(FileNotFoundError):
        (place / "none").stat()
    assert not (place / "none").exists()


def test_a_job_trains_on_events_in_a_store(bucket: tuple[Any, Path], tmp_path: Path) -> None:
    client, place = bucket
    folder = write_log(tmp_path / "data")
    upload(client, folder, place)
    upstream = replace(CONFIG.upstreams[0], training=TrainConfig(epochs=1, batch_size=8, log_every=1))
    losses = []
    for name, root in (("here", folder), ("there", place)):
        train_upstream(upstream, root, tmp_path / name)
        lines = (tmp_path / name / "upstream/ctr/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1
