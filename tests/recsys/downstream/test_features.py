import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedding_store import EmbeddingStore, Series, Snapshot, SpaceMismatchError
from recsys.config import NetworkConfig
from recsys.data.batch import Batch
from recsys.data.schema import Feature, Label, Schema
from recsys.data.stream import EventStream
from recsys.dates import DAY_MS
from recsys.downstream.features import PointInTimeSeries, StoreFeatures
from recsys.models.dlrm import DLRM
from recsys.refresh.aggregator import activity_series
from recsys.train.tables import draw_tables

IDS = st.sampled_from([0, 1, -1, 5, 2**63 - 1, -(2**63)])
SNAPSHOTS = st.lists(st.tuples(st.integers(0, 6), st.lists(IDS, max_size=6, unique=True)), max_size=5)
EVENTS = st.lists(st.tuples(IDS, st.integers(0, 9)), max_size=12)


def publish(series: Series, as_of: int, vectors: dict[int, list[float]], space: str = "ctr-1") -> None:
    with series.write(as_of=as_of, space=space) as writer:
        ids = torch.tensor(list(vectors), dtype=torch.int64)
        writer.append(ids, torch.tensor(list(vectors.values())).reshape(-1, series.dim))


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "store")


@settings(max_examples=30, deadline=None)
@given(snapshots=SNAPSHOTS, events=EVENTS, delay=st.integers(0, 4))
def test_lookup_against_a_loop(
    snapshots: list[tuple[int, list[int]]], events: list[tuple[int, int]], delay: int
) -> None:
    """Versions are often published as of the same time, and at the time of an event."""
    snapshots = sorted(snapshots, key=lambda snapshot: snapshot[0])
    with tempfile.TemporaryDirectory() as folder:
        series = EmbeddingStore(folder).create("user_ctr", dim=2)
        for version, (as_of, ids) in enumerate(snapshots, start=1):
            publish(series, as_of, {who: [float(version), float(index)] for index, who in enumerate(ids)})
        joined = PointInTimeSeries(series, delay)
        vectors, found = joined.lookup(ints([who for who, _ in events]), ints([time for _, time in events]))
    assert (vectors.shape, found.shape) == ((len(events), 2), (len(events),))
    for row, (who, time) in enumerate(events):
        visible = [version for version, (as_of, _) in enumerate(snapshots, start=1) if as_of + delay <= time]
        ids = snapshots[visible[-1] - 1][1] if visible else []
        expected = [float(visible[-1]), float(ids.index(who))] if who in ids else [0.0, 0.0]
        assert vectors[row].tolist() == expected
        assert bool(found[row]) == (who in ids)


@pytest.mark.parametrize("delay", [0, 1, 3_600_000])
def test_a_planted_leak_cannot_be_read(store: EmbeddingStore, delay: int) -> None:
    """The later version holds each event's label. The event itself, 1 ms or one delay early, never sees it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50)
    series = store.create("user_ctr", dim=1)
    as_of = 10_000_000
    publish(series, 0, {user: [0.5] for user in range(50)})
    publish(series, as_of, {user: [float(label)] for user, label in enumerate(labels.tolist())})
    joined = PointInTimeSeries(series, delay)
    users = torch.arange(50)
    for time, leaks in ((as_of + delay - 1, False), (as_of - 1, False), (as_of + delay, True), (2 * as_of, True)):
        vectors, found = joined.lookup(users, torch.full((50,), time))
        assert found.all()
        assert vectors[:, 0].tolist() == (labels.tolist() if leaks else [0.5] * 50)
    if delay:
        vectors, _ = joined.lookup(users, torch.full((50,), as_of))
        assert (vectors == 0.5).all()


@pytest.mark.parametrize("late", [1, 1000])
@pytest.mark.parametrize("delay", [0, 50])
def test_a_planted_leak_does_not_come_through_the_loader(
    store: EmbeddingStore, tmp_path: Path, late: int, delay: int
) -> None:
    """Vectors that hold each event's label are published so that they can be read 1 ms, or a second, after it."""
    now, users = 1_700_000_000_000, list(range(40))
    events = write_events(tmp_path / "a.parquet").to_pydict() | {"timestamp": [now] * 40, "user_id": users}
    pq.write_table(pa.table(events), tmp_path / "a.parquet", row_group_size=6)
    series = store.create("user_ctr", dim=1)
    publish(series, now - delay, {user: [0.5] for user in users})
    publish(series, now - delay + late, {user: [float(events["click"][user])] for user in users})
    features = StoreFeatures(store, ["user_ctr"], publish_delay_ms=delay)
    batches = list(EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=8, transform=features, drop_last=False))
    assert sum(map(len, batches)) == 40
    for batch in batches:
        assert batch.vectors is not None
        assert batch.vectors.unique().tolist() == [0.5]
        assert torch.equal(features.series[0].lookup(batch.user_ids, batch.timestamps + late - 1)[0], batch.vectors)
        assert torch.equal(features.series[0].lookup(batch.user_ids, batch.timestamps + late)[0], batch.labels)


def test_two_spaces_do_not_come_into_one_batch(store: EmbeddingStore) -> None:
    series = store.create("user_ctr", dim=1)
    publish(series, 0, {1: [1.0]}, "ctr-1")
    publish(series, 10, {1: [2.0]}, "ctr-2")
    with pytest.raises(SpaceMismatchError, match=r"'ctr-1' .* and 'ctr-2'"):
        PointInTimeSeries(series).lookup(ints([1, 1]), ints([5, 15]))


def test_before_the_first_version_nothing_is_found(store: EmbeddingStore) -> None:
    series = store.create("user_ctr", dim=2)
    publish(series, 100, {1: [1.0, 2.0]})
    vectors, found = PointInTimeSeries(series).lookup(ints([1, 1, 2]), ints([99, 100, 100]))
    assert vectors.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert found.tolist() == [False, True, False]
    vectors, found = PointInTimeSeries(series).lookup(ints([]), ints([]))
    assert (vectors.shape, found.shape) == ((0, 2), (0,))


def test_a_correction_wins_over_what_it_corrects(store: EmbeddingStore) -> None:
    series = store.create("user_ctr", dim=1)
    publish(series, 100, {1: [1.0], 2: [1.0]})
    publish(series, 100, {1: [2.0]})
    vectors, found = PointInTimeSeries(series).lookup(ints([1, 2]), ints([100, 100]))
    assert vectors.tolist() == [[2.0], [0.0]]
    assert found.tolist() == [True, False]


def test_a_run_sees_one_state_of_the_store(store: EmbeddingStore) -> None:
    series = store.create("user_ctr", dim=1)
    publish(series, 100, {1: [1.0]})
    joined = PointInTimeSeries(series)
    joined.lookup(ints([1]), ints([500]))
    publish(series, 200, {1: [2.0]})
    assert joined.lookup(ints([1]), ints([500]))[0].item() == 1.0
    assert PointInTimeSeries(store.series("user_ctr")).lookup(ints([1]), ints([500]))[0].item() == 2.0


def test_only_the_versions_that_are_asked_for_are_opened(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = store.create("user_ctr", dim=1)
    for day in range(5):
        publish(series, 100 * day, {1: [float(day)]})
    joined = PointInTimeSeries(series)
    opened: list[int] = []
    load = Snapshot.load
    monkeypatch.setattr(Snapshot, "load", lambda self: opened.append(self.version) or load(self))
    for _ in range(2):
        assert joined.lookup(ints([1, 1, 1]), ints([250, 420, 260]))[0].flatten().tolist() == [2.0, 4.0, 2.0]
    assert opened == [3, 5]


@pytest.mark.parametrize(
    ("name", "spaces", "message"),
    [
        ("user_ctr", [], "series 'user_ctr' has no snapshot; refresh its upstream"),
        ("user_ctr", ["ctr-1", "ctr-2"], r"'user_ctr' has spaces \['ctr-1', 'ctr-2'\]: vectors of two spaces cannot"),
        ("user_ctr", ["ctr-1", "ctr-2", "ctr-1"], r"spaces \['ctr-1', 'ctr-2'\]"),
        ("pins_ctr", ["ctr-1"], "series 'pins_ctr': name it user_<upstream> or item_<upstream>"),
    ],
)
def test_a_series_that_is_no_feature(store: EmbeddingStore, name: str, spaces: list[str], message: str) -> None:
    series = store.create(name, dim=1)
    for day, space in enumerate(spaces):
        publish(series, day, {1: [1.0]}, space)
    with pytest.raises(ValueError, match=message):
        StoreFeatures(store, [name])


def test_an_unknown_series_names_those_that_exist(store: EmbeddingStore) -> None:
    publish(store.create("item_ctr", dim=1), 0, {1: [1.0]})
    with pytest.raises(KeyError, match=r"no series 'user_ctr' in .*; series: item_ctr"):
        StoreFeatures(store, ["user_ctr"])


# StoreFeatures on batches, and inside an event stream.

SCHEMA = Schema(
    features=(
        Feature(name="user_id", owner="user", kind="id", rows=10),
        Feature(name="price", owner="item", kind="dense"),
    ),
    labels=(Label(name="click"),),
)


def fill(store: EmbeddingStore) -> None:
    """Users 0 ... 4 at time 100 and again at 200, items -1 ... -3 at time 100; each vector tells id and version."""
    users, items = store.create("user_ctr", dim=2), store.create("item_ctr", dim=3)
    for version, as_of in enumerate((100, 200), start=1):
        publish(users, as_of, {user: [float(user), float(version)] for user in range(5)})
    publish(items, 100, {-item: [float(item)] * 3 for item in range(1, 4)})


def test_series_lie_side_by_side_in_the_order_asked_for(store: EmbeddingStore) -> None:
    fill(store)
    features = StoreFeatures(store, ["item_ctr", "user_ctr"])
    assert [(x.name, x.owner, x.space, x.dim) for x in features.specs] == [
        ("item_ctr", "item", "ctr-1", 3),
        ("user_ctr", "user", "ctr-1", 2),
    ]
    batch = Batch(
        dense={},
        sparse=KeyedJaggedTensor(keys=[], values=ints([]), lengths=ints([]), stride=3),
        labels=torch.zeros(3, 1),
        label_mask=torch.ones(3, 1, dtype=torch.bool),
        user_ids=ints([3, 3, 9]),
        item_ids=ints([-2, 7, -1]),
        timestamps=ints([150, 250, 99]),
    )
    joined = features(batch)
    assert joined.vectors is not None
    assert joined.found is not None
    assert joined.vectors.tolist() == [[2, 2, 2, 3, 1], [0, 0, 0, 3, 2], [0, 0, 0, 0, 0]]
    assert joined.found.tolist() == [[True, True], [False, True], [False, False]]
    assert joined.vectors.dtype == torch.float32
    assert joined.feed is not None
    assert joined.feed.shape == (3, 2, 2)
    assert not joined.vectors.requires_grad
    assert batch.vectors is None
    assert joined.labels is batch.labels
    assert StoreFeatures(store, [])(batch) is batch


def write_events(path: Path, rows: int = 40) -> pa.Table:
    number = np.arange(rows)
    table = pa.table(
        {
            "timestamp": 10 * number,
            "user_id": number % 7,
            "item_id": -(number % 5),
            "price": number.astype(np.float32),
            "click": number % 2,
        }
    )
    pq.write_table(table, path, row_group_size=6)
    return table


@pytest.mark.parametrize("shuffle_batches", [0, 2])
def test_as_the_transform_of_a_stream(store: EmbeddingStore, tmp_path: Path, shuffle_batches: int) -> None:
    fill(store)
    write_events(tmp_path / "a.parquet")
    threads: set[str] = set()
    features = StoreFeatures(store, ["user_ctr", "item_ctr"], publish_delay_ms=50)

    def transform(batch: Batch) -> Batch:
        threads.add(threading.current_thread().name)
        return features(batch)

    options = {"batch_size": 8, "shuffle_batches": shuffle_batches, "drop_last": False}
    stream = EventStream([tmp_path / "a.parquet"], SCHEMA, transform=transform, **options)
    batches = list(stream)
    assert sum(map(len, batches)) == 40
    assert threads == {"recsys-input"}  # beside the training step, not in it
    for batch in batches:
        assert batch.vectors is not None
        assert batch.found is not None
        version = (batch.timestamps >= 150).long() + (batch.timestamps >= 250).long()
        user_found = (batch.user_ids < 5) & (version > 0)
        item_found = (batch.item_ids <= -1) & (batch.item_ids >= -3) & (version > 0)
        assert batch.found.tolist() == torch.stack([user_found, item_found], dim=1).tolist()
        expected = torch.stack([batch.user_ids, version], dim=1) * user_found.unsqueeze(1)
        assert batch.vectors[:, :2].tolist() == expected.tolist()
        assert batch.vectors[:, 2:].tolist() == (-batch.item_ids * item_found).unsqueeze(1).expand(-1, 3).tolist()
    stream.seek(3)
    resumed = next(iter(stream))
    assert torch.equal(resumed.user_ids, batches[3].user_ids)
    assert resumed.vectors is not None
    assert batches[3].vectors is not None
    assert torch.equal(resumed.vectors, batches[3].vectors)


def test_what_a_transform_raises_surfaces(tmp_path: Path) -> None:
    write_events(tmp_path / "a.parquet")

    def transform(batch: Batch) -> Batch:
        raise RuntimeError("the store is gone")

    with pytest.raises(RuntimeError, match="the store is gone"):
        list(EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=8, transform=transform))


def test_a_ranker_takes_the_joined_batch(store: EmbeddingStore, tmp_path: Path) -> None:
    """No gradient reaches the stored vectors; a projection of them learns."""
    fill(store)
    write_events(tmp_path / "a.parquet")
    features = StoreFeatures(store, ["user_ctr", "item_ctr"][:1])
    torch.manual_seed(0)
    model = draw_tables(DLRM(SCHEMA, NetworkConfig(embedding_dim=4, hidden=(8,)), features.specs), 0)
    assert model.network.body.vectors is not None
    torch.nn.init.ones_(model.network.body.vectors.first.weight)  # it starts at zero
    (batch,) = EventStream([tmp_path / "a.parquet"], SCHEMA, batch_size=40, transform=features)
    model(batch).sum().backward()
    assert batch.vectors is not None
    assert batch.vectors.grad is None
    assert model.network.body.vectors.project[0].weight.grad.abs().sum() > 0


def test_a_refused_version_trains_nobody(store: EmbeddingStore) -> None:
    series = store.create("user_ctr", dim=1)
    for version in (1, 2):
        publish(series, 100 * version, {1: [float(version)]})
    series.refuse(2, ["norms"])
    assert PointInTimeSeries(series).lookup(ints([1]), ints([500]))[0].item() == 1.0


def test_how_old_and_how_well_fed_a_vector_is_as_of_each_event(store: EmbeddingStore) -> None:
    """User 1 was active on day 3010 and 3012, user 2 on day 3010; the activity of a publish that never came is not
    read."""
    series, activity = store.create("user_ctr", dim=1), activity_series(store, "user_ctr")
    for as_of, known in ((3011, {1: [3010.0, 1.0, 5.0], 2: [3010.0, 1.0, 1.0]}), (3013, {1: [3012.0, 2.0, 8.0]})):
        publish(activity, as_of * DAY_MS, known)
        publish(series, as_of * DAY_MS, {user: [1.0] for user in known})
    publish(activity, 3014 * DAY_MS, {1: [3013.0, 3.0, 99.0]})
    times = [3010.9, 3011.0, 3012.5, 3013.25, 3020.0]
    users = ints([1] * 5 + [2] * 5)
    joined = PointInTimeSeries(series, activity=activity).join(users, ints([round(x * DAY_MS) for x in times] * 2))
    expected = [[0.0, 0.0], [1.0, 5.0], [2.5, 5.0], [1.25, 8.0], [8.0, 8.0]]
    expected += [[0.0, 0.0], [1.0, 1.0], [2.5, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert torch.allclose(joined[2], torch.tensor(expected), atol=1e-5)
    assert joined[2].dtype == torch.float32
    once = PointInTimeSeries(series, once=True, activity=activity).join(ints([1]), ints([3020 * DAY_MS]))
    assert once[2].tolist() == [[10.0, 5.0]]
    features = StoreFeatures(store, ["user_ctr"])
    assert features.series[0].activity is not None
    assert features.series[0].activity.name == "user_ctr.activity"


def test_nothing_is_known_of_vectors_without_a_companion(store: EmbeddingStore) -> None:
    series = store.create("user_ctr", dim=1)
    publish(series, 0, {1: [1.0]})
    vectors, found, feed = PointInTimeSeries(series).join(ints([1, 2]), ints([5, 5]))
    assert (vectors.tolist(), found.tolist(), feed.tolist()) == ([[1.0], [0.0]], [True, False], [[0.0, 0.0]] * 2)
