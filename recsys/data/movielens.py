"""MovieLens 1M and 100K as events: from GroupLens's own files, or from the forms in which others pass them on.

Both become one source folder `ratings`: `schema.toml`, `events/{upstream,train,validation,test}/part-0.parquet` and
entity rows `users/part-0.parquet`, `items/part-0.parquet`. The label is `like`: a rating above 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.errors import DataError
from recsys.data.files import replacing_folder, write_part
from recsys.data.history import History, PastEvents
from recsys.data.schema import Feature, Label, Schema

FOLDER = "ratings"
HISTORY_LENGTH = 50
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
OCCUPATIONS = (
    "administrator",
    "artist",
    "doctor",
    "educator",
    "engineer",
    "entertainment",
    "executive",
    "healthcare",
    "homemaker",
    "lawyer",
    "librarian",
    "marketing",
    "none",
    "other",
    "programmer",
    "retired",
    "salesman",
    "scientist",
    "student",
    "technician",
    "writer",
)
_AGES = (18, 25, 35, 45, 50, 56)  # where MovieLens 1M's seven age groups begin, but for the first
_YEARS = range(1900, 2005, 5)  # release years in buckets of five; bucket 0 is unknown
_SEED = 0

_INT, _FLOAT, _STRING = pa.int64(), pa.float64(), pa.string()

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def prepare_movielens_1m(source: Path, out: Path) -> None:
    """Write `out/ratings` from MovieLens 1M, replacing one that is there only when all is written.

    `source` holds `users.dat`, `movies.dat` and either GroupLens's `ratings.dat`, which is split 8:1:1 at random with a
    fixed seed, or `interactions.parquet` (user_id, movie_id, like, split), whose split is kept.

    The split is random and the times are unknown or not to be used, so the schema says `timestamp = ""` and nothing
    keeps an upstream from seeing what a downstream learns from, but this: the training rows are halved at random into
    `upstream` and `train`. They are disjoint, so no row trains a ranker on vectors from an upstream that has seen it.

    Raises:
        DataError: a file is missing or holds something else; the message names it.
    """
    source = Path(source)
    users = _users_1m(source / "users.dat")
    items = _items_1m(source / "movies.dat")
    user, item, like, split = _ratings_1m(source)
    order = np.random.default_rng(_SEED).permutation(len(user))
    train = order[split[order] == "train"]
    parts = {
        "upstream": train[: len(train) // 2],
        "train": train[len(train) // 2 :],
        "validation": order[split[order] == "valid"],
        "test": order[split[order] == "test"],
    }
    events = _events(user, item, like, users, items)
    with replacing_folder(Path(out) / FOLDER) as folder:
        _schema(users, items, timed=False).save(folder / "schema.toml")
        for name, rows in parts.items():
            write_part(events.take(pa.array(rows)), folder / "events" / name)
        write_part(users, folder / "users")
        write_part(items, folder / "items")


def prepare_movielens_100k(source: Path, out: Path) -> None:
    """Write `out/ratings` from MovieLens 100K, replacing one that is there only when all is written.

    `source` holds GroupLens's `u.data`, `u.item` and `u.user`, or RecBole's `ml-100k.inter`, `.item` and `.user`.

    Rows are in order of time and are cut by time into `upstream` (the first half), `train` (a quarter), `validation`
    (a tenth) and `test`; rows of one second are never parted. Histories are the user's last 50 liked and last 50 rated
    items of strictly earlier seconds. Entity rows are as of the end of `upstream`, its last event's time + 1 ms, with
    the histories of then.

    Raises:
        DataError: a file is missing or holds something else; the message names it.
    """
    users, items, (user, item, like, time) = _read_100k(Path(source))
    order = np.lexsort((item, user, time))
    user, item, like, time = user[order], item[order], like[order], time[order]
    cuts = [int(np.searchsorted(time, time[int(len(time) * share)])) for share in (0.5, 0.75, 0.85)]
    bounds = [0, *cuts, len(time)]
    rated, liked = PastEvents(user, time, item), PastEvents(user, time, item, like)
    events = _with_histories(
        _at(_events(user, item, like, users, items), time),
        rated.before(user, time, HISTORY_LENGTH),
        liked.before(user, time, HISTORY_LENGTH),
    )
    as_of = int(time[cuts[0] - 1]) + 1
    everybody = users["user_id"].to_numpy()
    then = np.full(len(everybody), as_of)
    entities = _with_histories(
        _at(users, then),
        rated.before(everybody, then, HISTORY_LENGTH),
        liked.before(everybody, then, HISTORY_LENGTH),
    )
    with replacing_folder(Path(out) / FOLDER) as folder:
        _schema(users, items, timed=True).save(folder / "schema.toml")
        for index, name in enumerate(("upstream", "train", "validation", "test")):
            rows = events.slice(bounds[index], bounds[index + 1] - bounds[index])
            write_part(rows, folder / "events" / name)
        write_part(entities, folder / "users")
        write_part(_at(items, np.full(len(items), as_of)), folder / "items")


def _schema(users: pa.Table, items: pa.Table, *, timed: bool) -> Schema:
    """Of a log without times, or of one with times and histories."""
    item_rows = pc.max(items["item_id"]).as_py() + 1

    def history(name: str) -> Feature:
        return Feature(
            name=name,
            owner="user",
            kind="sequence",
            rows=item_rows,
            table="history_item",
            max_length=HISTORY_LENGTH,
            time=f"{name}_time",
        )

    return Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id", rows=pc.max(users["user_id"]).as_py() + 1),
            Feature(name="gender", owner="user", kind="id", rows=2),
            Feature(name="age", owner="user", kind="id", rows=len(_AGES) + 1),
            Feature(name="occupation", owner="user", kind="id", rows=len(OCCUPATIONS)),
            Feature(name="zip", owner="user", kind="id", rows=8192),
            *((history("liked_items"), history("rated_items")) if timed else ()),
            Feature(name="item_id", owner="item", kind="id", rows=item_rows),
            Feature(name="genres", owner="item", kind="ids", rows=len(GENRES)),
            Feature(name="first_genre", owner="item", kind="id", rows=len(GENRES)),
            Feature(name="release_year", owner="item", kind="id", rows=len(_YEARS) + 1),
        ),
        labels=(Label(name="like"),),
        timestamp="timestamp" if timed else "",
    )


def _ratings_1m(source: Path) -> tuple[Ints, Ints, Bools, NDArray[np.str_]]:
    """User, item, like and split (train, valid, test) of every rating."""
    given, ratings = source / "interactions.parquet", source / "ratings.dat"
    if given.is_file():
        try:
            table = pq.read_table(given, columns=["user_id", "movie_id", "like", "split"])
            user, item, like = (table[name].cast(pa.int64()).to_numpy() for name in ("user_id", "movie_id", "like"))
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{given} is not MovieLens 1M's pairs (user_id, movie_id, like, split): {error}") from None
        return user, item, like == 1, np.array(table["split"].to_pylist())
    if not ratings.is_file():
        raise DataError(f"found neither {ratings} nor {given}: give the folder of MovieLens 1M (ml-1m.zip, unpacked)")
    user, item, rating, _ = _log(ratings, "::")
    order = np.random.default_rng(_SEED).permutation(len(user))
    split = np.full(len(user), "train")
    split[order[int(0.8 * len(user)) : int(0.9 * len(user))]] = "valid"
    split[order[int(0.9 * len(user)) :]] = "test"
    return user, item, rating > 3, split


def _users_1m(path: Path) -> pa.Table:
    table = _read(path, "::", {"user_id": _INT, "gender": _STRING, "age": _INT, "occupation": _INT, "zip": _STRING})
    return _users(table, table["occupation"].to_numpy(), path)


def _items_1m(path: Path) -> pa.Table:
    table = _read(path, "::", {"item_id": _INT, "title": _STRING, "genres": _STRING})
    return _items(table, pc.split_pattern(table["genres"], "|"), _title_year(table["title"]), path)


def _read_100k(source: Path) -> tuple[pa.Table, pa.Table, tuple[Ints, Ints, Bools, Ints]]:
    """Users, items, and user, item, like and time (ms) of every rating."""
    atomic = source / "ml-100k.inter"
    user_columns = {"user_id": _INT, "age": _INT, "gender": _STRING, "occupation": _STRING, "zip": _STRING}
    if (source / "u.data").is_file():
        log, people = source / "u.data", source / "u.user"
        table = _read(people, "|", user_columns)
        items = _items_100k(source / "u.item")
    elif atomic.is_file():
        log, people = atomic, source / "ml-100k.user"
        table = _read(people, "\t", user_columns, header="user_id:token")
        items = _items_atomic(source / "ml-100k.item")
    else:
        raise DataError(
            f"found neither {source / 'u.data'} nor {atomic}: "
            f"give the folder of MovieLens 100K (ml-100k.zip, unpacked, or RecBole's atomic files)"
        )
    users = _users(table, _indices(table["occupation"], OCCUPATIONS, people), people)
    user, item, rating, seconds = _log(log, "\t", header="user_id:token" if log == atomic else "")
    return users, items, (user, item, rating > 3, seconds * 1000)


def _items_100k(path: Path) -> pa.Table:
    flags = [f"genre_{index}" for index in range(len(GENRES))]
    texts = dict.fromkeys(("title", "released", "video_released", "url"), _STRING)
    table = _read(path, "|", {"item_id": _INT, **texts, **dict.fromkeys(flags, _INT)})
    flagged = np.stack([table[name].to_numpy() == 1 for name in flags], axis=1)  # [items, genres]
    offsets = np.concatenate([[0], np.cumsum(flagged.sum(axis=1))])
    names = pa.array(GENRES).take(pa.array(np.nonzero(flagged)[1]))
    genres = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names)
    return _items(table, genres, _title_year(table["title"]), path)


def _items_atomic(path: Path) -> pa.Table:
    columns = {"item_id": _INT, "title": _STRING, "year": _STRING, "genres": _STRING}
    table = _read(path, "\t", columns, header="item_id:token")
    known = pc.match_substring_regex(table["year"], r"^\d{4}$")  # some say V or unknown
    year = pc.coalesce(pc.if_else(known, table["year"], pa.scalar(None, _STRING)), _title_year(table["title"]))
    return _items(table, pc.split_pattern(table["genres"], " "), year, path)


def _users(raw: pa.Table, occupation: Ints, path: Path) -> pa.Table:
    """One row a user: id and user features."""
    return pa.table(
        {
            "user_id": raw["user_id"],
            "gender": _indices(raw["gender"], ("F", "M"), path),
            "age": np.searchsorted(_AGES, raw["age"].to_numpy(), side="right"),
            "occupation": occupation,
            "zip": raw["zip"],
        }
    )


def _items(raw: pa.Table, genres: pa.ListArray | pa.ChunkedArray, year: pa.ChunkedArray, path: Path) -> pa.Table:
    """One row an item: id and item features."""
    names = genres.combine_chunks() if isinstance(genres, pa.ChunkedArray) else genres
    elements = _indices(names.flatten(), GENRES, path)
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(names).to_numpy())])
    if not np.diff(offsets).all():
        raise DataError(f"{path}: an item has no genre, not even 'unknown': the file is not MovieLens's own")
    years = pc.fill_null(pc.cast(year, _INT), 0).to_numpy()
    return pa.table(
        {
            "item_id": raw["item_id"],
            "genres": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(elements)),
            "first_genre": elements[offsets[:-1]],
            "release_year": np.searchsorted(_YEARS, years, side="right"),
        }
    )


def _events(user: Ints, item: Ints, like: Bools, users: pa.Table, items: pa.Table) -> pa.Table:
    """One row a rating: ids, features and label."""
    of_user = users.take(pa.array(_positions(users["user_id"].to_numpy(), user, "user")))
    of_item = items.take(pa.array(_positions(items["item_id"].to_numpy(), item, "item")))
    columns = {name: table[name] for table in (of_user, of_item) for name in table.column_names}
    return pa.table({**columns, "like": like.astype(np.int8)})


def _positions(known: Ints, wanted: Ints, what: str) -> Ints:
    """Where each wanted id stands among the known ones."""
    order = np.argsort(known)
    found = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    missing = known[found] != wanted
    if missing.any():
        example = wanted[np.argmax(missing)]
        raise DataError(f"{missing.sum()} ratings are of {what}s without features, such as {example}: mixed releases?")
    return found


def _at(rows: pa.Table, time: Ints) -> pa.Table:
    return rows.add_column(0, "timestamp", pa.array(time))


def _with_histories(table: pa.Table, rated: History, liked: History) -> pa.Table:
    for name, history in (("rated_items", rated), ("liked_items", liked)):
        items, times = history.to_arrow()
        table = table.append_column(name, items).append_column(f"{name}_time", times)
    return table


def _indices(names: pa.Array | pa.ChunkedArray, known: Sequence[str], path: Path) -> Ints:
    """The place of each name among the known ones."""
    indices = pc.index_in(names, pa.array(known))
    if indices.null_count:
        unknown = names.filter(pc.is_null(indices))[0].as_py()
        raise DataError(f"{path}: unknown value {unknown!r}; known are {', '.join(known)}. Is it MovieLens's own file?")
    return indices.to_numpy().astype(np.int64)


def _title_year(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    """The year in `Toy Story (1995)` as a string; null where there is none."""
    return pc.struct_field(pc.extract_regex(titles, r"\((?P<year>\d{4})\)"), "year")


def _log(path: Path, separator: str, *, header: str = "") -> tuple[Ints, Ints, NDArray[np.float64], Ints]:
    """User, item, rating and time (s) of every line."""
    columns = {"user_id": _INT, "item_id": _INT, "rating": _FLOAT, "time": _FLOAT}
    user, item, rating, seconds = (column.to_numpy() for column in _read(path, separator, columns, header=header))
    return user, item, rating, seconds.astype(np.int64)


def _read(path: Path, separator: str, columns: Mapping[str, pa.DataType], *, header: str = "") -> pa.Table:
    """Read separated lines; `header` is what the first line begins with, if there is one.

    Raises:
        DataError: the file is missing, or does not consist of such lines.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: give the unpacked folder of the data set, with all its files")
    data = path.read_bytes()
    if not data.startswith(header.encode()):
        raise DataError(f"{path} does not begin with {header!r}: it is not the file that belongs here")
    try:
        return pa.csv.read_csv(
            BytesIO(data.replace(separator.encode(), b"\t")),  # GroupLens's `::` is longer than a CSV delimiter may be
            pa.csv.ReadOptions(
                column_names=list(columns), skip_rows=1 if header else 0, encoding="utf8" if header else "latin1"
            ),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            pa.csv.ConvertOptions(column_types=dict(columns), null_values=[], strings_can_be_null=False),
        )
    except pa.ArrowException as error:
        raise DataError(f"{path} is not the file that belongs here: {error}") from None
