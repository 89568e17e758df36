"""Deskdrop: a company's internal feed of articles, most of which live for days, March 2016 to February 2017.

One source is written, `views`, with one folder of events a day (Brazil's, UTC-3):

    views/schema.toml
    views/events/<YYYY-MM-DD>/part-0.parquet    sorted by time

The log tells what was viewed and not what was shown, so the rows that were not viewed are made. A user's first view of
an article is a row with `view` = 1. Beside it, at the same time, stand `NEGATIVES` rows with `view` = 0: articles drawn
evenly from those that others viewed within `HOURS_AROUND` hours of that hour and that this user never viewed, fewer
where there are not as many. So a click-through rate is no figure of this source, and an AUC says how well views are
told from such articles, which are at hand and, drawn evenly, less popular than what is viewed.

`like` exists where `view` is 1: whether the user liked the article in the same session. Features are of strictly
earlier events: first views, and likes by their own time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.errors import DataError
from recsys.data.files import replacing_folder, write_part
from recsys.data.history import PastEvents
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import DAY_MS, HOUR_MS

FOLDER = "views"
BRAZIL_MS = -3 * HOUR_MS
NEGATIVES = 4
"""Articles not viewed, beside each that was."""
HOURS_AROUND = 3
"""Others viewed them at most this many hours earlier or later, by whole hours."""
LONGEST = 50
"""Elements kept of every history list."""
RECENT_HOURS = (3, 24, 48)
"""Windows of the counts of an article's newest views."""

_COLUMNS = ("timestamp", "eventType", "contentId", "personId", "sessionId", "userCountry")
_SEED = 0
_ROWS_PER_ID = 2  # of the tables that users and articles read by their own id
_ROWS_PER_LISTED = 16  # of that of the histories, into which ids are hashed: so many that few share one

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Views:
    """N first views of an article by a user, in time order. Users and articles are numbers from 0."""

    user: Ints
    article: Ints
    time: Ints  # ms
    country: pa.Array  # null where it is unknown
    liked: NDArray[np.bool_]

    def take(self, rows: Ints, article: Ints, viewed: NDArray[np.bool_]) -> _Views:
        """The same users at the same times with other articles; only what was viewed was liked."""
        liked = self.liked[rows] & viewed
        return _Views(self.user[rows], article, self.time[rows], self.country.take(pa.array(rows)), liked)


@dataclass(frozen=True)
class _Feedback:
    """N events of one kind, in time order."""

    rows: Ints  # of the raw log
    user: Ints
    article: Ints
    time: Ints  # ms


class _Past:
    """What was known before a time."""

    def __init__(self, views: _Views, likes: _Feedback, articles: Ints) -> None:
        self.read = PastEvents(views.user, views.time, articles[views.article])
        self.liked = PastEvents(likes.user, likes.time, articles[likes.article])
        self.readers = PastEvents(views.article, views.time, views.user)
        self.likers = PastEvents(likes.article, likes.time, likes.user)
        self.article_ids = articles
        self.first_view = np.full(len(articles), np.iinfo(np.int64).max)  # ms
        np.minimum.at(self.first_view, views.article, views.time)


def prepare_deskdrop(source: Path, out: Path) -> None:
    """Write `out/views` from `source/events.parquet`, replacing one that is there only when all is written.

    The file has one row an interaction: `timestamp` (seconds), `eventType` (VIEW and LIKE are used), `contentId`,
    `personId`, `sessionId` (int64) and `userCountry` (empty where unknown).

    Raises:
        DataError: the file is missing, cannot be read, lacks a column, has times that are no seconds, or no view.
    """
    log = _read(source / "events.parquet")
    users, user = np.unique(log["personId"].to_numpy(), return_inverse=True)
    articles, article = np.unique(log["contentId"].to_numpy(), return_inverse=True)
    views, likes = _first_views(log, user, article), _first(log, "LIKE", user, article)
    negatives = _not_viewed(views, np.random.default_rng(_SEED))
    rows = np.concatenate([np.arange(len(views.user)), negatives[0]])
    viewed = np.arange(len(rows)) < len(views.user)
    shown = views.take(rows, np.concatenate([views.article, negatives[1]]), viewed)
    # Rows of one view stand in the order of their articles, which says nothing of what was viewed.
    order = np.lexsort((shown.article, shown.user, shown.time))
    table = _events(_Past(views, likes, articles), shown, viewed, users).take(pa.array(order))
    day = (shown.time[order] + BRAZIL_MS) // DAY_MS
    with replacing_folder(Path(out) / FOLDER) as folder:
        _schema(len(users), len(articles)).save(folder / "schema.toml")
        for number in np.unique(day):
            begin, end = np.searchsorted(day, [number, number + 1])
            write_part(table.slice(begin, end - begin), folder / "events" / str(np.datetime64(int(number), "D")))


def _first(log: pa.Table, kind: str, user: Ints, article: Ints) -> _Feedback:
    """Each user's first event of a kind on each article, in time order."""
    rows = np.flatnonzero(log["eventType"].to_numpy() == kind)
    rows = rows[np.argsort(log["timestamp"].to_numpy()[rows], kind="stable")]
    pair = user[rows] * (article.max(initial=0) + 1) + article[rows]
    rows = rows[np.sort(np.unique(pair, return_index=True)[1])]
    return _Feedback(rows, user[rows], article[rows], log["timestamp"].to_numpy()[rows] * 1000)


def _first_views(log: pa.Table, user: Ints, article: Ints) -> _Views:
    """A user's first view of each article, and whether a like of the same session followed it."""
    first = _first(log, "VIEW", user, article)
    if not len(first.rows):
        raise DataError("Deskdrop's events hold no row of eventType VIEW: is it events.parquet of the whole log?")
    time, session = log["timestamp"].to_numpy() * 1000, log["sessionId"].to_numpy()
    session = np.unique(session, return_inverse=True)[1]
    visit = (user * (article.max() + 1) + article) * (session.max() + 1) + session
    likes = PastEvents(visit, time, time, log["eventType"].to_numpy() == "LIKE")
    ever = likes.count_before(visit[first.rows], np.full(len(first.rows), time.max() + 1))
    liked = ever > likes.count_before(visit[first.rows], first.time)
    country = log["userCountry"].combine_chunks().cast(pa.string()).take(pa.array(first.rows))
    return _Views(first.user, first.article, first.time, pc.if_else(pc.not_equal(country, ""), country, None), liked)


def _not_viewed(views: _Views, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Rows of `views`, and an article for each that its user never viewed though others did in those hours."""
    viewed = np.zeros((views.user.max() + 1, views.article.max() + 1), np.bool_)
    viewed[views.user, views.article] = True
    hour = views.time // HOUR_MS
    rows, articles = [], []
    for now in np.unique(hour):
        begin, end = np.searchsorted(hour, [now, now + 1])
        around = slice(*np.searchsorted(hour, [now - HOURS_AROUND, now + HOURS_AROUND + 1]))
        pool = np.unique(views.article[around])
        draw = rng.random((end - begin, len(pool)))
        draw[viewed[views.user[begin:end, None], pool]] = np.inf
        chosen = np.argsort(draw, axis=1)[:, :NEGATIVES]
        row, column = np.nonzero(np.isfinite(np.take_along_axis(draw, chosen, axis=1)))
        rows.append(begin + row)
        articles.append(pool[chosen[row, column]])
    return np.concatenate(rows), np.concatenate(articles)


def _events(past: _Past, shown: _Views, viewed: NDArray[np.bool_], users: Ints) -> pa.Table:
    """One row a view or an article not viewed, with what was known before it."""
    user, article, time = shown.user, shown.article, shown.time
    count = past.readers.count_before(article, time)
    recent = {hours: count - past.readers.count_before(article, time - hours * HOUR_MS) for hours in RECENT_HOURS}
    counts = {
        "user_views": past.read.count_before(user, time),
        "user_likes": past.liked.count_before(user, time),
        "article_views": count,
        "article_likes": past.likers.count_before(article, time),
        **{f"article_views_{hours}h": views for hours, views in recent.items()},
        "article_age_hours": np.maximum(time - past.first_view[article], 0) / HOUR_MS,  # 0 until its first view
    }
    lists, times = past.read.before(user, time, LONGEST).to_arrow()
    local = time + BRAZIL_MS
    return pa.table(
        {
            "timestamp": time,
            "user_id": users[user],
            "item_id": past.article_ids[article],
            "viewed_articles": lists,
            "viewed_articles_time": times,
            "liked_articles": past.liked.before(user, time, LONGEST).to_arrow()[0],
            **{name: column.astype(np.float32) for name, column in counts.items()},
            "country": shown.country,
            "hour": (local // HOUR_MS % 24).astype(np.int32),
            "weekday": (local // DAY_MS % 7).astype(np.int32),
            "view": viewed.astype(np.int8),
            "like": shown.liked.astype(np.int8),
        }
    )


def _schema(users: int, articles: int) -> Schema:
    rows = _ROWS_PER_LISTED * articles
    listed: dict[str, Any] = {"owner": "user", "rows": rows, "table": "history_article", "max_length": LONGEST}
    return Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id", rows=_ROWS_PER_ID * users),
            Feature(name="viewed_articles", kind="sequence", time="viewed_articles_time", **listed),
            Feature(name="liked_articles", kind="ids", **listed),
            Feature(name="user_views", owner="user", kind="dense"),
            Feature(name="user_likes", owner="user", kind="dense"),
            Feature(name="item_id", owner="item", kind="id", rows=_ROWS_PER_ID * articles),
            Feature(name="article_views", owner="item", kind="dense"),
            Feature(name="article_likes", owner="item", kind="dense"),
            *(Feature(name=f"article_views_{hours}h", owner="item", kind="dense") for hours in RECENT_HOURS),
            Feature(name="article_age_hours", owner="item", kind="dense"),
            Feature(name="country", owner="context", kind="id", rows=1024),
            Feature(name="hour", owner="context", kind="id", rows=24),
            Feature(name="weekday", owner="context", kind="id", rows=7),
        ),
        labels=(Label(name="view"), Label(name="like", valid="view")),
    )


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Deskdrop needs events.parquet: point --source at its folder")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error} Download it anew") from None
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: is it Deskdrop's own file?")
    table = table.select(_COLUMNS)
    table = table.set_column(1, "eventType", table["eventType"].cast(pa.string()))
    latest = pc.max(table["timestamp"]).as_py() or 0
    if not 1e9 <= latest < 1e10:
        raise DataError(f"{path}: the latest timestamp is {latest}; Deskdrop's are seconds since 1970, some 1.48e9")
    return table
