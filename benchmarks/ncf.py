"""Leave-one-out with sampled negatives, the protocol of neural collaborative filtering (He et al., arXiv 1708.05031).

A split is a folder in the authors' own format, tab-separated, users and items counted from 0: `*.train.rating` (user,
item, rating, seconds), `*.test.rating` (the same, each user's one held-out item) and `*.test.negative` (`(user,item)`,
then items that the user never chose). A model ranks the held-out item among the user's negatives. What scores level
with it counts as above it, so that a model gains nothing by scores that are all the same.

Times of 0 are not known, and ratings are not read: every row is a choice. Nothing of the test is read but whose and
which it is, neither its rating nor its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from recsys.atomic import write_text
from recsys.data.errors import DataError

NEGATIVES = 99
"""Of the protocol."""
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Choices to learn from, and one held-out choice of each of T users to be found among K negatives."""

    users: Ints
    """[M] of the training rows."""
    items: Ints
    """[M], in [0, item_count)."""
    times: Ints
    """[M], seconds; 0: not known."""
    tested: Ints
    """[T] users, each once."""
    held_out: Ints
    """[T] items."""
    negatives: Ints
    """[T, K] items."""
    item_count: int
    """Items of the log; a model may meet some in the test alone."""

    @property
    def user_count(self) -> int:
        """One more than the largest user."""
        return int(max(self.users.max(), self.tested.max())) + 1

    @property
    def counted(self) -> NDArray[np.bool_]:
        """[T, K] negatives that are one: the authors drew theirs from all that is not in training, so that of 2.6 % of
        MovieLens's users the held-out item is among them. It cannot be above itself, and they have one negative less.
        """
        return self.negatives != self.held_out[:, None]

    @property
    def candidates(self) -> Ints:
        """[T, 1 + K] items, the held-out one first."""
        return np.column_stack([self.held_out, self.negatives])

    def pairs(self, users: Ints, items: Ints) -> Ints:
        """One number a pair of these shapes."""
        return users * self.item_count + items


def read_split(folder: Path) -> Split:
    """Read and check a split.

    Raises:
        DataError: a file is missing or there are several, a line is something else, an id is negative, a user is
            tested twice or without a training row, a held-out item is among the user's training rows, or in all lines
            among the negatives, a negative is a training row of its user or there twice, or lines have different
            numbers of negatives; the message names file and line.
    """
    train, test, negative = (_only(Path(folder), end) for end in ("train.rating", "test.rating", "test.negative"))
    users, items, times = _ratings(train)
    tested, held_out, _ = _ratings(test)
    listed, negatives = _negatives(negative)
    if len(tested) != len(listed) or (np.column_stack([tested, held_out]) != listed).any():
        raise DataError(f"{negative} does not list the pairs of {test.name} in its order: they are of two splits")
    count = 1 + int(max(x.max() for x in (items, held_out, negatives)))
    split = Split(users, items, times, tested, held_out, negatives, count)
    _check(split, test, negative)
    return split


def repeated(split: Split) -> int:
    """Training rows that are there already."""
    return len(split.users) - len(np.unique(split.pairs(split.users, split.items)))


def write_split(split: Split, times: Ints, folder: Path, name: str = "log") -> None:
    """Write a split in the authors' format; every rating is 1.

    Args:
        split: what to write.
        times: int64 [T], of the held-out items.
        folder: where; made if it is not there.
        name: what the files' names begin with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "train.rating": (split.users, split.items, np.ones_like(split.users), split.times),
        "test.rating": (split.tested, split.held_out, np.ones_like(split.tested), times),
    }
    for end, each in columns.items():
        write_text(folder / f"{name}.{end}", _lines(np.column_stack(each).tolist()))
    heads = (f"({user},{item})" for user, item in zip(split.tested, split.held_out, strict=True))
    lines = [[head, *row] for head, row in zip(heads, split.negatives.tolist(), strict=True)]
    write_text(folder / f"{name}.test.negative", _lines(lines))


def leave_last_out(users: Ints, items: Ints, times: Ints, item_count: int, *, seed: int) -> tuple[Split, Ints]:
    """Hold out each user's latest row, and draw negatives that the user has in no row, each once.

    Of rows of one time a drawn one is the latest; rows without a time are earlier than all that have one. Of users with
    a single row, and of those who have left too few items alone, nothing is held out.

    Args:
        users: int64 [M].
        items: int64 [M], in [0, item_count).
        times: int64 [M], 0 where not known.
        item_count: items that are drawn from.
        seed: of what is drawn.

    Returns:
        the split, and which row was held out of each tested user, int64 [T].

    Raises:
        DataError: nobody can be tested.
    """
    rng = np.random.default_rng(seed)
    order = in_order(users, times, rng)
    last = order[np.append(users[order][1:] != users[order][:-1], True)]
    distinct = np.unique(np.column_stack([users, items]), axis=0)
    chosen = np.split(distinct[:, 1], np.flatnonzero(np.diff(distinct[:, 0])) + 1)  # user by user, as `last`
    rows = np.unique(users, return_counts=True)[1]
    tested = [n for n in range(len(last)) if rows[n] > 1 and item_count - len(chosen[n]) >= NEGATIVES]
    if not tested:
        raise DataError(
            f"no user has two rows and {NEGATIVES} of the {item_count} items left: give a log of more users or items"
        )
    drawn = np.stack([_unseen(chosen[n], item_count, rng) for n in tested])
    last = last[tested]
    # A pair that came more than once must leave with its last row.
    left = ~np.isin(users * item_count + items, users[last] * item_count + items[last])
    split = Split(users[left], items[left], times[left], users[last], items[last], drawn, item_count)
    kept = np.isin(split.tested, split.users)
    return replace(
        split, tested=split.tested[kept], held_out=split.held_out[kept], negatives=split.negatives[kept]
    ), last[kept]


def in_order(users: Ints, times: Ints, rng: np.random.Generator) -> Ints:
    """Rows user by user in the order of their times, those of one time in an order that is drawn: int64 [M]."""
    return np.lexsort((rng.permutation(len(users)), times, users))


class Found(NamedTuple):
    """Where the held-out items of T users came."""

    places: Ints  # [T], 0 is the first

    @staticmethod
    def of(split: Split, scores: NDArray) -> Found:
        """From scores of the split's candidates, [T, 1 + K]. Raises ValueError if one is NaN."""
        if np.isnan(scores).any():
            raise ValueError("a score is NaN, which has no place: lower the learning rates")
        return Found(((scores[:, 1:] >= scores[:, :1]) & split.counted).sum(axis=1))

    def hits(self, k: int = 10) -> NDArray[np.float64]:
        """1 for each user whose item is among the first k: its mean is HR@k."""
        return (self.places < k).astype(np.float64)

    def gains(self, k: int = 10) -> NDArray[np.float64]:
        """1 / log2(2 + place) for each of these users, 0 for the others: its mean is NDCG@k, of one relevant item."""
        return np.where(self.places < k, 1 / np.log2(self.places + 2.0), 0.0)


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The mean over users and its 95 % interval, normal."""
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return mean, mean - half, mean + half


def _unseen(chosen: Ints, item_count: int, rng: np.random.Generator) -> Ints:
    """Items that are not among these, each as likely as any other and once."""
    return rng.choice(np.setdiff1d(np.arange(item_count), chosen), NEGATIVES, replace=False)


def _only(folder: Path, end: str) -> Path:
    found = sorted(folder.glob(f"*.{end}"))
    if len(found) != 1:
        many = f"{len(found)} files" if found else "no file"
        raise DataError(f"{folder} holds {many} *.{end}: give a folder with one split in NCF's format")
    return found[0]


def _ratings(path: Path) -> tuple[Ints, Ints, Ints]:
    """User, item and time of every line."""
    names = ("user", "item", "rating", "time")
    types = {"user": pa.int64(), "item": pa.int64(), "rating": pa.float64(), "time": pa.float64()}
    try:
        table = pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(column_names=names),
            pa.csv.ParseOptions(delimiter="\t"),
            pa.csv.ConvertOptions(column_types=types, null_values=[]),
        )
    except pa.ArrowException as error:
        raise DataError(f"{path} is not lines of user, item, rating and seconds, tab-separated: {error}") from None
    user, item, time = (table[name].to_numpy() for name in ("user", "item", "time"))
    for name, ids in (("user", user), ("item", item)):
        if (wrong := np.flatnonzero(ids < 0)).size:
            raise DataError(f"{path}, line {wrong[0] + 1}: {name} is {ids[wrong[0]]}; ids are counted from 0")
    return user, item, time.astype(np.int64)


def _negatives(path: Path) -> tuple[Ints, Ints]:
    """The pair at the head of every line, int64 [T, 2], and its negatives, int64 [T, K]."""
    pairs, negatives = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        head, *rest = line.split("\t")
        try:
            user, item = head.removeprefix("(").removesuffix(")").split(",")
            pairs.append((int(user), int(item)))
            negatives.append([int(each) for each in rest if each])
        except ValueError:
            raise DataError(f"{path}, line {number}: it begins {line[:40]!r}; write (user,item), then items") from None
        if len(negatives[-1]) != len(negatives[0]) or not negatives[0]:
            told = f"{len(negatives[-1])} negatives, the first line {len(negatives[0])}"
            raise DataError(f"{path}, line {number}: it has {told}; give each user as many, 1 or more")
        if min(negatives[-1]) < 0:
            raise DataError(f"{path}, line {number}: a negative is {min(negatives[-1])}; ids are counted from 0")
    if not pairs:
        raise DataError(f"{path} is empty: give the negatives of every tested user")
    return np.array(pairs), np.array(negatives)


def _check(split: Split, test: Path, negative: Path) -> None:
    known = split.pairs(split.users, split.items)
    tested = split.tested[:, None]
    ordered = np.sort(split.negatives, axis=1)
    twice = np.full(len(split.tested), True)
    twice[np.unique(split.tested, return_index=True)[1]] = False
    _refuse(test, twice, "its user is tested on an earlier line: hold out one item a user")
    _refuse(test, ~np.isin(split.tested, split.users), "its user has no training row: leave such users out")
    _refuse(test, np.isin(split.pairs(split.tested, split.held_out), known), "its pair is a training row too")
    if not split.counted.all(axis=1).any():
        raise DataError(f"{negative}: every line lists the held-out item among its negatives: list the others alone")
    seen = np.isin(split.pairs(tested, split.negatives), known)
    _refuse(
        negative, np.any(seen, axis=1), "a negative is a training row of the user: draw from what the user never chose"
    )
    _refuse(negative, (ordered[:, 1:] == ordered[:, :-1]).any(axis=1), "a negative is there twice: draw each once")


def _refuse(path: Path, wrong: NDArray[np.bool_], problem: str) -> None:
    if wrong.any():
        raise DataError(f"{path}, line {int(np.argmax(wrong)) + 1}: {problem} ({int(wrong.sum())} such lines)")


def _lines(rows: list[list[int]] | list[list[object]]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)
