"""The leave-one-out protocol: metrics against a plain reference, what is held out, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ncf_split
from benchmarks.ncf import NEGATIVES, Found, Split, interval, leave_last_out, read_split, repeated, write_split
from recsys.data.errors import DataError

ITEMS = 150


def log(users: int = 5, each: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items (no pair twice) and times, shuffled; later rows of a user have later times."""
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.choice(ITEMS, each, replace=False) for _ in range(users)])
    user, time = np.repeat(np.arange(users), each), np.tile(np.arange(1, each + 1), users)
    order = rng.permutation(len(user))
    return user[order], items[order], time[order]


def split_of(scores: list[list[float]], negatives: list[list[int]], held_out: list[int]) -> tuple[Split, np.ndarray]:
    one = np.zeros(1, np.int64)
    tested = np.arange(len(scores))
    return Split(one, one, one, tested, np.array(held_out), np.array(negatives), 100), np.array(scores)


def plain_place(own: float, others: list[float]) -> int:
    """Sorted best first, with the held-out item behind all that score as it does."""
    ranked = sorted([(-score, 0) for score in others] + [(-own, 1)])
    return ranked.index((-own, 1))


@given(st.lists(st.lists(st.integers(0, 4), min_size=13, max_size=13), min_size=1, max_size=6))
def test_places_are_those_of_a_sorted_list_the_held_out_item_last_of_its_equals(scores: list[list[float]]) -> None:
    split, array = split_of(scores, [list(range(1, 13))] * len(scores), [0] * len(scores))
    found = Found.of(split, array)
    places = [plain_place(row[0], row[1:]) for row in scores]
    assert found.places.tolist() == places
    assert found.hits(10).mean() == pytest.approx(np.mean([place < 10 for place in places]))
    gains = [math.log(2) / math.log(place + 2) if place < 10 else 0 for place in places]
    assert found.gains(10).mean() == pytest.approx(np.mean(gains))


def test_equal_scores_find_nothing() -> None:
    split, array = split_of([[1.0] * 100], [list(range(1, 100))], [0])
    assert Found.of(split, array).places.tolist() == [99]


def test_a_held_out_item_among_its_negatives_is_not_above_itself() -> None:
    split, array = split_of([[1.0, 1.0, 2.0]], [[7, 8]], [7])
    assert Found.of(split, array).places.tolist() == [1]


def test_nan_has_no_place() -> None:
    split, array = split_of([[1.0, math.nan]], [[1]], [0])
    with pytest.raises(ValueError, match="NaN"):
        Found.of(split, array)


def test_the_interval_is_the_normal_one() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    mean, low, high = interval(values)
    assert mean == pytest.approx(0.6)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(1.96 * np.std(values, ddof=1) / math.sqrt(5))


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 3))
def test_the_latest_row_of_each_user_is_held_out_and_its_negatives_are_unseen(users: int, each: int, seed: int) -> None:
    user, item, time = log(users, each, seed)
    split, rows = leave_last_out(user, item, time, ITEMS, seed=seed)
    assert split.tested.tolist() == list(range(users)) == user[rows].tolist()
    assert (time[rows] == each).all()
    assert (item[rows] == split.held_out).all()
    assert len(split.users) == users * (each - 1)
    assert (split.times < each).all()
    for number, negatives in enumerate(split.negatives.tolist()):
        assert len(set(negatives)) == NEGATIVES
        assert not set(negatives) & set(item[user == number].tolist())


def test_rows_without_a_time_are_earlier_and_those_of_one_time_are_drawn() -> None:
    user, item = np.zeros(4, np.int64), np.arange(4)
    split, _ = leave_last_out(user, item, np.array([0, 3, 0, 1]), ITEMS, seed=0)
    assert split.held_out.tolist() == [1]
    held = {int(leave_last_out(user, item, np.array([1, 2, 2, 2]), ITEMS, seed=s)[0].held_out[0]) for s in range(40)}
    assert held == {1, 2, 3}


def test_a_pair_that_came_more_than_once_leaves_with_its_last_row() -> None:
    user, item, time = np.zeros(4, np.int64), np.array([5, 6, 5, 5]), np.array([1, 2, 3, 4])
    split, _ = leave_last_out(user, item, time, ITEMS, seed=0)
    assert (split.held_out.tolist(), split.items.tolist()) == ([5], [6])


def test_nobody_to_test_is_an_error() -> None:
    with pytest.raises(DataError, match="no user has two rows and 99"):
        leave_last_out(np.arange(3), np.arange(3), np.ones(3, np.int64), ITEMS, seed=0)
    with pytest.raises(DataError, match="of the 50 items left"):
        leave_last_out(np.zeros(3, np.int64), np.arange(3), np.ones(3, np.int64), 50, seed=0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    split, rows = leave_last_out(*log(), ITEMS, seed=1)
    write_split(split, log()[2][rows], tmp_path, "ml")
    read = read_split(tmp_path)
    for name in ("users", "items", "times", "tested", "held_out", "negatives"):
        assert (getattr(read, name) == getattr(split, name)).all(), name
    assert repeated(read) == 0


def written(folder: Path) -> dict[str, list[str]]:
    split, rows = leave_last_out(*log(), ITEMS, seed=1)
    write_split(split, np.ones(len(rows), np.int64), folder)
    return {path.name: path.read_text().splitlines() for path in folder.iterdir()}


def change(folder: Path, name: str, line: int, text: str) -> None:
    lines = (folder / name).read_text().splitlines()
    lines[line] = text
    (folder / name).write_text("\n".join(lines) + "\n")


TRAIN, TEST, NEGATIVE = "log.train.rating", "log.test.rating", "log.test.negative"


@pytest.mark.parametrize("name", [TRAIN, TEST, NEGATIVE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name.removeprefix("log").replace(".", r"\.")):
        read_split(tmp_path)


def test_lines_that_break_the_protocol_are_named(tmp_path: Path) -> None:
    files = written(tmp_path)
    user, item = files[TEST][1].split("\t")[:2]
    seen = next(line.split("\t")[1] for line in files[TRAIN] if line.startswith(f"{user}\t"))
    head, *negatives = files[NEGATIVE][1].split("\t")
    cases = [
        (TRAIN, 0, "-3\t1\t1\t1", "line 1: user is -3"),
        (TRAIN, 0, "a\t1\t1\t1", "user, item, rating and seconds"),
        (TRAIN, 0, f"{user}\t{item}\t1\t1", "line 2: its pair is a training row"),
        (NEGATIVE, 1, "\t".join([head, *negatives[1:]]), "line 2: it has 98 negatives, the first line 99"),
        (NEGATIVE, 1, "\t".join([head, seen, *negatives[1:]]), "line 2: a negative is a training row"),
        (NEGATIVE, 1, "\t".join([head, negatives[1], *negatives[1:]]), "line 2: a negative is there twice"),
        (NEGATIVE, 1, "\t".join(["(9,9)", *negatives]), "of two splits"),
        (NEGATIVE, 1, "\t".join(["9", *negatives]), "line 2: it begins '9"),
        (NEGATIVE, 1, "\t".join([head, "-1", *negatives[1:]]), "line 2: a negative is -1"),
    ]
    for name, line, text, told in cases:
        change(tmp_path, name, line, text)
        with pytest.raises(DataError, match=told.replace("(", r"\(")):
            read_split(tmp_path)
        change(tmp_path, name, line, files[name][line])
    assert len(read_split(tmp_path).tested) == 5


def test_negatives_that_all_hold_their_own_item_are_refused_some_are_counted_less(tmp_path: Path) -> None:
    files = written(tmp_path)
    for line, text in enumerate(files[NEGATIVE]):
        head, _, *rest = text.split("\t")
        change(tmp_path, NEGATIVE, line, "\t".join([head, head[1:-1].split(",")[1], *rest]))
        if line == 0:
            assert (~read_split(tmp_path).counted).sum(axis=1).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="every line lists the held-out item"):
        read_split(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_any_log_becomes_a_split(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    user, item, time = log(users=60)
    again = np.append(item, item[0]), np.append(user, user[0]), np.append(time, 0)  # an earlier row of the first pair
    table = pa.table({"who": [f"u{n}" for n in again[1]], "what": again[0] + 1000, "when": again[2] + 1_500_000_000})
    path = tmp_path / f"log.{kind}"
    pq.write_table(table, path) if kind == "parquet" else pyarrow.csv.write_csv(table, path)
    out = tmp_path / "split"
    ncf_split.main(ncf_split.Options(log=(path,), out=out, user="who", item="what", time="when", seed=3))
    split = read_split(out)
    assert "1 of them pairs that came again" in capsys.readouterr().out
    names = {kind: dict(map(str.split, (out / f"{kind}.tsv").read_text().splitlines())) for kind in ("users", "items")}
    held = {
        names["users"][str(u)]: int(names["items"][str(i)]) for u, i in zip(split.tested, split.held_out, strict=True)
    }
    assert held == {f"u{n}": int(item[(user == n) & (time == 6)][0]) + 1000 for n in range(60)}


def test_a_log_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": [1, None], "item_id": [1.5, 2.0], "timestamp": ["x", "y"]}), path)
    for names, told in (
        (("nobody", "item_id", "timestamp"), "no column 'nobody'"),
        (("user_id", "item_id", "timestamp"), "'user_id' is null in 1 rows"),
        (("timestamp", "item_id", "timestamp"), "'item_id' has type double"),
        (("timestamp", "timestamp", "timestamp"), "'timestamp' has type string; times"),
    ):
        with pytest.raises(DataError, match=told):
            ncf_split.read_log(path, *names)
