"""A world in which popularity moves daily and taste is known, through the measuring of a finished run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.config import RankerSettings, RetrievalConfig, SourceConfig, StudyConfig, TwoTowerSettings, UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.quarantine import NOTHING
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import DAY_MS
from recsys.folders import store_folder
from recsys.prior import Prior
from recsys.refresh.prior import prior_series, publish_prior, withdraw
from recsys.study import als, retrieval
from recsys.study.found import Found, RetrievalResult, Retriever
from recsys.study.moments import Log, Moment
from recsys.study.retrieval import collect_retrieval

USERS, ITEMS, DAYS, PER_DAY, TAU = 150, 120, 8, 1500, 0.35
NEW_USERS, NEW_ITEMS = 15, 10
"""So many of them have no vector."""
SCHEMA = Schema(
    features=(
        Feature(name="user_id", owner="user", kind="id", rows=USERS),
        Feature(name="item_id", owner="item", kind="id", rows=ITEMS),
    ),
    labels=(Label(name="click"),),
)
CONFIG = StudyConfig(
    name="planted",
    upstreams=(UpstreamConfig(name="ctr", source=SourceConfig(schema="schema.toml", events=("day=0/*.parquet",))),),
    rankers=RankerSettings(
        schema="schema.toml",
        train=("day=[1-4]/*.parquet",),
        validation=("day=5/*.parquet",),
        test=("day=[67]/*.parquet",),
        tasks={"ctr": "click"},
        publish_delay_ms=0,
    ),
    retrieval=RetrievalConfig(k=(5, 20)),
)
CONFIG = replace(
    CONFIG, upstreams=(replace(CONFIG.upstreams[0], loss=replace(CONFIG.upstreams[0].loss, temperature=TAU)),)
)


def day(number: int, users: np.ndarray, items: np.ndarray) -> pa.Table:
    """A day of choices from exp(u.v / tau + b), whose b moves daily, and as many items that were shown in vain."""
    rng = np.random.default_rng(number)
    moves = np.random.default_rng(99).normal(size=(DAYS, ITEMS))
    logits = users @ items.T / TAU + 1.5 * moves[: number + 1].T @ 0.7 ** np.arange(number, -1, -1)
    who = rng.integers(0, USERS, PER_DAY)
    chosen = (logits[who] + rng.gumbel(size=(PER_DAY, ITEMS))).argmax(1)
    times = np.sort(number * DAY_MS + rng.integers(0, DAY_MS, PER_DAY))
    columns = {
        "timestamp": np.repeat(times, 2),
        "user_id": np.repeat(who, 2),
        "item_id": np.stack([chosen, rng.integers(0, ITEMS, PER_DAY)], axis=1).ravel(),
        "click": np.tile([1, 0], PER_DAY),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and run: vectors as of the end of day 0, for all but the new users and items."""
    data, out = tmp_path_factory.mktemp("planted"), tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(7)
    users, items = (rng.normal(size=(n, 6)) for n in (USERS, ITEMS))
    users, items = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (users, items))
    SCHEMA.save(data / "schema.toml")
    for number in range(DAYS):
        (data / f"day={number}").mkdir()
        pq.write_table(day(number, users, items), data / f"day={number}/a.parquet")
    store = EmbeddingStore(store_folder(out))
    known = day(0, users, items)
    first = Prior.count(known["item_id"].to_numpy(), known["click"].to_numpy() == 1)
    publish_prior(prior_series(store, "ctr"), first, DAY_MS)
    for name, vectors, new in (("user_ctr", users, NEW_USERS), ("item_ctr", items, NEW_ITEMS)):
        with store.create(name, dim=6).write(as_of=DAY_MS, space="ctr-1") as writer:
            writer.append(torch.arange(new, len(vectors)), torch.from_numpy(vectors[new:]).float())
    return data, out


def collect(world: tuple[Path, Path], config: StudyConfig = CONFIG, data: Path | None = None) -> RetrievalResult:
    found = collect_retrieval(config, config.rankers, data or world[0], world[1], NOTHING)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def result(world: tuple[Path, Path]) -> RetrievalResult:
    return collect(world)


def test_taste_and_what_is_popular_now_find_most(result: RetrievalResult) -> None:
    found = result
    for k in (5, 20):
        at = {row: measures.recall[k] for row, measures in found.rows.items()}
        assert at["chosen"] > 1.1 * max(at["prior"], at["vectors"], at["ials"], at["popularity"], at["popularity_day"])
        assert at["popularity_day"] > at["popularity"]  # it moves
        assert at["chosen"] > 1.1 * at["stored_prior"]
    assert sum(found.validation["chosen"].recall.values()) == max(
        sum(found.validation[row].recall.values()) for row in ("chosen", "fresh_prior", "vectors")
    )
    assert found.hours in (6, 24)
    assert 0.5 <= found.weight <= 1.5
    assert (found.users, found.items, found.days) == (USERS, ITEMS, 2)
    assert found.users_without_vector == pytest.approx(NEW_USERS / USERS, abs=0.02)
    assert 0 < found.positives_without_vector < 0.5
    assert found.positives_not_retrievable == 0


def test_days_and_leads_are_of_the_same_positives(result: RetrievalResult) -> None:
    assert list(result.by_day) == list(result.users_by_day) == ["1970-01-07", "1970-01-08"]
    for k in (5, 20):
        for row, measures in result.rows.items():
            recall = measures.recall
            daily = [rows[row][k] for rows in result.by_day.values()]
            assert min(daily) - 0.05 < recall[k] < max(daily) + 0.05
            if row != "chosen":
                low, high = result.lead[row][k]
                lead = result.rows["chosen"].recall[k] - recall[k]
                assert low < lead < high
                assert (low + high) / 2 == pytest.approx(lead)
        assert result.lead["popularity"][k][0] > 0


def test_a_list_has_more_than_recall(world: tuple[Path, Path], result: RetrievalResult) -> None:
    """Popularity gives everybody the same few; its positives are of the head. Every figure against a loop."""
    catalogue, rows = ITEMS, result.rows
    for k in (5, 20):
        assert rows["popularity"].coverage[k] == pytest.approx(k / catalogue)
        assert rows["chosen"].coverage[k] > 2 * rows["popularity"].coverage[k]
        assert rows["chosen"].ndcg[k] > 1.1 * rows["popularity"].ndcg[k]
        for measures in rows.values():
            assert measures.recall[k] <= measures.hit_rate[k] <= 1
    assert rows["popularity"].recall_of["head"][20] > 0 == rows["popularity"].recall_of["tail"][20]
    assert rows["chosen"].recall_of["tail"][20] > 0
    assert sum(bucket.items for bucket in result.buckets.values()) == ITEMS
    tables = [pq.read_table(world[0] / f"day={number}/a.parquet", partitioning=None) for number in (6, 7)]
    chosen = pa.concat_tables([table.filter(pc.equal(table["click"], 1)) for table in tables])
    asked = chosen.select(["user_id", "item_id"]).group_by(["user_id", "item_id"]).aggregate([]).num_rows
    assert sum(bucket.positives for bucket in result.buckets.values()) == asked


def test_what_is_new_is_retrieved_as_by_popularity(world: tuple[Path, Path], tmp_path: Path) -> None:
    """Of users without a vector alone, the scores are the prior's."""
    for number in range(DAYS):
        table = pq.read_table(world[0] / f"day={number}/a.parquet", partitioning=None)
        asked = table["user_id"].to_numpy() < (NEW_USERS if number > 4 else USERS)
        (tmp_path / f"day={number}").mkdir()
        pq.write_table(table.filter(pa.array(asked)), tmp_path / f"day={number}/a.parquet")
    SCHEMA.save(tmp_path / "schema.toml")
    found = collect(world, data=tmp_path)
    assert found.users == NEW_USERS
    assert found.users_without_vector == 1
    assert found.rows["vectors"].recall == found.rows["vectors"].coverage == {5: 0, 20: 0}
    assert found.rows["chosen"] == found.rows["prior"]


def test_later_labels_do_not_change_what_is_retrieved(
    world: tuple[Path, Path], result: RetrievalResult, tmp_path: Path
) -> None:
    """The last day's labels, shuffled, move neither the choice nor what the day before was answered with."""
    for number in range(DAYS):
        table = pq.read_table(world[0] / f"day={number}/a.parquet", partitioning=None)
        (tmp_path / f"day={number}").mkdir()
        if number == DAYS - 1:
            labels = np.random.default_rng(0).permutation(table["click"].to_numpy())
            table = table.set_column(table.column_names.index("click"), "click", pa.array(labels))
        pq.write_table(table, tmp_path / f"day={number}/a.parquet")
    SCHEMA.save(tmp_path / "schema.toml")
    one_day = replace(CONFIG, rankers=replace(CONFIG.rankers, test=("day=6/*.parquet",)))
    assert collect(world, one_day, tmp_path) == collect(world, one_day)
    shuffled, true = collect(world, data=tmp_path), result
    assert (shuffled.hours, shuffled.weight, shuffled.ials) == (true.hours, true.weight, true.ials)
    assert shuffled.validation == true.validation
    assert (
        shuffled.rows["prior"].recall[5] < 0.9 * true.rows["prior"].recall[5]
    )  # had it known them, it would have found them


def test_a_two_tower_model_is_a_row_of_its_own(
    world: tuple[Path, Path], result: RetrievalResult, tmp_path: Path
) -> None:
    """The very vectors, published once more as of the end of training: as good as what is chosen, its own choice made.
    Where they come a day later, the first day is answered by the prior."""
    out = Path(shutil.copytree(world[1], tmp_path / "run"))
    store = EmbeddingStore(store_folder(out))
    for late, as_of in ((False, 5 * DAY_MS), (True, 7 * DAY_MS)):
        name = f"towers{late:d}"
        publish_prior(prior_series(store, name), Prior.load(store.series("item_ctr.prior").latest()), as_of)
        for owner in ("user", "item"):
            table = store.series(f"{owner}_ctr").latest().load()
            with store.create(f"{owner}_{name}", dim=6).write(as_of=as_of, space=f"{name}-1") as writer:
                writer.append(table.ids(), table.lookup(table.ids())[0])
        config = replace(CONFIG, two_tower=TwoTowerSettings(name=name, temperature=TAU))
        found = collect((world[0], out), config)
        assert {row: each for row, each in found.rows.items() if row != "two_tower"} == result.rows
        if not late:
            assert found.rows["two_tower"] == found.rows["chosen"]
            assert found.two_tower == (found.hours, found.weight)
        else:
            first, second = (found.by_day[day] for day in ("1970-01-07", "1970-01-08"))
            assert first["two_tower"][5] < 0.95 * first["chosen"][5]
            assert second["two_tower"][5] > 1.1 * second["prior"][5]


def test_what_was_shown_can_be_left_out(world: tuple[Path, Path], result: RetrievalResult) -> None:
    config = replace(CONFIG, retrieval=replace(CONFIG.retrieval, leave_out_seen=True))
    found = collect(world, config)
    assert found.users <= result.users
    assert found.rows["chosen"] != result.rows["chosen"]
    assert found.rows["chosen"].recall[5] > found.rows["popularity"].recall[5]


def test_without_the_library_there_is_no_row_of_it(
    world: tuple[Path, Path], result: RetrievalResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(als, "is_installed", lambda: False)
    without = collect(world)
    assert "ials" not in without.rows
    assert without.ials == ""
    assert without.rows == {row: recall for row, recall in result.rows.items() if row != "ials"}


def test_no_way_retrieves_what_is_withdrawn(
    world: tuple[Path, Path], result: RetrievalResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The items that were chosen most often."""
    data, out = world[0], Path(shutil.copytree(world[1], tmp_path / "run"))
    tables = [pq.read_table(path, partitioning=None) for path in sorted(data.glob("day=*/a.parquet"))]
    chosen = np.concatenate([table["item_id"].to_numpy()[table["click"].to_numpy() == 1] for table in tables])
    popular = torch.from_numpy(np.sort(np.argsort(-np.bincount(chosen))[:20]))
    withdraw(prior_series(EmbeddingStore(store_folder(out)), "ctr"), popular)
    find, ways = retrieval.find, []

    def checked(requests: Sequence[Moment], way: Retriever) -> Found:
        ways.append(way)
        for moment in requests:
            ids, rows = way(moment)
            assert not torch.isin(ids[rows[rows >= 0]], popular).any()
        return find(requests, way)

    monkeypatch.setattr(retrieval, "find", checked)
    found = collect((data, out))
    assert len(ways) > 2 * len(found.rows)
    assert found.rows.keys() == result.rows.keys()
    assert found.items == result.items - 20
    assert found.positives_not_retrievable > 0.25


def test_a_store_without_a_prior_says_so(world: tuple[Path, Path], tmp_path: Path) -> None:
    store, copy = EmbeddingStore(store_folder(world[1])), EmbeddingStore(store_folder(tmp_path))
    for name in ("user_ctr", "item_ctr"):
        table = store.series(name).latest().load()
        with copy.create(name, dim=6).write(as_of=DAY_MS, space="ctr-1") as writer:
            writer.append(table.ids(), table.lookup(table.ids())[0])
    with pytest.raises(DataError, match=r"'item_ctr.prior' has no prior as of 86400000 ms.*recsys prior --config"):
        collect((world[0], tmp_path))


def test_factors_of_who_is_not_known() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 300), np.minimum(rng.geometric(0.2, 300), 15)
    log = Log(users, items, np.zeros(300, np.int64), np.ones(300, bool))
    factors = als.factorise(log, als.GRID[0])
    queries, indexed = factors.index(torch.tensor([3, 999]))
    scores = queries @ indexed.T
    assert torch.equal(scores[1], factors.popularity)
    torch.testing.assert_close(scores[0], factors.items @ factors.users[factors.user_ids == 3][0])
    liked = torch.isin(factors.item_ids, torch.from_numpy(items[users == 3]))
    assert scores[0][liked].mean() > scores[0][~liked].mean() + 0.1
