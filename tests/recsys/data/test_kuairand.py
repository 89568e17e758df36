"""On the real extract where it is at hand, and on a made-up folder in both of the forms that are read."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.kuairand import (
    CUT_MS,
    DAY_MS,
    FEEDBACK,
    ITEM_CODES,
    RAW_LOGS,
    USER_CODES,
    USER_NUMBERS,
    prepare_kuairand,
)
from recsys.data.schema import Schema
from recsys.data.stream import EventStream

USERS_CSV, ITEMS_CSV = "user_features_pure.csv", "video_features_basic_pure.csv"


# A made-up folder. Facts first, then the two forms in which publishers ship them.

ITEMS = 90


class Facts:
    """Watches before the cut and impressions after it; every user watches a video at most once."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.log: list[dict[str, int]] = []
        last = {user: CUT_MS - 1 - 100 * user - (user == 3) * 5 * DAY_MS for user in (0, 1, 3, 5)}
        for user, count in ((0, 3), (1, 61), (3, 7), (5, 1)):
            for back, item in enumerate(rng.permutation(ITEMS)[:count].tolist()):
                self.log.append(_row(rng, user, item, last[user] - back))
        for number in range(40):
            time = CUT_MS + number * (DAY_MS // 2) // 3 + number
            self.log.append(_row(rng, number % 7, int(rng.integers(ITEMS)), time))

    def watches(self, user: int, *, only: str = "") -> list[dict[str, int]]:
        """A user's rows before the cut, oldest first."""
        rows = [x for x in self.log if x["user_id"] == user and x["time_ms"] < CUT_MS and (not only or x[only])]
        return sorted(rows, key=lambda row: row["time_ms"])


def _row(rng: np.random.Generator, user: int, item: int, time: int) -> dict[str, int]:
    labels = ("is_click", "long_view", *FEEDBACK)
    row = {"user_id": user, "video_id": item, "date": 20220425, "hourmin": 0, "time_ms": time}
    row |= {name: int(value) for name, value in zip(labels, rng.random(len(labels)) < 0.4, strict=True)}
    row |= {"play_time_ms": int(rng.integers(90_000)), "duration_ms": int(rng.integers(1, 90_000))}
    return row | {"profile_stay_time": 0, "comment_stay_time": 0, "is_rand": 0, "tab": int(rng.integers(3))}


def _write_features(folder: Path) -> None:
    users: dict[str, Any] = {"user_id": range(6)}  # user 6 of the impressions has no features
    users |= {name: [(user * 7 + index) % 3 for user in users["user_id"]] for index, name in enumerate(USER_CODES)}
    users |= {name: [user + 0.5 for user in users["user_id"]] for name in USER_NUMBERS}
    users |= {"user_active_degree": ["full", "UNKNOWN", "high", "full", "full", "low"]}
    users |= {"onehot_feat4": [""] * 6, "onehot_feat12": ["1.0", "", "0.0", "", "", "1.0"]}
    items: dict[str, Any] = {"video_id": range(ITEMS - 1)}  # nor has the last video
    items |= {name: [(item * 5 + index) % 4 for item in items["video_id"]] for index, name in enumerate(ITEM_CODES)}
    items |= {"tag": [f'"{item % 3},{item % 5}"' if item % 4 else "" for item in items["video_id"]]}
    items |= {"video_duration": [1000 * item if item % 6 else "" for item in items["video_id"]]}
    _write_csv(folder / USERS_CSV, users)
    _write_csv(folder / ITEMS_CSV, items)


def _write_csv(path: Path, columns: Mapping[str, Any]) -> None:
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")


def _write_extract(folder: Path, facts: Facts) -> None:
    folder.mkdir()
    _write_features(folder)
    events = sorted((row for row in facts.log if row["time_ms"] >= CUT_MS - 1), key=lambda row: row["time_ms"])
    assert events[0]["time_ms"] < CUT_MS  # as in the published extract, whose first hour belongs to the histories
    pq.write_table(pa.Table.from_pylist(events), folder / "events.parquet")
    lists = []
    for user in (5, 3, 1, 0):
        watches = facts.watches(user)
        row: dict[str, Any] = {"user_id": user, "history_len": len(watches), "last_time_ms": watches[-1]["time_ms"]}
        for name, only in (("watch_seq", ""), ("like_seq", "is_like"), ("long_watch_seq", "long_view")):
            row[name] = [x["video_id"] for x in facts.watches(user, only=only)[-50:]]
        lists.append(row)
    kinds = {name: pa.list_(pa.int64()) for name in ("watch_seq", "like_seq", "long_watch_seq")}
    kinds = {**dict.fromkeys(("user_id", "history_len", "last_time_ms"), pa.int64()), **kinds}
    pq.write_table(pa.Table.from_pylist(lists, pa.schema(kinds)), folder / "history.parquet")


def _write_logs(folder: Path, facts: Facts) -> None:
    folder.mkdir()
    _write_features(folder)
    cut = CUT_MS - 3 * DAY_MS
    shuffled = [facts.log[index] for index in np.random.default_rng(2).permutation(len(facts.log))]
    shuffled += shuffled[:30]  # exact repetitions, as in the publisher's
    for name, rows in zip(
        RAW_LOGS,
        ([x for x in shuffled if x["time_ms"] < cut], [x for x in shuffled if x["time_ms"] >= cut]),
        strict=True,
    ):
        assert rows
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), folder / name)


def _prepared(folder: Path) -> dict[str, Any]:
    """Every file's content."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            parquet = path.suffix == ".parquet"
            found[name] = pq.ParquetFile(path).read().to_pydict() if parquet else path.read_text()
    return found


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`extract` and `logs`: the same facts in two forms."""
    folder = tmp_path_factory.mktemp("forms")
    facts = Facts()
    _write_extract(folder / "extract", facts)
    _write_logs(folder / "logs", facts)
    return folder


@pytest.fixture
def source(forms: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of one form, to be spoiled."""
    return Path(shutil.copytree(forms / request.param, tmp_path / "source"))


def test_both_forms_give_the_same(forms: Path, tmp_path: Path) -> None:
    for form in ("extract", "logs"):
        prepare_kuairand(forms / form, tmp_path / form)
    extract, logs = _prepared(tmp_path / "extract"), _prepared(tmp_path / "logs")
    assert extract.keys() == logs.keys()
    for name in extract:
        assert extract[name] == logs[name], name
    history = extract["history/events/all/part-0.parquet"]
    assert len(history["timestamp"]) == 3 + 50 + 7 + 1
    assert max(history["past_watched"]) == 60
    users = extract["history/users/part-0.parquet"]
    assert users["user_id"] == list(range(6))
    assert users["past_watched"] == [3, 61, 0, 7, 0, 1]
    assert min(extract) == "history/events/all/part-0.parquet"


@pytest.mark.parametrize("source", ["extract", "logs"], indirect=True)
def test_entities_without_features(source: Path, tmp_path: Path) -> None:
    """They stay in the log, with nulls; nobody else's counts change."""
    users = (source / USERS_CSV).read_text().splitlines()
    (source / USERS_CSV).write_text("\n".join([users[0], *users[3:6]]) + "\n")  # users 2, 3 and 4 are left
    prepare_kuairand(source, tmp_path / "out")
    found = _prepared(tmp_path / "out")
    assert found["history/users/part-0.parquet"]["user_id"] == [2, 3, 4]
    assert found["history/users/part-0.parquet"]["past_watched"] == [0, 7, 0]
    history = found["history/events/all/part-0.parquet"]
    assert sorted(set(history["user_id"])) == [0, 1, 3, 5]
    for user, code, item, author in zip(
        history["user_id"], history["onehot_feat0"], history["item_id"], history["author_id"], strict=True
    ):
        assert (code is None) == (user != 3)
        assert (author is None) == (item == ITEMS - 1)
    schema = Schema.load(tmp_path / "out/history/schema.toml")
    files = find_files(tmp_path / "out", ["history/events/*/*.parquet"])
    assert len(list(EventStream(files, schema, batch_size=10))) == 6


@pytest.mark.parametrize("source", ["extract"], indirect=True)
def test_the_statistics_file_is_never_read(source: Path, tmp_path: Path) -> None:
    prepare_kuairand(source, tmp_path / "without")
    (source / "video_features_statistic_pure.csv").mkdir()  # whoever reads it fails
    prepare_kuairand(source, tmp_path / "with")
    assert _prepared(tmp_path / "with") == _prepared(tmp_path / "without")


def test_impressions_know_what_their_user_had_done_before(forms: Path, tmp_path: Path) -> None:
    """The history's columns, against a loop over strictly earlier rows; an upstream reads both kinds by one schema."""
    prepare_kuairand(forms / "logs", tmp_path)
    log, checked = Facts().log, 0
    files = sorted((tmp_path / "impressions/events").glob("*/*/*.parquet"))
    for row in (row for path in files for row in pq.ParquetFile(path).read().to_pylist()):
        past = [x for x in log if x["user_id"] == row["user_id"] and x["time_ms"] < row["timestamp"]]
        past.sort(key=lambda x: x["time_ms"])
        old = [x for x in past if x["time_ms"] < CUT_MS]
        listed = [*old[-50:], *past[len(old) :]]  # the extract lists no more
        assert row["watched"] == [x["video_id"] for x in listed][-50:]
        assert row["long_watched"] == [x["video_id"] for x in listed if x["long_view"]][-50:]
        assert row["liked"] == [x["video_id"] for x in listed if x["is_like"]][-50:]
        assert row["past_watched"] == len(past)
        assert row["past_liked"] == sum(x["is_like"] for x in listed)
        checked += bool(past)
    assert checked > 20
    schema = Schema.load(tmp_path / "history/schema.toml")
    history = find_files(tmp_path, ("history/events/*/*.parquet",))
    assert check_files([*history, *files], schema)
    ranker = Schema.load(tmp_path / "impressions/schema.toml")
    assert not {"watched", "past_watched"} & {feature.name for feature in ranker.features}
    histories = Schema.load(tmp_path / "impressions/with-histories.toml")
    more = {feature.name for feature in histories.features} - {feature.name for feature in ranker.features}
    assert {"long_watched", "watched", "liked", "past_watched"} < more
    assert histories.labels == ranker.labels
    assert check_files(files, histories) == 40


def test_a_repeated_watch_has_the_feedback_it_is_listed_with(forms: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(forms / "extract", tmp_path / "source"))
    row = {"user_id": 0, "history_len": 6, "last_time_ms": CUT_MS - 10, "watch_seq": [7, 7, 8, 7, 9, 9]}
    rows = [row | {"long_watch_seq": [7, 8, 9], "like_seq": []}]
    rows += [row | {"user_id": 1, "watch_seq": [4, 5, 4], "long_watch_seq": [1, 4, 2, 4, 5], "like_seq": [4, 4]}]
    pq.write_table(pa.Table.from_pylist(rows), source / "history.parquet")
    prepare_kuairand(source, tmp_path / "out")
    history = _prepared(tmp_path / "out")["history/events/all/part-0.parquet"]
    labels: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for user, view, like in zip(history["user_id"], history["long_view"], history["is_like"], strict=True):
        labels[user].append((view, like))
    views = [view for view, _ in labels[0]]
    assert sum(views) == 3
    assert [item for item, view in zip([7, 7, 8, 7, 9, 9], views, strict=True) if view] == [7, 8, 9]
    assert labels[1] == [(1, 1), (1, 0), (0, 1)]  # the lists go further back than the watches


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *(("extract", name) for name in ("history.parquet", USERS_CSV, ITEMS_CSV)),
        *(("logs", name) for name in (*RAW_LOGS, USERS_CSV, ITEMS_CSV)),
    ],
    indirect=["source"],
)
@pytest.mark.parametrize("fault", ["missing", "empty", "garbled", "column"])
def test_a_bad_file_is_named_and_nothing_is_written(source: Path, tmp_path: Path, name: str, fault: str) -> None:
    path = source / name
    if fault == "missing":
        path.unlink()
        message = rf"{name}: no such file. .*{USERS_CSV}.*events.parquet .*{RAW_LOGS[0]}.*--source"
    elif fault == "column":
        table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
        column = next(x for x in ("long_watch_seq", "is_click", "onehot_feat7", "tag") if x in table.column_names)
        table = table.drop_columns([column])
        pq.write_table(table, path) if path.suffix == ".parquet" else pyarrow.csv.write_csv(table, path)
        message = f"{name} lacks the columns {column}: is it"
    else:
        path.write_bytes(b"" if fault == "empty" else b"a,b\n1\n1,2,3\n")
        message = f"{name} cannot be read: .* Download it anew"
    with pytest.raises(DataError, match=message):
        prepare_kuairand(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_an_empty_folder_names_both_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"either events.parquet \+ history.parquet or {RAW_LOGS[0]} \+ {RAW_LOGS[1]}"):
        prepare_kuairand(tmp_path, tmp_path / "out")


def test_preparing_again_replaces_and_a_failure_leaves_what_was(forms: Path, tmp_path: Path) -> None:
    prepare_kuairand(forms / "logs", tmp_path / "out")
    before = _prepared(tmp_path / "out")
    (tmp_path / "out/history/events/all/old.parquet").write_text("left over")
    prepare_kuairand(forms / "extract", tmp_path / "out")
    assert _prepared(tmp_path / "out") == before
    with pytest.raises(DataError):
        prepare_kuairand(tmp_path, tmp_path / "out")
    assert _prepared(tmp_path / "out") == before
