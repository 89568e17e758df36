"""benchmarks/knowledge_graph.py: which rows there are, and that no link says what a row is to find out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import knowledge_graph
from benchmarks.folds import FOLDS, without
from benchmarks.knowledge_graph import (
    CLAIMS,
    FACTORS,
    GRAPH,
    PARTS,
    SHUFFLED,
    Options,
    attributes,
    draw,
    factorised,
    graph,
    judged,
    likes,
    popularity,
    prepare,
    publish,
    ranked,
    read_part,
    split,
)
from benchmarks.knowledge_links import RELATIONS, read_graph, shuffled
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.relations import read_links
from recsys.evaluate.metrics import roc_auc
from recsys.train.distributed import process_group

USERS, FILMS, KNOWN, HEADS, K = 300, 60, 50, 55, 2
"""Of FILMS films KNOWN have an entity, and the graph knows HEADS."""


def entity(film: int) -> int:
    return KNOWN - film


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Users who like every other film, and a graph by which films are alike that the same users like."""
    source = tmp_path_factory.mktemp("raw")
    people = [f"{u}::{'FM'[u % 2]}::25::{u % 21}::{u:05}" for u in range(1, USERS + 1)]
    films = [f"{i}::Film {i} (1990)::Drama" for i in range(1, FILMS + 1)]
    for name, lines in (("users.dat", people), ("movies.dat", films)):
        (source / name).write_text("\n".join([*lines, ""]))
    pairs = np.random.default_rng(0).permutation(USERS * FILMS)[: USERS * FILMS // 2]
    user, film = pairs // FILMS + 1, pairs % FILMS + 1
    like = (user + film) % 2
    like[user == 7] = 0
    columns = {"user_id": user, "movie_id": film, "like": like, "split": np.full(len(user), "train")}
    pq.write_table(pa.table(columns), source / "interactions.parquet")
    (source / "item_index2entity_id.txt").write_text("".join(f"{i}\t{entity(i)}\n" for i in range(1, KNOWN + 1)))
    links = [(head, name, 100 + 2 * at + head % 2) for head in range(HEADS) for at, name in enumerate(RELATIONS)]
    (source / "kg.txt").write_text("".join(f"{h}\tfilm.film.{r}\t{t}\n" for h, r, t in [*links, links[0]]))
    return Options(data=source, graph=source, out=tmp_path_factory.mktemp("out"), folds=K, seeds=(0,))


@pytest.fixture(scope="module")
def data(options: Options) -> Path:
    prepare(options, options.out / "data")
    return options.out / "data"


def rated(options: Options) -> dict[tuple[int, int], int]:
    """User and entity -> like, of films that have an entity."""
    rows = pq.read_table(options.data / "interactions.parquet")
    columns = (rows[name].to_pylist() for name in ("user_id", "movie_id", "like"))
    return {(u, entity(i)): like for u, i, like in zip(*columns, strict=True) if i <= KNOWN}


def rows_of(data: Path, part: str) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in read_part(data, part)), strict=True))


def test_rows_are_likes_and_as_many_films_that_were_never_rated(options: Options, data: Path) -> None:
    given, rows = rated(options), [row for part in PARTS for row in rows_of(data, part)]
    assert len({row[:2] for row in rows}) == len(rows), "no pair twice, in no two parts"
    kept = {user for user, _, _ in rows}
    assert len(kept) > USERS - 10
    assert {row[:2] for row in rows if row[2]} == {pair for pair, like in given.items() if like and pair[0] in kept}
    assert not {row[:2] for row in rows if not row[2]} & given.keys()
    assert {row[1] for row in rows} <= set(range(KNOWN))
    for user in kept:
        labels = [label for u, _, label in rows if u == user]
        assert len(labels) - sum(labels) == min(sum(labels), KNOWN - sum(pair[0] == user for pair in given))
    sizes = [len(rows_of(data, part)) / len(rows) for part in PARTS]
    assert sizes == pytest.approx([0.6, 0.2, 0.2], abs=0.001)
    assert 7 not in kept, "has liked nothing"


def test_users_who_rated_nearly_all_get_what_there_is() -> None:
    user, film = np.array([1, 1, 1, 1, 2]), np.array([0, 1, 2, 3, 0])
    users, films, labels = draw(user, film, np.array([True, True, True, False, True]), np.arange(5))
    drawn = sorted(zip(users[labels == 0].tolist(), films[labels == 0].tolist(), strict=True))
    assert len(drawn) == 2
    assert drawn[0] == (1, 4)
    assert drawn[1][1] != 0


def test_users_without_a_positive_training_row_are_left_out() -> None:
    user = np.repeat(np.arange(400), 2)
    parts, left_out = split(user, np.arange(800), np.tile([1, 0], 400))
    taught = {u for u, like in zip(*(parts["train"][x].to_pylist() for x in ("user_id", "like")), strict=True) if like}
    assert {u for part in PARTS for u in parts[part]["user_id"].to_pylist()} == taught
    assert left_out == 2 * (400 - len(taught))
    assert left_out > 200


@pytest.mark.parametrize("folder", [GRAPH, SHUFFLED])
def test_a_graph_has_the_likes_of_other_folds_and_every_attribute(data: Path, folder: str) -> None:
    for number in range(1, K + 1):
        config = graph("x", (likes(), *attributes(folder)), without(number, K))
        _, links = read_links(config.graph.relations, data, config.source.events)
        known = links.relations == 0
        liked = set(zip(links.heads[known].tolist(), links.tails[known].tolist(), strict=True))
        fold = pq.read_table(find_files(data, (f"{FOLDS}/train/fold={number}/*.parquet",)))
        own = set(zip(*(fold[x].to_pylist() for x in ("user_id", "item_id")), strict=True))
        train = {row[:2] for row in rows_of(data, "train") if row[2]}
        assert liked == train - own
        assert liked
        assert links.weights[~known].sum() == HEADS * len(RELATIONS), "one that is there twice counts once"


def test_shuffled_links_have_the_same_ends_but_no_knowledge(options: Options) -> None:
    _, triples = read_graph(options.graph)
    for name, (heads, tails) in shuffled(triples).items():
        assert heads.tolist() == triples[name][0].tolist()
        assert sorted(tails.tolist()) == sorted(triples[name][1].tolist())
        assert 0.2 < np.mean(tails == triples[name][1]) < 0.8, "of two attributes"


def test_every_row_has_its_films_attributes(options: Options, data: Path) -> None:
    _, triples = read_graph(options.graph)
    for part in PARTS:
        rows = pq.read_table(find_files(data, (f"{FOLDS}/{part}/**/*.parquet",)))
        for name in RELATIONS:
            tails = dict(zip(*(ends.tolist() for ends in triples[name]), strict=True))
            assert rows[name].to_pylist() == [[tails[film]] for film in rows["item_id"].to_pylist()]


@pytest.mark.parametrize(
    ("line", "error"),
    [("1\tfilm.film.budget\t2\n", "has the relations .*'budget'"), ("1\tfilm.film.genre\n", "is not RippleNet's")],
)
def test_another_graph_is_refused(options: Options, tmp_path: Path, line: str, error: str) -> None:
    for name in ("kg.txt", "item_index2entity_id.txt"):
        (tmp_path / name).write_text((options.graph / name).read_text())
    with (tmp_path / "kg.txt").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=error):
        read_graph(tmp_path)


@pytest.mark.long
def test_all_arms_are_judged_on_the_test_rows(options: Options, data: Path) -> None:
    """What users like has to do with the films' attributes and with nothing else, popularity least of all."""
    torch.manual_seed(0)
    with process_group() as environment:
        cosines = publish(options, data, environment)
        said = ranked(options, data, environment)
    said.logits.update({FACTORS: [factorised(data, 0)], "popularity": [popularity(data)]})
    assert {space: len(each) for space, each in cosines.items()} == {
        "likes": K - 1,
        "likes_kg": K - 1,
        "likes_shuffled": K - 1,
    }
    assert list(zip(said.users.tolist(), said.labels.tolist(), strict=True)) == [
        (user, label) for user, _, label in rows_of(data, "test")
    ]
    figures = judged(said)
    assert figures["test_rows"] == len(said.labels)
    assert len(said.where(popularity(data) < 15).labels) < len(said.labels)
    for plain, variant in CLAIMS:
        _, low, high = figures[f"{variant}_over_{plain}_percent"]  # type: ignore[misc]
        assert low <= high


def test_the_factorisation_finds_whose_films_are_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def drawn(_: Path, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        user, film = (rng.integers(0, 50, 100_000 if part == "train" else 1000) for _ in range(2))
        return user, film, (user + film) % 2

    kept = {part: drawn(Path(), part) for part in PARTS}
    monkeypatch.setattr(knowledge_graph, "read_part", lambda _, part: kept[part])
    assert roc_auc(kept["test"][2], factorised(Path(), 0)) > 0.99


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="folds is 1; use 2 or more"):
        Options(folds=1)
