"""Cross representations as series that follow the others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from embedding_store import EmbeddingStore
from recsys.config import (
    ArmConfig,
    GateConfig,
    NetworkConfig,
    RankerTrainConfig,
)
from recsys.data.convert import to_batch
from recsys.downstream.features import StoreFeatures
from recsys.downstream.ranking import all_rankers, train_rankers
from recsys.folders import store_folder
from recsys.models.derm import DERM
from recsys.refresh.aggregator import DayWriter
from recsys.refresh.arms import ENTITIES, cross_series
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import window
from recsys.refresh.on_demand import embed_rows
from recsys.study.ablation import ranker_job
from recsys.train.checkpoint import load_model
from recsys.train.distributed import Environment
from recsys.train.tables import allocate
from tests.distributed import run_ranks
from tests.recsys.refresh.catalogue_example import FLAGGED, deliver, has, item_rows, noon
from tests.recsys.refresh.catalogue_example import config as catalogue_config
from tests.recsys.refresh.cross_example import Known, add, mean
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    PLAIN,
    contents,
    daily_config,
    records,
    refresh,
    series,
    snapshots,
    start_run,
    write_day,
)
from tests.recsys.refresh.example import CONFIG as STUDY
from tests.recsys.refresh.example import MODEL, SCHEMA

CROSS = cross_series("ctr")
ALL = (*PLAIN, *CROSS)
DECAYED = 0.9
CONFIG = daily_config(cross=True, cross_decay=DECAYED)
pytestmark = pytest.mark.usefixtures("no_pages")


def model_of(path: Path) -> DERM:
    """A checkpoint's model with whole tables."""
    model = DERM(SCHEMA, MODEL, ["click"])
    allocate(model)
    load_model(path, nn.ModuleDict({"model": model}))
    return model.eval()


@torch.no_grad()
def learn(known: Known, files: Sequence[Path], model: DERM) -> None:
    """Go on with the events of some files, one by one in order of time."""
    table = pa.concat_tables(pq.ParquetFile(path).read() for path in files)
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    for row in order:
        batch = model.vocabulary.resolve(to_batch(table.slice(row, 1), SCHEMA))
        (vector,) = model.cross_vector(batch)
        for owner, ids in (("user", batch.user_ids), ("item", batch.item_ids)):
            known[owner][int(ids)] = add(known[owner].get(int(ids)), vector, DECAYED)


def assert_published(out: Path, known: Known, version: int) -> None:
    """A version of both series has these entities and their means, and how many events each has."""
    for owner, name in zip(ENTITIES, CROSS, strict=True):
        snapshot = series(out, name).version(version)
        table, activity = snapshot.load(), series(out, f"{name}.activity").as_of(snapshot.as_of).load()
        assert sorted(table.ids().tolist()) == sorted(known[owner])
        ids = torch.tensor(list(known[owner]))
        expected = torch.stack([mean(state, DECAYED) for state in known[owner].values()])
        torch.testing.assert_close(table.lookup(ids)[0], expected, atol=1e-5, rtol=1e-5)
        counts = activity.lookup(ids)[0][:, 2]
        assert counts.tolist() == [count for _, count in known[owner].values()]


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> tuple[Path, Path]:
    """Data and run after the source and two days; no test changes them."""
    data, out = start_run(tmp_path_factory.mktemp("crossed"), DAYS[:2], environment)
    refresh(CONFIG, data, out, every=True)
    return data, out


@pytest.fixture
def run(crossed: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    data, out = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in crossed)
    return data, out


def checkpoints(out: Path) -> list[Path]:
    """Those that the source and the days were published from."""
    return [out / records(out)[0].start, *(out / record.checkpoint for record in records(out))]


def files_of(data: Path) -> list[list[Path]]:
    """Those of the source and of the days."""
    return [sorted((data / "events").glob("*.parquet")), *(sorted((data / "days" / d).glob("*")) for d in DAYS[:2])]


def test_four_series_of_one_version_in_every_cycle(crossed: tuple[Path, Path]) -> None:
    data, out = crossed
    known: Known = {"user": {}, "item": {}}
    for number, (files, checkpoint) in enumerate(zip(files_of(data), checkpoints(out), strict=True)):
        learn(known, files, model_of(checkpoint))
        assert_published(out, known, number + 1)
    for name in ALL:
        assert [each[:2] for each in snapshots(out, name)] == [each[:2] for each in snapshots(out, PLAIN[0])]
        assert series(out, name).tags() == {"prod": 3}
        assert {space for *_, space in snapshots(out, name)} == {"ctr-1-cross" if name in CROSS else "ctr-1"}
        assert series(out, name).dim == (MODEL.cross_dim if name in CROSS else MODEL.vector_dim)
    newest = records(out)[-1]
    assert newest.versions == dict.fromkeys(ALL, 3)
    assert newest.seconds["cross"] > 0
    assert all(newest.quality["series"][name]["coverage"]["by_event"] > 0 for name in ALL)


def on_two_ranks(data: Path, out: Path) -> None:
    refresh_upstream(CONFIG, data, out, every=True)


def test_two_ranks_sum_as_one(tmp_path: Path, environment: Environment) -> None:
    """A day of an odd number of events, so that one is left beside the ranks' equal pieces."""
    data, out = start_run(tmp_path, DAYS[:1], environment)
    write_day(data, DAYS[1], rows=25, seed=8)
    run_ranks(on_two_ranks, 2, data, out)
    known: Known = {"user": {}, "item": {}}
    for number, (files, checkpoint) in enumerate(zip(files_of(data), checkpoints(out), strict=True)):
        learn(known, files, model_of(checkpoint))
        assert_published(out, known, number + 1)


def test_a_crash_between_two_commits(run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the series had been committed, the next call completes the others and moves four tags."""
    data, out = run
    write_day(data, DAYS[2])
    unbroken = Path(shutil.copytree(out, tmp_path / "unbroken"))
    refresh(CONFIG, data, unbroken)
    written: list[str] = []
    for stop in range(1, 4):
        broken = Path(shutil.copytree(out, tmp_path / f"broken-{stop}"))
        with monkeypatch.context() as patched:
            _crash_after(stop, patched)
            with pytest.raises(KeyboardInterrupt):
                refresh(CONFIG, data, broken)
        done = [name for name in ALL if snapshots(broken, name)[-1][0] == 4]
        assert len(done) == stop
        written += done
        assert refresh(CONFIG, data, broken) == [DAYS[2]]
        assert contents(broken) == contents(unbroken)
    assert set(written) & set(CROSS)


def _crash_after(commits: int, patched: pytest.MonkeyPatch) -> None:
    """Let the process be stopped as soon as so many series of vectors have their day."""
    end = DayWriter.__exit__
    ended = 0

    def counted(self: DayWriter, *error: Any) -> None:
        nonlocal ended
        if error[0] is None and ended == commits:
            stopped = KeyboardInterrupt()
            end(self, KeyboardInterrupt, stopped, None)  # its threads end with the process
            raise stopped
        end(self, *error)
        ended += error[0] is None

    patched.setattr(DayWriter, "__exit__", counted)


def test_a_correction_is_the_day_as_it_now_is(run: tuple[Path, Path], tmp_path: Path, environment: Environment) -> None:
    data, out = run
    write_day(data, DAYS[1], seed=77)
    assert refresh(CONFIG, data, out) == [DAYS[1]]
    known: Known = {"user": {}, "item": {}}
    for files, checkpoint in zip(files_of(data), checkpoints(out), strict=True):
        learn(known, files, model_of(checkpoint))
    assert_published(out, known, 4)
    assert {snapshots(out, name)[-1][:2] for name in ALL} == {(4, window(DAILY, DAYS[1])[1])}


def test_a_late_day_counts_when_it_comes(run: tuple[Path, Path]) -> None:
    """Its events are the oldest of their cycle, and newer than those that had been published."""
    data, out = run
    write_day(data, DAYS[3])
    refresh(CONFIG, data, out)
    write_day(data, DAYS[2])
    write_day(data, DAYS[4])
    assert refresh(CONFIG, data, out) == [DAYS[4]]
    known: Known = {"user": {}, "item": {}}
    together = [[data / f"days/{day}/part-0.parquet" for day in days] for days in (DAYS[3:4], (DAYS[2], DAYS[4]))]
    for files, checkpoint in zip([*files_of(data), *together], checkpoints(out), strict=True):
        learn(known, files, model_of(checkpoint))
    assert_published(out, known, 5)


def test_a_refused_day_is_refused_in_all_series(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2], users=60)
    refresh(replace(CONFIG, gates=GateConfig(min_coverage=1.0, max_drift=0.0)), data, out)
    told = {reason.partition(" ")[0] + reason.partition(": ")[2][:12] for reason in records(out)[-1].gates}
    assert {f"{name}:the day's en" for name in ALL} <= told
    assert {f"{name}:the snapshot" for name in ALL} & told == {"user_ctr:the snapshot"}, "of vectors alone"
    for name in ALL:
        assert series(out, name).latest(refused=False).version == 3
        assert series(out, name).tags() == {"prod": 3}
    write_day(data, DAYS[3])
    refresh(CONFIG, data, out)
    known: Known = {"user": {}, "item": {}}
    models = checkpoints(out)
    for files, checkpoint in zip(
        [*files_of(data), [data / f"days/{DAYS[3]}/part-0.parquet"]], [*models[:3], models[4]], strict=True
    ):
        learn(known, files, model_of(checkpoint))
    assert_published(out, known, 5)


@pytest.mark.parametrize("align", ["", "procrustes"])
def test_a_cold_retrain_passes_over_all_events(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, align: str
) -> None:
    """No rotation of the vectors' space is one of the hidden layer's."""
    data, out = run
    write_day(data, DAYS[2])
    monkeypatch.setattr("recsys.refresh.align._LEAST_PER_DIMENSION", 1)
    assert refresh(replace(CONFIG, align=align), data, out, cold=True) == [DAYS[2]]
    known: Known = {"user": {}, "item": {}}
    every = [path for files in files_of(data) for path in files] + [data / f"days/{DAYS[2]}/part-0.parquet"]
    learn(known, every, model_of(checkpoints(out)[-1]))
    assert_published(out, known, 4)
    assert [snapshots(out, name)[-1] for name in CROSS] == [(4, window(DAILY, DAYS[2])[1], "ctr-2-cross")] * 2


def test_rows_between_the_days_keep_the_series_together(run: tuple[Path, Path]) -> None:
    """Who has no event has no cross representation, and who is withdrawn has none any more."""
    data, out = run
    FLAGGED.save(data / "schema.toml")
    config = catalogue_config(cross=True, cross_decay=DECAYED)
    assert has(out, [0], CROSS[1]) == [True]
    path = data / "rows.parquet"
    pq.write_table(item_rows([0, 888], noon(DAYS[1]), gone=[1, 0]), path)
    embed_rows(config, path, "item", data, out)
    for name in ALL:
        assert series(out, name).tags() == {"prod": 4}
    assert has(out, [0, 888]) == [False, True]
    assert has(out, [0, 888], CROSS[1]) == [False, False]
    deliver(data, DAYS[2], item_rows([889], noon(DAYS[2]), gone=[0]))
    write_day(data, DAYS[2])
    refresh(config, data, out)
    assert has(out, [0, 888, 889]) == [False, True, True]
    assert has(out, [0, 888, 889], CROSS[1]) == [False] * 3
    assert {snapshots(out, name)[-1][0] for name in ALL} == {5}


def test_turned_on_later_they_begin_with_the_day(run: tuple[Path, Path], environment: Environment, tmp_path: Path):
    data, out = start_run(tmp_path / "plain", DAYS[:1], environment)
    refresh(daily_config(), data, out, every=True)
    pq.write_table(item_rows([888], noon(DAYS[0])), data / "rows.parquet")
    embed_rows(CONFIG, data / "rows.parquet", "item", data, out)
    assert [series(out, name).latest().rows for name in CROSS] == [0, 0]
    write_day(data, DAYS[1])
    refresh(CONFIG, data, out)
    known: Known = {"user": {}, "item": {}}
    learn(known, files_of(data)[2], model_of(checkpoints(out)[-1]))
    assert_published(out, known, 2)
    assert [snapshots(out, name)[-1][0] for name in ALL] == [4, 4, 2, 2]
    assert len({snapshots(out, name)[-1][1] for name in ALL}) == 1
    assert [series(out, name).tags() for name in CROSS] == [{"prod": 2}] * 2
    write_day(data, DAYS[2])
    refresh(daily_config(), data, out)
    assert [snapshots(out, name)[-1][0] for name in ALL] == [5, 5, 2, 2], "turned off they stay"


def test_a_config_that_publishes_other_series_decides_anew(tmp_path: Path, environment: Environment) -> None:
    """The source's vectors, published without, are published again with them, before the first day."""
    data, out = start_run(tmp_path, [], environment)
    refresh(daily_config(), data, out)
    refresh(CONFIG, data, out)
    known: Known = {"user": {}, "item": {}}
    learn(known, files_of(data)[0], model_of(out / "upstream/ctr/checkpoints/step-00000001"))
    assert_published(out, known, 1)
    assert [series(out, name).tags() for name in ALL] == [{"prod": 2}] * 2 + [{"prod": 1}] * 2
    refresh(CONFIG, data, out)
    assert [len(snapshots(out, name)) for name in ALL] == [2, 2, 1, 1]


def test_rankers_read_them_as_of_each_event(run: tuple[Path, Path]) -> None:
    """By their names in an arm; the pair is multiplied as the vectors are, and never with them."""
    data, out = run
    for day in DAYS[2:4]:
        write_day(data, day)
    rankers = replace(
        STUDY.rankers,
        train=(f"days/{DAYS[1]}/*",),
        validation=(f"days/{DAYS[2]}/*",),
        test=(f"days/{DAYS[3]}/*",),
        publish_delay_ms=0,
        network=NetworkConfig(embedding_dim=4, projection_dim=4, hidden=(8,)),
        training=RankerTrainConfig(epochs=1, batch_size=8),
    )
    job = ranker_job("tasks", rankers, (ArmConfig(name="none"), ArmConfig(name="crossed", series=ALL)))
    train_rankers(job, data, out)
    predictions = [ranker.read(out, task) for ranker in all_rankers(job) for task in job.tasks]
    assert len(predictions) == 2 * len(rankers.seeds)
    features = StoreFeatures(EmbeddingStore(store_folder(out)), ALL)
    assert [spec.space for spec in features.specs] == ["ctr-1"] * 2 + ["ctr-1-cross"] * 2
    day = to_batch(pq.read_table(data / f"days/{DAYS[1]}/part-0.parquet"), SCHEMA)
    batch = features(day)
    assert batch.vectors is not None
    start = 2 * MODEL.vector_dim
    for name, ids in zip(CROSS, (batch.user_ids, batch.item_ids), strict=True):
        of_the_day_before = series(out, name).version(2).load().lookup(ids)[0]
        assert torch.equal(batch.vectors[:, start : start + MODEL.cross_dim], of_the_day_before)
        start += MODEL.cross_dim
    assert batch.found is not None
    assert batch.found[:, 2:].any()


def test_entities_leave_at_their_time_to_live(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2], users=3)
    refresh(replace(CONFIG, time_to_live_days=1), data, out)
    table = pq.read_table(data / f"days/{DAYS[2]}/part-0.parquet")
    assert sorted(series(out, CROSS[0]).latest().load().ids().tolist()) == sorted(set(table["user_id"].to_pylist()))
