from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.checks import check_run
from recsys.config import override
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.movielens import GENRES, prepare_movielens_1m, prepare_movielens_100k
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.recipes import movielens_1m

SHARED = Path(__file__).parents[3] / "../shared/data"
PARTS = ("upstream", "train", "validation", "test")
USERS, ITEMS, RATINGS = 20, 30, 400


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/data/{name} is not here")
    return SHARED / name


def _part(out: Path, name: str) -> pa.Table:
    return pq.read_table(out / "ratings" / "events" / name / "part-0.parquet")


def _entities(out: Path, name: str) -> pa.Table:
    return pq.read_table(out / "ratings" / name / "part-0.parquet")


def _small_log() -> list[tuple[int, int, int, int]]:
    """User, item, rating, second: no pair twice, many ratings in one second."""
    rng = np.random.default_rng(0)
    pairs = rng.permutation(USERS * ITEMS)[:RATINGS]
    ratings, seconds = rng.integers(1, 6, RATINGS), rng.integers(900_000_000, 900_000_060, RATINGS)
    columns = (pairs // ITEMS + 1, pairs % ITEMS + 1, ratings, seconds)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _genres_of(item: int) -> list[str]:
    return sorted({GENRES[item % 19], GENRES[item * 7 % 19]}, key=GENRES.index)


def _occupation(user: int) -> str:
    return ("student", "none")[user % 2]


def _write_grouplens_100k(folder: Path) -> Path:
    folder.mkdir()
    log = ["\t".join(map(str, row)) for row in _small_log()]
    people = [f"{u}|{u + 10}|{'MF'[u % 2]}|{_occupation(u)}|Z{u:04}" for u in range(1, USERS + 1)]
    films = []
    for item in range(1, ITEMS + 1):
        flags = "|".join("01"[name in _genres_of(item)] for name in GENRES)
        films.append(f"{item}|Caf\xe9, the {item}th (19{50 + item})|01-Jan-1997||http://x.y/{item}|{flags}")
    for name, lines in (("u.data", log), ("u.user", people), ("u.item", films)):
        (folder / name).write_bytes("\n".join([*lines, ""]).encode("latin-1"))
    return folder


def _write_atomic_100k(folder: Path) -> Path:
    folder.mkdir()
    log = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    log += ["\t".join(map(str, row)) for row in _small_log()]
    people = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    people += [f"{u}\t{u + 10}\t{'MF'[u % 2]}\t{_occupation(u)}\tZ{u:04}" for u in range(1, USERS + 1)]
    films = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    films += [f"{i}\tCaf\xe9, the {i}th\t19{50 + i}\t{' '.join(_genres_of(i))}" for i in range(1, ITEMS + 1)]
    for name, lines in (("inter", log), ("user", people), ("item", films)):
        (folder / f"ml-100k.{name}").write_text("\n".join([*lines, ""]), encoding="utf8")
    return folder


def _write_grouplens_1m(folder: Path) -> Path:
    folder.mkdir()
    log = ["::".join(map(str, row)) for row in _small_log()]
    people = [f"{u}::{'FM'[u % 2]}::{(1, 18, 25, 56)[u % 4]}::{u % 21}::{u:05}-1234" for u in range(1, USERS + 1)]
    films = [f"{i}::Caf\xe9, the {i}th (19{50 + i})::{'|'.join(_genres_of(i))}" for i in range(1, ITEMS + 1)]
    for name, lines in (("ratings.dat", log), ("users.dat", people), ("movies.dat", films)):
        (folder / name).write_bytes("\n".join([*lines, ""]).encode("latin-1"))
    return folder


def _check_histories(log: list[tuple[int, ...]], rows: list[dict[str, Any]]) -> None:
    """Compare rows' histories with a scan of the raw log."""
    by_user: dict[int, list[tuple[int, ...]]] = {}
    for event in log:
        by_user.setdefault(event[0], []).append(event)
    for row in rows:
        for name, least in (("rated_items", 1), ("liked_items", 4)):
            mine = by_user.get(row["user_id"], [])
            past = sorted((1000 * t, i) for _, i, r, t in mine if 1000 * t < row["timestamp"] and r >= least)
            times, items = row[f"{name}_time"], row[name]
            assert times == [time for time, _ in past][-50:]
            assert set(zip(times, items, strict=True)) <= set(past)
            assert len(set(items)) == len(items) == min(50, len(past))


def _all_events(out: Path) -> pa.Table:
    return pa.concat_tables([_part(out, name) for name in PARTS])


def _check_parts_in_time(out: Path, rows: int) -> None:
    tables = [_part(out, name) for name in PARTS]
    assert [round(table.num_rows / rows, 1) for table in tables[:2]] == [0.5, 0.2]
    assert sum(table.num_rows for table in tables) == rows
    times = [table["timestamp"].to_numpy() for table in tables]
    assert all((np.diff(time) >= 0).all() for time in times)
    assert all(earlier[-1] < later[0] for earlier, later in pairwise(times))  # ties are not parted
    for name in ("users", "items"):
        assert set(_entities(out, name)["timestamp"].to_pylist()) == {int(times[0][-1]) + 1}
    _check_disjoint(tables, rows)


def _check_disjoint(tables: list[pa.Table], rows: int) -> None:
    pairs = [set(zip(t["user_id"].to_pylist(), t["item_id"].to_pylist(), strict=True)) for t in tables]
    assert [len(pair) for pair in pairs] == [table.num_rows for table in tables]
    assert len(set.union(*pairs)) == rows


def _check_readable(out: Path, rows: int) -> None:
    """The reader takes every part, and entity rows with the features of their owner alone."""
    schema = Schema.load(out / "ratings" / "schema.toml")
    assert check_files(find_files(out, ["ratings/events/*/*.parquet"]), schema) == rows
    for owner in ("user", "item"):
        chosen = schema.select(features=tuple(feature.name for feature in schema.owned_by(owner)), labels=())
        files = find_files(out, [f"ratings/{owner}s/*.parquet"])
        read = sum(len(batch) for batch in EventStream(files, chosen, batch_size=512, drop_last=False))
        assert read == _entities(out, f"{owner}s").num_rows
    files = find_files(out, ["ratings/events/test/*.parquet"])
    for batch in EventStream(files, schema, batch_size=4096, drop_last=False):  # checks that no history looks ahead
        assert batch.label_mask.all()


@pytest.fixture(scope="module")
def small_100k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small_100k")
    prepare_movielens_100k(_write_grouplens_100k(folder / "source"), folder)
    return folder


def test_100k_parts_histories_and_reader(small_100k: Path) -> None:
    _check_parts_in_time(small_100k, RATINGS)
    rows = _all_events(small_100k).to_pylist() + _entities(small_100k, "users").to_pylist()
    _check_histories(_small_log(), rows)
    _check_readable(small_100k, RATINGS)


def test_100k_features(small_100k: Path) -> None:
    user = _entities(small_100k, "users").to_pylist()[6]
    assert [user[name] for name in ("user_id", "gender", "age", "zip")] == [7, 0, 0, "Z0007"]
    assert _entities(small_100k, "users")["age"].to_pylist()[7] == 1  # 18 years: the second group begins
    assert user["occupation"] == 12  # none
    item = _entities(small_100k, "items").to_pylist()[6]
    assert [GENRES[index] for index in item["genres"]] == _genres_of(7)
    assert item["first_genre"] == item["genres"][0]
    assert item["release_year"] == 12  # 1955 to 1959
    liked = {(u, i) for u, i, rating, _ in _small_log() if rating > 3}
    for part in PARTS:
        for row in _part(small_100k, part).to_pylist():
            assert row["like"] == ((row["user_id"], row["item_id"]) in liked)


def test_100k_is_the_same_from_both_forms(small_100k: Path, tmp_path: Path) -> None:
    prepare_movielens_100k(_write_atomic_100k(tmp_path / "source"), tmp_path)
    for name in (*(f"events/{part}" for part in PARTS), "users", "items"):
        path = f"ratings/{name}/part-0.parquet"
        assert pq.read_table(tmp_path / path).equals(pq.read_table(small_100k / path)), name


def test_1m_from_grouplens_files(tmp_path: Path) -> None:
    source = _write_grouplens_1m(tmp_path / "source")
    prepare_movielens_1m(source, tmp_path)
    tables = [_part(tmp_path, name) for name in PARTS]
    assert [table.num_rows for table in tables] == [160, 160, 40, 40]
    _check_disjoint(tables, RATINGS)
    assert all("timestamp" not in table.column_names for table in tables)
    assert Schema.load(tmp_path / "ratings/schema.toml").timestamp == ""
    rating = {(u, i): r for u, i, r, _ in _small_log()}
    assert all(row["like"] == (rating[row["user_id"], row["item_id"]] > 3) for t in tables for row in t.to_pylist())
    user = _entities(tmp_path, "users").to_pylist()[6]
    assert user == {"user_id": 7, "gender": 1, "age": 6, "occupation": 7, "zip": "00007-1234"}
    _check_readable(tmp_path, RATINGS)
    small = [f"{job}.training.batch_size=16" for job in ("upstreams.ctr", "rankers")]
    check_run(override(movielens_1m(), small), tmp_path)
    first = [table.to_pylist() for table in tables]
    prepare_movielens_1m(source, tmp_path)
    assert [_part(tmp_path, name).to_pylist() for name in PARTS] == first  # fixed seeds


@pytest.mark.parametrize(
    ("write", "prepare", "name", "content", "message"),
    [
        (_write_grouplens_1m, prepare_movielens_1m, "users.dat", None, r"users.dat is missing"),
        (_write_grouplens_1m, prepare_movielens_1m, "ratings.dat", None, r"neither .*ratings.dat nor .*parquet"),
        (_write_grouplens_1m, prepare_movielens_1m, "movies.dat", b"1,Toy Story", r"movies.dat is not the file"),
        (_write_grouplens_1m, prepare_movielens_1m, "movies.dat", b"1::A (1990)::Jazz\n", r"movies.dat: .*'Jazz'"),
        (_write_grouplens_1m, prepare_movielens_1m, "movies.dat", b"1::A (1990)::Drama\n", r"items without features"),
        (_write_grouplens_1m, prepare_movielens_1m, "interactions.parquet", b"no", r"interactions.parquet is not"),
        (_write_grouplens_100k, prepare_movielens_100k, "u.item", None, r"u.item is missing"),
        (_write_grouplens_100k, prepare_movielens_100k, "u.data", None, r"neither .*u.data nor .*ml-100k.inter"),
        (_write_grouplens_100k, prepare_movielens_100k, "u.data", b"1\t2\tgood\t4\n", r"u.data is not the file"),
        (_write_grouplens_100k, prepare_movielens_100k, "u.user", b"1|20|X|none|Z\n", r"u.user: unknown value 'X'"),
        (_write_atomic_100k, prepare_movielens_100k, "ml-100k.item", b"item\ttitle\n", r"ml-100k.item does not begin"),
        (_write_atomic_100k, prepare_movielens_100k, "ml-100k.user", None, r"ml-100k.user is missing"),
    ],
)
def test_missing_and_foreign_files_are_named_and_nothing_is_written(
    tmp_path: Path,
    write: Callable[[Path], Path],
    prepare: Callable[[Path, Path], None],
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    file = write(tmp_path / "source") / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_100k(tmp_path: Path) -> None:
    source = _shared("ml-100k")
    prepare_movielens_100k(source, tmp_path)
    _check_parts_in_time(tmp_path, 100_000)
    _check_readable(tmp_path, 100_000)
    lines = (source / "ml-100k.inter").read_text().splitlines()[1:]
    log = [tuple(int(float(field)) for field in line.split("\t")) for line in lines]
    events = _all_events(tmp_path)
    chosen = pa.array(np.arange(0, 100_000, 397))
    _check_histories(log, events.take(chosen).to_pylist() + _entities(tmp_path, "users").to_pylist())
    assert events["like"].to_numpy().sum() == sum(rating > 3 for _, _, rating, _ in log)


def test_the_real_1m(tmp_path: Path) -> None:
    source = _shared("ml-1m")
    prepare_movielens_1m(source, tmp_path)
    tables = [_part(tmp_path, name) for name in PARTS]
    assert [table.num_rows for table in tables] == [400_380, 400_381, 99_838, 99_610]
    keys = [table["user_id"].to_numpy() * 10_000 + table["item_id"].to_numpy() for table in tables]
    assert len(np.unique(np.concatenate(keys))) == 1_000_209
    given = pq.read_table(source / "interactions.parquet")
    test = given.filter(pc.equal(given["split"], "test"))
    assert np.array_equal(np.sort(keys[3]), np.sort(test["user_id"].to_numpy() * 10_000 + test["movie_id"].to_numpy()))
    likes = np.concatenate([table["like"].to_numpy() for table in tables])
    assert round(float(likes.mean()), 4) == 0.5752
    assert abs(tables[0]["like"].to_numpy().mean() - tables[1]["like"].to_numpy().mean()) < 0.005
    assert _entities(tmp_path, "users").num_rows == 6040
    assert _entities(tmp_path, "items").num_rows == 3883
    _check_readable(tmp_path, 1_000_209)
