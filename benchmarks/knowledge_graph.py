"""MovieLens 1M with a knowledge graph of its films: what the graph is worth to a ranker, by RippleNet's protocol.

    python -m benchmarks.knowledge_graph --data DIR --graph DIR --out runs/knowledge-graph

`--data` holds MovieLens 1M (users.dat, and ratings.dat or interactions.parquet), `--graph` RippleNet's `kg.txt` (head,
relation, tail) and `item_index2entity_id.txt`. Protocol: films that have an entity; positive = rating >= 4, beside each
a film that its user never rated, drawn at random; 6:2:2 of the rows at random; users without a positive training row
are left out; AUC of the test rows. Graphs learn links of the training rows' positives, never of other rows, and of the
films' attributes, of which no label is part.

An arm's rankers are one network of user and item ids with the same rows and seeds, and read beside them

- ids: nothing; with settings of its own (`BARE`), those of the others leave it at popularity;
- kg: film vectors of a graph of the attributes alone;
- likes, likes_kg: user and film vectors of a graph of likes, and of one of likes and attributes, cross-fitted
  (benchmarks/folds.py): a training row reads the graph that has not seen it. They differ in the attributes
  alone;
- likes_shuffled: the same, but the films' attributes are dealt anew at random: what more links do by themselves;
- likes_attributes: what likes does, and the films' attributes as features like any other, lists of ids.

The validation rows choose the passes; the test rows are scored once. Beside them: popularity, and a matrix
factorisation of 16 dimensions. Differences are bootstrapped over users and ranker seeds. Stopped, the same command goes
on with the first training that is not done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.common import print_record
from benchmarks.folds import FOLDS, Arm, Said, publish_folds, rank, ranker_settings, without, write_folds
from benchmarks.knowledge_links import PERSON, RELATIONS, Ints, attributes_of, read_graph, shuffled
from recsys.config import GraphConfig, RankerSettings, RelationConfig, SourceConfig, TrainConfig, UpstreamConfig
from recsys.data.files import find_files, replacing_folder, write_part
from recsys.data.movielens import FOLDER, prepare_movielens_1m
from recsys.data.schema import Feature, Label, Schema
from recsys.evaluate.metrics import roc_auc
from recsys.recipes.tables import pair, relation
from recsys.train.distributed import Environment, process_group

PUBLISHED = {"RippleNet": 0.920, "MKR": 0.917, "MKAFG": 0.945}
GRAPH, SHUFFLED = "graph", "shuffled"
"""Folders of the links of attributes."""
IDS = ("user_id", "item_id")
ARMS = {
    "kg": Arm(features=IDS, series=("item_kg",)),
    "likes": Arm(features=IDS, series=pair("likes")),
    "likes_attributes": Arm(series=pair("likes")),
    "likes_kg": Arm(features=IDS, series=pair("likes_kg")),
    "likes_shuffled": Arm(features=IDS, series=pair("likes_shuffled")),
}
BARE = {"ids": Arm(features=IDS)}
"""The arm without vectors. Two tables of ids that have only one another to learn from need longer steps and patience:
for two or three passes the validation entropy stays at that of popularity, then it falls."""
TAIL = 20
"""Films of fewer positive training rows are judged apart too."""
FACTORS = "factorisation"
CLAIMS = (
    ("likes", "likes_kg"),
    ("likes", "likes_shuffled"),
    ("likes_shuffled", "likes_kg"),
    ("likes", "likes_attributes"),
    ("likes_attributes", "likes_kg"),
    ("ids", "kg"),
    ("ids", "likes_kg"),
    (FACTORS, "likes_kg"),
)
"""Without, with. The first pair differs in the knowledge alone."""
PARTS = ("train", "validation", "test")
_SHARES = (0.6, 0.2)
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    data: Path = Path("../shared/data/ml-1m")
    """MovieLens 1M's files."""
    graph: Path = Path("../shared/data/ml-1m-kg")
    """The knowledge graph's files."""
    out: Path = Path("runs/knowledge-graph")
    """Folder of the run."""
    folds: int = 3
    """K."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the rankers, of each arm; all read the same graphs."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; use 2 or more: a graph learns from the rows of the others")


def main(options: Options) -> None:
    """Train graphs and rankers, and print what the knowledge graph is worth."""
    data = options.out / "data"
    if not (data / FOLDS).is_dir():
        prepare(options, data)
    with process_group() as environment:
        cosines = publish(options, data, environment)
        said = ranked(options, data, environment)
    likes_of_film = popularity(data)
    said.logits["popularity"] = [likes_of_film for _ in options.seeds]
    said.logits[FACTORS] = [factorised(data, seed) for seed in options.seeds]
    for name, auc in PUBLISHED.items():
        print(f"| {name}, published | {auc:.3f} |", flush=True)
    figures: dict[str, object] = {"folds": options.folds, "aligned_cosines": cosines, **judged(said)}
    figures[f"films of fewer than {TAIL} likes"] = judged(said.where(likes_of_film < TAIL))
    print_record("knowledge_graph", figures)


# --- the rows ---------------------------------------------------------------------------------------------------------


def prepare(options: Options, data: Path) -> None:
    """Write `folds`: the rows, users and films as `write_folds` does, and each relation's links below `graph`."""
    prepare_movielens_1m(options.data, data)
    entity_of, triples = read_graph(options.graph)
    rated = pq.read_table(find_files(data / FOLDER, ("events/*/*.parquet",)), columns=["user_id", "item_id", "like"])
    user, film, like = (rated[name].to_numpy() for name in ("user_id", "item_id", "like"))
    known = np.isin(film, np.fromiter(entity_of, np.int64))
    entity = np.array([entity_of[each] for each in film[known].tolist()])
    rows = draw(user[known], entity, like[known] == 1, np.fromiter(entity_of.values(), np.int64))
    parts, left_out = split(*rows)
    users = pq.read_table(find_files(data / FOLDER, ("users/*.parquet",)), columns=["user_id", "occupation"])
    films = attributes_of(sorted(entity_of.values()), triples)
    rows_of = {name: joined(part, films) for name, part in parts.items()}
    with replacing_folder(data / FOLDS) as out:
        schema().save(out / "schema.toml")
        others = {name: rows_of[name] for name in PARTS[1:]}
        write_folds(rows_of["train"], others, {"user": users, "item": films}, out, options.folds, _SEED)
        for folder, links in ((GRAPH, triples), (SHUFFLED, shuffled(triples))):
            for name, (heads, tails) in links.items():
                write_part(pa.table({"item_id": heads, name: tails}), out / folder / name)
    print(
        f"{len(entity_of):,} films have an entity; of {len(known):,} ratings {int((~known).sum()):,} are of others and "
        f"left out; {sum(map(len, parts.values())):,} rows; {left_out} more, of users without a positive training row, "
        f"left out; {sum(len(heads) for heads, _ in triples.values()):,} links of attributes",
        flush=True,
    )


def draw(user: Ints, film: Ints, like: NDArray[np.bool_], films: Ints) -> tuple[Ints, Ints, Ints]:
    """Users, films and labels: each liked film, and for each of these one of `films` that its user never rated, none
    twice; of a user who rated nearly all, as many as there are."""
    rng = np.random.default_rng(_SEED)
    order = np.argsort(user, kind="stable")
    users, starts = np.unique(user[order], return_index=True)
    parts = []
    for each, rows in zip(users, np.split(order, starts[1:]), strict=True):
        liked = film[rows[like[rows]]]
        others = np.setdiff1d(films, film[rows])
        drawn = rng.choice(others, size=min(len(liked), len(others)), replace=False)
        parts += [
            (np.full(len(some), each), some, np.full(len(some), label)) for some, label in ((liked, 1), (drawn, 0))
        ]
    user, film, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    return user, film, label


def split(user: Ints, film: Ints, label: Ints) -> tuple[dict[str, pa.Table], int]:
    """The parts, 6:2:2 of the rows at random, without users who have no positive training row; and how many rows these
    have."""
    order = np.random.default_rng(_SEED).permutation(len(user))
    cuts = np.cumsum([round(share * len(order)) for share in _SHARES])
    rows = dict(zip(PARTS, np.split(order, cuts), strict=True))
    taught = np.unique(user[rows["train"]][label[rows["train"]] == 1])
    kept = {name: each[np.isin(user[each], taught)] for name, each in rows.items()}
    tables = {
        name: pa.table({"user_id": user[each], "item_id": film[each], "like": label[each]})
        for name, each in kept.items()
    }
    return tables, len(user) - sum(map(len, kept.values()))


def joined(rows: pa.Table, films: pa.Table) -> pa.Table:
    """The rows, each with its film's attributes."""
    at = np.searchsorted(films["item_id"].to_numpy(), rows["item_id"].to_numpy())
    for name in RELATIONS:
        rows = rows.append_column(name, films[name].combine_chunks().take(pa.array(at)))
    return rows


def schema() -> Schema:
    """Of the rows."""
    return Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id"),
            Feature(name="item_id", owner="item", kind="id"),
            *(Feature(name=name, owner="item", kind="ids") for name in RELATIONS),
        ),
        labels=(Label(name="like"),),
    )


# --- references -------------------------------------------------------------------------------------------------------


def read_part(data: Path, part: str) -> tuple[Ints, Ints, Ints]:
    """Users, films and labels of the rows of a part."""
    rows = pq.read_table(find_files(data, (f"{FOLDS}/{part}/**/*.parquet",)), columns=["user_id", "item_id", "like"])
    user, film, like = (rows[name].to_numpy() for name in ("user_id", "item_id", "like"))
    return user, film, like


def popularity(data: Path) -> Ints:
    """Positive training rows of the films of the test rows, [N]."""
    _, film, like = read_part(data, "train")
    tested = read_part(data, "test")[1]
    return np.bincount(film[like == 1], minlength=tested.max() + 1)[tested]


class Factors(nn.Module):
    """Matrix factorisation: the inner product of a user and a film, and how popular the film is."""

    def __init__(self, users: int, films: int, dim: int = 16) -> None:
        super().__init__()
        self.user, self.film, self.level = (
            nn.Embedding(rows, d) for rows, d in ((users, dim), (films, dim), (films, 1))
        )
        for table in (self.user, self.film, self.level):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, user: Tensor, film: Tensor) -> Tensor:  # int64 [B], int64 [B] -> [B]
        return (self.user(user) * self.film(film)).sum(1) + self.level(film).squeeze(1)


def factorised(data: Path, seed: int) -> NDArray[np.float32]:
    """What a factorisation says of the test rows, [N], after its best pass by the AUC of the validation rows."""
    parts = {part: [torch.from_numpy(x.copy()) for x in read_part(data, part)] for part in PARTS}
    users, films = (int(max(part[x].max() for part in parts.values())) + 1 for x in (0, 1))
    torch.manual_seed(seed)
    model = Factors(users, films)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=_DECAY)
    (user, film, like), (*validated, label) = parts["train"], parts["validation"]
    best, said = 0.0, np.empty(0, np.float32)
    for _ in range(_PASSES):
        for rows in torch.randperm(len(user)).split(8192):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(user[rows], film[rows]), like[rows].float()).backward()
            optimizer.step()
        with torch.no_grad():
            auc = roc_auc(label.numpy(), model(*validated).numpy())
            if auc < best:
                break
            best, said = auc, model(*parts["test"][:2]).numpy()
    return said


_DECAY, _PASSES = 1e-5, 40
"""Of the factorisation: L2 of its tables, by the validation rows the best of 1e-6, 1e-5, 3e-5 and 1e-4; most passes."""


# --- graphs and rankers -----------------------------------------------------------------------------------------------


def likes() -> RelationConfig:
    """A user likes a film: the positives of the source's rows."""
    return relation("likes", "user=user_id", "item=item_id", where="like")


def attributes(folder: str) -> tuple[RelationConfig, ...]:
    """The knowledge graph, or what is left of it when its links are shuffled."""
    return tuple(
        relation(
            name,
            "item=item_id",
            f"{'person' if name in PERSON else name}={name}",
            events=(f"{FOLDS}/{folder}/{name}/*.parquet",),
        )
        for name in RELATIONS
    )


def graph(name: str, relations: tuple[RelationConfig, ...], events: tuple[str, ...], passes: int = 5) -> UpstreamConfig:
    """An upstream of these relations; every pass is made, so that graphs with and without attributes make as many."""
    return UpstreamConfig(
        name=name,
        kind="graph",
        source=SourceConfig(schema=f"{FOLDS}/schema.toml", events=events),
        graph=GraphConfig(relations=relations, score="complex", dim=64, n3=0.01),
        training=TrainConfig(epochs=passes, batch_size=1024, sparse_lr=0.1, checkpoint_every=0),
        held_out=0.0,
    )


def publish(options: Options, data: Path, environment: Environment) -> dict[str, list[float]]:
    """Train and publish the graphs; the cosines of the aligned ones. The graph of attributes needs users of some kind,
    which nobody reads: it joins them to their occupations."""
    nobody = relation("works_as", "user=user_id", "occupation=occupation", events=(f"{FOLDS}/users/*.parquet",))
    kg = graph("kg", (*attributes(GRAPH), nobody), without(1, options.folds), passes=8)
    publish_folds([kg], "kg", data, options.out, environment)
    cosines = {}
    spaces = {"likes": (), "likes_kg": attributes(GRAPH), "likes_shuffled": attributes(SHUFFLED)}
    for space, beside in spaces.items():
        folds = range(1, options.folds + 1)
        upstreams = [
            graph(f"{space}_without{each}", (likes(), *beside), without(each, options.folds)) for each in folds
        ]
        cosines[space] = publish_folds(upstreams, space, data, options.out, environment)
    return cosines


def settings(options: Options) -> RankerSettings:
    """Of the rankers of `ARMS`, chosen by the validation rows of one seed."""
    config = ranker_settings(options.seeds)
    training = replace(config.training, batch_size=4096, sparse_lr=0.02, dense_lr=3e-3)
    return replace(config, network=replace(config.network, hidden=(64, 32)), training=training)


def ranked(options: Options, data: Path, environment: Environment) -> Said:
    """What the rankers of all arms say of the test rows."""
    said = rank(settings(options), ARMS, data, options.out, environment)
    said.logits.update(rank(bare_settings(options), BARE, data, options.out, environment).logits)
    return said


def bare_settings(options: Options) -> RankerSettings:
    """Of those of `BARE`, chosen in the same way."""
    config = settings(options)
    return replace(
        config,
        network=replace(config.network, dropout=0.0, id_dropout=0.0),
        training=replace(config.training, sparse_lr=0.2, epochs=12, patience=4),
    )


def judged(said: Said) -> dict[str, object]:
    """Print every AUC, and what is claimed; the same as figures."""
    figures: dict[str, object] = {"test_rows": len(said.labels), "seeds": len(said.logits[FACTORS])}
    print(f"{len(said.labels):,} test rows, {said.labels.mean():.1%} of them positive: AUC", flush=True)
    for name in said.logits:
        figures[name] = round(said.auc(name), 4)
        print(f"| {name} | {figures[name]:.4f} |", flush=True)
    for without_it, with_it in CLAIMS:
        found = said.lift(without_it, with_it)
        print(f"{with_it} over {without_it}: AUC {found[0]:+.2f} % ({found[1]:.2f}, {found[2]:.2f})", flush=True)
        figures[f"{with_it}_over_{without_it}_percent"] = found
    return figures


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
