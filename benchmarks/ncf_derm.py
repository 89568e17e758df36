"""A DERM for `benchmarks.leave_one_out`: who chose what next, by the contrastive loss alone.

The user tower reads the user's id and what the user chose last, in windows of several lengths that are averaged; the
item tower the item's id. Each of a user's last TARGETS choices is an event, which reads the choices before it; those of
one second are put into an order that is drawn. Choices without a time are left out, but of users who have no others,
whose order is drawn then. Every event is a choice, so the label is always 1 and the supervised part of the loss has
nothing to teach; negatives are those of the batch and items drawn uniformly. A candidate's score is the inner product
of the two vectors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.ncf import Found, Ints, Split, in_order
from recsys.config import LossConfig, ModelConfig, SourceConfig, TrainConfig, UpstreamConfig
from recsys.data.convert import to_batch
from recsys.data.files import find_files, replacing_folder, write_part
from recsys.data.history import PastEvents
from recsys.data.schema import Feature, Label, Schema
from recsys.models.derm import DERM
from recsys.train.distributed import Environment
from recsys.training_set import TrainingSet
from recsys.upstream import train_on

WINDOWS = (1, 4, 16, 64, 512)
TARGETS = 50
LABEL = "chosen"
_AFTER_ALL = 1
_ROWS = 1024


def derm_config(passes: int, seed: int) -> UpstreamConfig:
    """Tuned on the validation rows of MovieLens 1M."""
    return UpstreamConfig(
        name="chosen",
        source=SourceConfig(schema="log/schema.toml", events=("log/events/*.parquet",), items=("log/items/*.parquet",)),
        model=ModelConfig(token_dim=64, layers=(("mlp",),), tokens=2, out_tokens=2, out_dim=64),
        loss=LossConfig(contrastive_weight=1.0, temperature=0.1, uniform_negatives=512),
        training=TrainConfig(epochs=passes, batch_size=512, sparse_lr=0.05, dense_lr=2e-3, seed=seed),
        held_out=0.0,
    )


class Chosen:
    """The choices of a split's training rows as events, below a folder, and DERMs that learn from them.

    Args:
        split: the split.
        folder: of the events and of what is trained.
        seed: of what is drawn, and of the trainings.
    """

    def __init__(self, split: Split, folder: Path, seed: int) -> None:
        self.split, self.folder, self.seed = split, folder, seed
        self.schema = _schema(split)
        rng = np.random.default_rng(seed)
        order = in_order(split.users, split.times, rng)
        dated = np.bincount(split.users, split.times, minlength=split.user_count)[split.users[order]] > 0
        order = order[(split.times[order] > 0) | ~dated]
        users, items = split.users[order], split.items[order]
        places = np.arange(len(users)) - np.searchsorted(users, users, side="right")  # the user's last is at -1
        self._past = PastEvents(users, places, items)
        chosen = rng.permutation(np.flatnonzero(places >= -TARGETS))
        with replacing_folder(folder / "log") as out:  # when a stopped run goes on too
            self.schema.save(out / "schema.toml")
            write_part(self._rows(users[chosen], places[chosen], items[chosen]), out / "events")
            write_part(self._items(), out / "items")

    def train(self, passes: int, environment: Environment, *, judged: bool) -> tuple[NDArray, list[float]]:
        """Train a DERM, the best of so many passes by the held-out items' NDCG@10 or all of them; scores of the
        candidates, float32 [T, 1 + K], and the NDCG after each pass that was judged."""
        config = derm_config(passes, self.seed)
        given = TrainingSet(
            files=find_files(self.folder, config.source.events),
            schema=self.schema,
            data=self.folder,
            items=find_files(self.folder, config.source.items),
        )
        trained = train_on(
            given,
            config,
            config.training,
            environment,
            out=self.folder / "derm",
            store=str(self.folder / "store"),
            title=f"DERM, {self.folder.name}",
            judge=self._judge if judged else None,
        )
        return self.scores(trained.result.model), [-score for (score,) in trained.result.scores]

    def scores(self, model: nn.Module) -> NDArray:
        """Of the candidates, float32 [T, 1 + K]."""
        derm = model.module.model  # type: ignore[union-attr]
        assert isinstance(derm, DERM)
        split = self.split
        user = self._vectors(
            derm, "user", self._rows(split.tested, np.full_like(split.tested, _AFTER_ALL), split.held_out)
        )
        item = self._vectors(derm, "item", self._items())
        return torch.einsum("td,tkd->tk", user, item[torch.from_numpy(split.candidates)]).numpy()

    def _judge(self, model: nn.Module) -> tuple[float]:
        return (-float(Found.of(self.split, self.scores(model)).gains().mean()),)

    def _rows(self, users: Ints, places: Ints, items: Ints) -> pa.Table:
        """Events of these users and items, with what each user chose strictly before its place."""
        windows = {_window(length): self._past.before(users, places, length).to_arrow()[0] for length in WINDOWS}
        return pa.table(
            {"user_id": users, "item_id": items, "item": items, **windows, LABEL: np.ones(len(users), np.int8)}
        )

    def _items(self) -> pa.Table:
        """A row for each item, of nobody."""
        items = np.arange(self.split.item_count)
        return self._rows(np.full_like(items, self.split.user_count), np.zeros_like(items), items)

    def _vectors(self, model: DERM, owner: str, rows: pa.Table) -> Tensor:  # float32 [N, D]
        tower, parts = model.user_vector if owner == "user" else model.item_vector, []
        model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), _ROWS):
                batch = to_batch(rows.slice(start, _ROWS), self.schema)
                parts.append(tower(model.vocabulary.resolve(batch)).float())
        return torch.cat(parts)


def _schema(split: Split) -> Schema:
    windows = [
        Feature(name=_window(length), owner="user", kind="ids", rows=split.item_count, table="chosen_items")
        for length in WINDOWS
    ]
    user = Feature(name="user_id", owner="user", kind="id", rows=2 * split.user_count)
    # Not as `item_id`: items without an event would read the row of an unknown one, which dropped ids make that of an
    # average item, ranked above what hardly anybody chose. With a row of their own they are negatives alone.
    item = Feature(name="item", owner="item", kind="id", rows=split.item_count)
    return Schema(features=(user, *windows, item), labels=(Label(name=LABEL),), timestamp="")


def _window(length: int) -> str:
    return f"last_{length}"
