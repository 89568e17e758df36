"""KuaiRand as it is prepared, against its raw files; skipped where they are not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from recsys.data.files import check_files, find_files
from recsys.data.kuairand import (
    CHINA_MS,
    CUT_MS,
    DAY_MS,
    prepare_kuairand,
)
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.recipes import kuairand

SOURCE = Path(__file__).parents[3] / "../shared/data/kuairand-pure"


class Real:
    """The prepared extract, and its raw tables."""

    def __init__(self, folder: Path) -> None:
        prepare_kuairand(SOURCE, folder)
        self.folder = folder
        self.raw = pq.read_table(SOURCE / "events.parquet")
        self.lists = pq.read_table(SOURCE / "history.parquet").combine_chunks()
        self.history = pq.ParquetFile(folder / "history/events/all/part-0.parquet").read()
        self.users = pq.ParquetFile(folder / "history/users/part-0.parquet").read()
        self.items = pq.ParquetFile(folder / "history/items/part-0.parquet").read()
        columns = ["timestamp", "user_id", "tab", "hour", "is_click", "long_view", "is_like", "long_view_any"]
        files = sorted((folder / "impressions/events").glob("*/*/*.parquet"))
        self.days = {path: pq.ParquetFile(path).read(columns) for path in files}
        self.impressions = pa.concat_tables(self.days.values())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    if not SOURCE.is_dir():
        pytest.skip(f"no KuaiRand-Pure in {SOURCE}")
    return Real(tmp_path_factory.mktemp("kuairand"))


def test_labels_of_the_impressions(real: Real) -> None:
    table = {name: real.impressions[name].to_numpy() for name in real.impressions.column_names}
    raw = real.raw["time_ms"].to_numpy()
    assert len(raw) == 222_452
    assert len(real.impressions) == (raw >= CUT_MS).sum() == 222_311  # the rest belongs to the histories' time
    for name, rate in {"is_click": 0.450, "long_view_any": 0.317, "is_like": 0.0174}.items():
        assert table[name].mean() == pytest.approx(rate, abs=0.0006)
    clicked = table["is_click"] == 1
    assert table["long_view"][clicked].mean() == pytest.approx(0.70, abs=0.005)
    assert table["long_view"][~clicked].mean() == pytest.approx(0.002, abs=0.0005)
    for tab, rate in {0: 0.09, 1: 0.49, 2: 0.48, 4: 0.60, 6: 0.15}.items():
        assert table["is_click"][table["tab"] == tab].mean() == pytest.approx(rate, abs=0.006)
    assert (table["tab"] == 1).sum() == pytest.approx(173_008, abs=141)


def test_impressions_lie_in_their_china_day_and_after_the_cut(real: Real) -> None:
    start = np.datetime64("2022-04-25")
    days: dict[str, int] = {}
    for path, table in real.days.items():
        day, tab = path.parts[-3:-1]
        time = table["timestamp"].to_numpy()
        assert time.min() >= CUT_MS
        first = CUT_MS + (np.datetime64(day) - start).astype(int) * DAY_MS
        assert first <= time.min() <= time.max() < first + DAY_MS
        assert (np.diff(time) >= 0).all()
        assert (table["hour"].to_numpy() == (time - first) // 3_600_000).all()
        assert ((table["tab"].to_numpy() == 1) == (tab == "tab=1")).all()
        days[day] = days.get(day, 0) + len(table)
    raw = real.raw["time_ms"].to_numpy()
    names, counts = np.unique(
        ((raw[raw >= CUT_MS] + CHINA_MS) // DAY_MS).astype("datetime64[D]").astype(str), return_counts=True
    )
    assert days == dict(zip(names.tolist(), counts.tolist(), strict=True))
    assert len(days) == 14
    assert 13_000 < min(days.values()) < max(days.values()) < 21_000


def test_the_recipe_reads_every_impression_once_and_none_before_the_cut(real: Real) -> None:
    config = kuairand()
    assert config.fragment is not None
    rankers = config.rankers
    parts = [find_files(real.folder, patterns) for patterns in (rankers.train, rankers.validation, rankers.test)]
    assert sorted(path for part in parts for path in part) == list(real.days)
    times = [[real.days[path]["timestamp"].to_numpy() for path in part] for part in parts]
    spans = [(min(x.min() for x in part), max(x.max() for x in part)) for part in times]
    assert [(low - CUT_MS) // DAY_MS for low, _ in spans] == [0, 10, 12]
    assert [(high - CUT_MS) // DAY_MS for _, high in spans] == [9, 11, 13]
    (source,) = {upstream.source for upstream in config.upstreams}
    assert real.history["timestamp"].to_numpy().max() < CUT_MS
    assert find_files(real.folder, source.events) == [real.folder / "history/events/all/part-0.parquet"]
    schema = Schema.load(real.folder / rankers.schema)
    fragment = find_files(real.folder, config.fragment.train)
    assert check_files(fragment, schema) == sum(len(real.days[path]) for path in fragment)
    assert {path.parts[-2] for path in fragment} == {"tab=1"}
    assert not {"past_watched", "watched", "long_watched", "liked"} & {feature.name for feature in schema.features}


def test_watches_have_the_feedback_of_the_lists(real: Real) -> None:
    """Those rows of a user that are labelled are, in order, the end of the user's list."""
    order = np.lexsort((real.history["timestamp"].to_numpy(), real.history["user_id"].to_numpy()))
    user, item = (real.history[name].to_numpy()[order] for name in ("user_id", "item_id"))
    lists = real.lists.sort_by("user_id")
    watched = pa.chunked_array([pa.array(item)])
    assert watched.equals(pa.chunked_array([pa.concat_arrays(lists["watch_seq"].chunks).flatten()]))
    short = lists["history_len"].to_numpy() <= 50
    assert short.sum() == 17_814
    for label, column in (("long_view", "long_watch_seq"), ("is_like", "like_seq")):
        chosen = real.history[label].to_numpy()[order] == 1
        got: dict[int, list[int]] = {}
        for who, what in zip(user[chosen].tolist(), item[chosen].tolist(), strict=True):
            got.setdefault(who, []).append(what)
        for who, listed, whole in zip(lists["user_id"].to_pylist(), lists[column].to_pylist(), short, strict=True):
            mine = got.get(who, [])
            assert mine == (listed if whole else listed[len(listed) - len(mine) :])


def test_histories_hold_strictly_earlier_watches_only(real: Real) -> None:
    rows = np.random.default_rng(0).choice(np.unique(real.history["user_id"].to_numpy()), 200, replace=False)
    table = real.history.filter(pa.compute.is_in(real.history["user_id"], pa.array(rows)))
    for user in rows.tolist():
        mine = table.filter(pa.compute.equal(table["user_id"], user)).sort_by("timestamp").to_pylist()
        total = real.lists.filter(pa.compute.equal(real.lists["user_id"], user))["history_len"][0].as_py()
        assert len({row["timestamp"] for row in mine}) == len(mine)
        for index, row in enumerate(mine):
            past = mine[:index]
            assert row["watched"] == [x["item_id"] for x in past]
            assert row["long_watched"] == [x["item_id"] for x in past if x["long_view"]]
            assert row["liked"] == [x["item_id"] for x in past if x["is_like"]]
            assert row["past_watched"] == index + total - len(mine)
            assert row["past_liked"] == len(row["liked"])
            assert row["past_long_share"] == pytest.approx((len(row["long_watched"]) + 1) / (index + 2.5))


def test_entity_rows_cover_everybody_as_of_the_cut(real: Real) -> None:
    assert np.array_equal(np.unique(real.users["user_id"].to_numpy()), np.arange(27_285))
    assert len(real.users) == 27_285
    assert len(np.unique(real.items["item_id"].to_numpy())) == len(real.items) == 7_583
    assert set(real.users["timestamp"].to_pylist()) == set(real.items["timestamp"].to_pylist()) == {CUT_MS}
    watched = dict(zip(real.users["user_id"].to_pylist(), real.users["past_watched"].to_pylist(), strict=True))
    lengths = dict(zip(real.lists["user_id"].to_pylist(), real.lists["history_len"].to_pylist(), strict=True))
    assert watched == {user: lengths.get(user, 0) for user in watched}
    schema = Schema.load(real.folder / "history/schema.toml")
    for owner, folder in (("user", "users"), ("item", "items")):
        own = schema.select(features=tuple(x.name for x in schema.owned_by(owner)), labels=())
        assert check_files([real.folder / f"history/{folder}/part-0.parquet"], own)
    catalogue = set(real.items["item_id"].to_pylist())
    assert catalogue >= set(real.raw["video_id"].to_pylist())


def test_the_stream_reads_what_was_prepared(real: Real) -> None:
    schema = Schema.load(real.folder / "impressions/schema.toml")
    path = min(real.days)
    stream = EventStream([path], schema, batch_size=4096, drop_last=False)
    labels = np.concatenate([batch.labels.numpy() for batch in stream])
    click = real.days[path]["is_click"].to_numpy()
    assert np.array_equal(labels[:, 0], click)
    assert np.array_equal(labels[:, 1], click * real.days[path]["long_view"].to_numpy())  # masked where not clicked
