"""KuaiRand-Pure: impressions of a short-video app, and what its users did before the first of them.

Two sources are written. `history` is everything before 25 April 2022 (China time) and is what the upstream models learn
from; `impressions` is 25 April to 8 May and is what the rankers train, tune and are tested on. No row of the second is
seen by a model trained on the first, unless `recsys daily` lets it go on with them, day by day.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.errors import DataError
from recsys.data.files import replacing_folder, write_part
from recsys.data.history import PastEvents
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import DAY_MS, HOUR_MS

CUT_MS = 1_650_816_000_000
"""25 April 2022, 00:00 in China: history ends, impressions begin."""
CHINA_MS = 8 * HOUR_MS
WITH_HISTORIES = "with-histories.toml"
"""A second schema of the impressions, whose rankers read what upstreams learn from: the users' histories."""
LONGEST = 50
"""Elements kept of every history list, as in the published extract."""

USER_CODES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
ITEM_CODES = ("author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type")
COUNTS = ("past_watched", "past_long_watched", "past_liked", "past_long_share", "past_like_share")
FEEDBACK = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
RAW_LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
EVENT_COLUMNS = (
    "user_id",
    "video_id",
    "time_ms",
    "tab",
    "is_click",
    "long_view",
    *FEEDBACK,
    "play_time_ms",
    "duration_ms",
)
HISTORY_COLUMNS = ("user_id", "history_len", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")


def prepare_kuairand(source: Path, out: Path) -> None:
    """Turn KuaiRand-Pure into `out/history` and `out/impressions`: Parquet events, entity rows and schemas.

    Reads either the extract (`events.parquet`, `history.parquet`) or the publisher's own logs
    (`log_standard_*_pure.csv`), beside `user_features_pure.csv` and `video_features_basic_pure.csv`. The publisher's
    item *statistics* file is never read: its counts cover the log's own period.

    In `history` one row is one watched video with the labels `long_view` and `is_like`. The extract gives the order of
    a user's history but no times, so the last row of a user gets the user's last time and each one before it a
    millisecond less: the order within a user is real, the times are not. `users` and `items` hold one row an entity as
    of 25 April.

    Raises:
        DataError: a file is missing (both forms are named), cannot be read, or lacks a column.
    """
    events, watched = _read_extract(source) if (source / "events.parquet").exists() else _read_logs(source)
    users = _user_table(_read(source, "user_features_pure.csv", ("user_id", *USER_CODES, *USER_NUMBERS)))
    items = _item_table(
        _read(source, "video_features_basic_pure.csv", ("video_id", *ITEM_CODES, "tag", "video_duration"))
    )
    with replacing_folder(out / "history") as history, replacing_folder(out / "impressions") as impressions:
        _write_history(history, watched, users, items)
        _write_impressions(impressions, events, watched, users, items)


@dataclass(frozen=True)
class Watched:
    """Everything known before the cut: N watched videos, one user's in order, users one after the other."""

    user: NDArray[np.int64]  # [N]
    item: NDArray[np.int64]  # [N]
    time: NDArray[np.int64]  # [N], not decreasing within a user
    long_view: NDArray[np.bool_]  # [N]
    liked: NDArray[np.bool_]  # [N]
    unseen: NDArray[np.int64]  # [N], watches of the row's user that happened before those listed


def _read_extract(source: Path) -> tuple[pa.Table, Watched]:
    events = _read(source, "events.parquet", EVENT_COLUMNS)
    history = _read(source, "history.parquet", HISTORY_COLUMNS).combine_chunks()
    watches = _lists(history, "watch_seq")
    lengths = np.diff(watches.offsets)
    from_end = np.repeat(watches.offsets[1:], lengths) - 1 - np.arange(len(watches.values))
    return events.filter(pc.greater_equal(events["time_ms"], CUT_MS)), Watched(
        user=np.repeat(history["user_id"].to_numpy(), lengths),
        item=watches.values,
        time=np.repeat(history["last_time_ms"].to_numpy(), lengths) - from_end,
        long_view=_listed(watches, _lists(history, "long_watch_seq")),
        liked=_listed(watches, _lists(history, "like_seq")),
        unseen=np.repeat(history["history_len"].to_numpy() - lengths, lengths),
    )


class _Lists(NamedTuple):
    """One list a user, the users in the order of the file."""

    offsets: NDArray[np.int64]  # [U + 1]
    values: NDArray[np.int64]  # [offsets[-1]]


def _lists(history: pa.Table, column: str) -> _Lists:
    lengths = pc.fill_null(pc.list_value_length(history[column]), 0).to_numpy()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return _Lists(offsets, pc.list_flatten(history[column]).to_numpy())


def _listed(watches: _Lists, listed: _Lists) -> NDArray[np.bool_]:
    """Which watches, of all users' lists one after the other, are those that a list of feedback names.

    Both lists are in order and end at the same time, the list of feedback goes further back: so they are matched from
    their ends, all users at once. A video watched twice and listed once got that feedback once.
    """
    result = np.zeros(len(watches.values), np.bool_)
    next_listed = listed.offsets[1:] - 1
    for back in range(1, 1 + int(np.diff(watches.offsets).max(initial=0))):
        at = watches.offsets[1:] - back
        users = np.flatnonzero((at >= watches.offsets[:-1]) & (next_listed >= listed.offsets[:-1]))
        users = users[watches.values[at[users]] == listed.values[next_listed[users]]]
        result[at[users]] = True
        next_listed[users] -= 1
    return result


def _read_logs(source: Path) -> tuple[pa.Table, Watched]:
    logs = pa.concat_tables([_read(source, name, EVENT_COLUMNS) for name in RAW_LOGS], promote_options="permissive")
    # The publisher's logs repeat some rows exactly; each counts once.
    logs = logs.group_by(logs.column_names, use_threads=False).aggregate([])
    logs = logs.take(pc.sort_indices(logs, [("user_id", "ascending"), ("time_ms", "ascending")]))
    early = logs.filter(pc.less(logs["time_ms"], CUT_MS))
    user = early["user_id"].to_numpy()
    ends = np.searchsorted(user, user, side="right")
    begins = np.searchsorted(user, user, side="left")
    recent = ends - np.arange(len(user)) <= LONGEST
    watched = Watched(
        user=user[recent],
        item=early["video_id"].to_numpy()[recent],
        time=early["time_ms"].to_numpy()[recent],
        long_view=early["long_view"].to_numpy()[recent] == 1,
        liked=early["is_like"].to_numpy()[recent] == 1,
        unseen=np.maximum(0, ends - begins - LONGEST)[recent],
    )
    late = logs.filter(pc.greater_equal(logs["time_ms"], CUT_MS))
    return late.take(pc.sort_indices(late, [("time_ms", "ascending")])), watched


def _write_history(folder: Path, watched: Watched, users: pa.Table, items: pa.Table) -> None:
    past = _past_columns(watched, watched.user, watched.time, watched.unseen)
    log = pa.table(
        {
            "timestamp": watched.time,
            "user_id": watched.user,
            "item_id": watched.item,
            "long_view": watched.long_view.astype(np.int8),
            "is_like": watched.liked.astype(np.int8),
            **past,
        }
    )
    labels = (Label(name="long_view"), Label(name="is_like"))
    features = (*_user_features(users), *_past_features(len(items)), *_item_features(items))
    Schema(features=features, labels=labels).save(folder / "schema.toml")
    log = log.take(pc.sort_indices(log, [("timestamp", "ascending")]))
    write_part(_join(_join(log, users, "user_id"), items, "item_id"), folder / "events/all")
    everyone = users["user_id"].to_numpy()
    now = np.full(len(everyone), CUT_MS)
    unseen = np.zeros(len(everyone), np.int64)
    known = np.isin(watched.user, everyone)  # users without features have their last row in the log
    unseen[np.searchsorted(everyone, watched.user[known])] = watched.unseen[known]
    rows = pa.table({"timestamp": now, "user_id": everyone, **_past_columns(watched, everyone, now, unseen)})
    write_part(_join(rows, users, "user_id"), folder / "users")
    catalogue = items.append_column("timestamp", pa.array(np.full(len(items), CUT_MS)))
    write_part(catalogue, folder / "items")


def _past_columns(watched: Watched, user: NDArray, time: NDArray, unseen: NDArray) -> dict[str, pa.Array]:
    """What each query user had done strictly before the query time: lists, and the counting features."""
    columns: dict[str, pa.Array] = {}
    counts = {}
    for name, kept in (("watched", None), ("long_watched", watched.long_view), ("liked", watched.liked)):
        past = PastEvents(watched.user, watched.time, watched.item, kept)
        columns[name] = past.before(user, time, LONGEST).to_arrow()[0]
        counts[name] = past.count_before(user, time)
    listed = counts["watched"]
    columns["past_watched"] = pa.array((listed + unseen).astype(np.float32))
    columns["past_long_watched"] = pa.array(counts["long_watched"].astype(np.float32))
    columns["past_liked"] = pa.array(counts["liked"].astype(np.float32))
    # Shares with a prior of 2.5 watches at the usual rate, so that a user with none is a usual user.
    columns["past_long_share"] = pa.array(((counts["long_watched"] + 1.0) / (listed + 2.5)).astype(np.float32))
    columns["past_like_share"] = pa.array(((counts["liked"] + 0.05) / (listed + 2.5)).astype(np.float32))
    return columns


def _past_of_impressions(watched: Watched, events: pa.Table) -> dict[str, pa.Array]:
    """The history's columns for each impression: what its user had done before it, in the history and since."""
    user, time = events["user_id"].to_numpy(), events["time_ms"].to_numpy()
    whole = Watched(
        user=np.concatenate([watched.user, user]),
        item=np.concatenate([watched.item, events["video_id"].to_numpy()]),
        time=np.concatenate([watched.time, time]),
        long_view=np.concatenate([watched.long_view, events["long_view"].to_numpy() == 1]),
        liked=np.concatenate([watched.liked, events["is_like"].to_numpy() == 1]),
        unseen=np.concatenate([watched.unseen, np.zeros(len(user), np.int64)]),
    )
    known, first = np.unique(watched.user, return_index=True)
    at = np.minimum(np.searchsorted(known, user), len(known) - 1)
    unseen = np.where(known[at] == user, watched.unseen[first[at]], 0)
    return _past_columns(whole, user, time, unseen)


def _write_impressions(folder: Path, events: pa.Table, watched: Watched, users: pa.Table, items: pa.Table) -> None:
    time = events["time_ms"].to_numpy()
    local = time + CHINA_MS
    log = pa.table(
        {
            "timestamp": time,
            "user_id": events["user_id"],
            "item_id": events["video_id"],
            "tab": events["tab"].cast(pa.int64()),
            "hour": local // HOUR_MS % 24,
            "weekday": local // DAY_MS % 7,
            "duration_s": (events["duration_ms"].to_numpy() / 1000).astype(np.float32),
            "is_click": events["is_click"],
            "long_view": events["long_view"],
            "long_view_any": events["long_view"],
            **{name: events[name] for name in FEEDBACK},
            "play_time_ms": events["play_time_ms"],
            **_past_of_impressions(watched, events),
        }
    )
    labels = (
        Label(name="is_click"),
        Label(name="long_view", valid="is_click"),
        Label(name="long_view_any"),
        Label(name="is_like", valid="is_click"),
    )
    context = (
        Feature(name="tab", owner="context", kind="id", rows=16),
        Feature(name="hour", owner="context", kind="id", rows=24),
        Feature(name="weekday", owner="context", kind="id", rows=7),
        Feature(name="duration_s", owner="item", kind="dense"),
    )
    outcomes = (*(name for name in FEEDBACK if name != "is_like"), "play_time_ms")
    schema = Schema(
        features=(*_user_features(users), *_item_features(items), *context), labels=labels, outcomes=outcomes
    )
    schema.save(folder / "schema.toml")
    replace(schema, features=(*schema.features, *_past_features(len(items)))).save(folder / WITH_HISTORIES)
    log = _join(_join(log, users, "user_id"), items, "item_id")
    day = np.datetime_as_string((local // DAY_MS).astype("datetime64[D]"))
    tab = log["tab"].to_numpy()
    for date in np.unique(day):
        for name, rows in (("tab=1", tab == 1), ("tab=other", tab != 1)):
            selected = log.filter(pa.array((day == date) & rows))
            if len(selected):
                write_part(selected, folder / f"events/{date}/{name}")


def _user_features(users: pa.Table) -> tuple[Feature, ...]:
    return (
        Feature(name="user_id", owner="user", kind="id", rows=1 + pc.max(users["user_id"]).as_py()),
        *(Feature(name=n, owner="user", kind="id", rows=1 + pc.max(users[n]).as_py()) for n in USER_CODES),
        *(Feature(name=n, owner="user", kind="dense") for n in USER_NUMBERS),
    )


def _past_features(items: int) -> tuple[Feature, ...]:
    return (
        Feature(name="long_watched", owner="user", kind="sequence", rows=items, max_length=20),
        Feature(name="watched", owner="user", kind="ids", rows=items),
        Feature(name="liked", owner="user", kind="ids", rows=items),
        *(Feature(name=name, owner="user", kind="dense") for name in COUNTS),
    )


def _item_features(items: pa.Table) -> tuple[Feature, ...]:
    return (
        Feature(name="item_id", owner="item", kind="id", rows=len(items)),
        *(Feature(name=n, owner="item", kind="id", rows=1 + pc.max(items[n]).as_py()) for n in ITEM_CODES),
        Feature(name="tags", owner="item", kind="ids", rows=1 + pc.max(pc.list_flatten(items["tags"])).as_py()),
        Feature(name="video_duration", owner="item", kind="dense"),
    )


def _user_table(raw: pa.Table) -> pa.Table:
    raw = raw.sort_by("user_id")
    columns = {"user_id": raw["user_id"]}
    columns |= {name: _codes(raw[name]) for name in USER_CODES}
    columns |= {name: raw[name].cast(pa.float32()) for name in USER_NUMBERS}
    return pa.table(columns)


def _item_table(raw: pa.Table) -> pa.Table:
    raw = raw.sort_by("video_id")
    tags = pc.split_pattern(pc.fill_null(raw["tag"].cast(pa.string()), ""), ",").combine_chunks()
    names = pc.list_flatten(tags)
    columns = {"item_id": raw["video_id"]}
    columns |= {name: _codes(raw[name]) for name in ITEM_CODES}
    columns["tags"] = pa.ListArray.from_arrays(tags.offsets, _codes(names))
    columns["video_duration"] = pc.divide(pc.fill_null(raw["video_duration"].cast(pa.float64()), 0.0), 1000.0)
    return pa.table(columns)


def _codes(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Values numbered from 0 in sorted order, nulls last: a dense code keeps its own row of a table."""
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = pc.array_sort_indices(pc.unique(flat))
    rank = pc.take(pc.unique(flat), values)
    return pc.index_in(flat, value_set=rank).cast(pa.int64())


def _join(log: pa.Table, entities: pa.Table, key: str) -> pa.Table:
    """Each log row with its entity's columns (null where the entity is unknown), in the log's order."""
    rows = pc.index_in(log[key].combine_chunks(), value_set=entities[key].combine_chunks())
    for name in entities.column_names:
        if name != key:
            log = log.append_column(name, entities[name].take(rows))
    return log


def _read(source: Path, name: str, columns: tuple[str, ...]) -> pa.Table:
    """A CSV or Parquet file that must have these columns."""
    _require_file(source, name)
    path = source / name
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error} Download it anew") from None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: is it KuaiRand-Pure's own file?")
    return table


def _require_file(source: Path, name: str) -> None:
    if not (source / name).is_file():
        raise DataError(
            f"{source / name}: no such file. KuaiRand-Pure needs user_features_pure.csv, video_features_basic_pure.csv "
            f"and either events.parquet + history.parquet or {' + '.join(RAW_LOGS)}: point --source at their folder"
        )
