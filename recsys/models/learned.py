"""Tables of a ranker's own in place of a series of the store, or on top of it.

A `fine_tuned` vector is the store's plus `rate` x a row that the ranker learns. The tables' optimizer, row-wise
Adagrad, divides a gradient by the root of its own mean square, so that a factor in front of a row scales the steps of
what it makes by just that factor: the vector learns as a table would that began as the snapshot, with `rate` times the
tables' learning rate (1/10: PinFM), though no snapshot is copied, and ids without an event keep the store's vector.
`scratch` has the rows alone: what a table of the same size is worth that nobody pretrained. `attention` is a fine-tuned
table with `recsys.models.relation_views` behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.config import NetworkConfig
from recsys.data.schema import Schema
from recsys.models.relation_views import RelationViews
from recsys.models.series import SeriesSpec
from recsys.models.vocabulary import own_ids

_COLUMNS = 4
"""Tables have a multiple of so many; what is more than the series has is not read."""
_INIT = 1e-2
"""Rows start uniform in +-_INIT: hardly more than nothing beside a vector of unit length."""


class LearnedTables(nn.Module):
    """Store vectors of a batch -> the same with those of some series learned.

    A row is the one that the entity's own id has among the ranker's features; new ids share the unknown one.

    Args:
        schema: of the ranker.
        series: what `Batch.vectors` and `found` hold; those with a `table` are learned, one at least.
        config: `table_rate` and `frequency_adaptive`.

    Raises:
        ValueError: a series is to be learned whose entities' own id is no feature.
    """

    def __init__(self, schema: Schema, series: Sequence[SeriesSpec], config: NetworkConfig) -> None:
        super().__init__()
        own, learned = own_ids(schema), [x for x in series if x.table]
        for spec in learned:
            if spec.owner not in own:
                raise ValueError(f"series {spec.name!r} is to be learned: list the {spec.owner}'s own id as a feature")
        self.bags = nn.ModuleList(_table(spec, own[spec.owner].name, own[spec.owner].rows + 1) for spec in learned)
        rows = {owner: feature.rows + 1 for owner, feature in own.items()}
        self.join = _Join(series, {owner: feature.name for owner, feature in own.items()}, rows, config)

    def forward(
        self,
        sparse: KeyedJaggedTensor,
        vectors: Tensor | None,  # float [B, V]
        found: Tensor | None,  # bool [B, P]
    ) -> tuple[Tensor, Tensor]:  # the same
        return self.join([bag(sparse) for bag in self.bags], sparse, vectors, found)


def _table(spec: SeriesSpec, feature: str, rows: int) -> EmbeddingBagCollection:
    """A collection for each series: in one, several that are read by the same id would be called differently."""
    table = EmbeddingBagConfig(
        name=rows_name(spec.name),
        embedding_dim=-(-spec.dim // _COLUMNS) * _COLUMNS,
        num_embeddings=rows,
        feature_names=[feature],
        weight_init_min=-_INIT,
        weight_init_max=_INIT,
    )
    return EmbeddingBagCollection(tables=[table], device=torch.device("meta"))


class _Join(nn.Module):
    """Everything of LearnedTables that is not a table; a leaf of the train pipeline's trace."""

    def __init__(
        self, series: Sequence[SeriesSpec], features: Mapping[str, str], rows: Mapping[str, int], config: NetworkConfig
    ) -> None:
        super().__init__()
        self.series = tuple(series)
        self.features = dict(features)
        self.rate = config.table_rate
        self.views = nn.ModuleDict(
            {_plain(x.name): RelationViews(x.relations, x.dim, self.rate) for x in series if x.table == "attention"}
        )
        self.candidates = [_candidate(spec, series) for spec in series]
        self.frequency_adaptive = config.frequency_adaptive
        if config.frequency_adaptive:
            for owner in {spec.owner for spec in series if spec.table}:
                self.register_buffer(f"{owner}_rates", torch.zeros(rows[owner]))

    @torch.no_grad()
    def set_frequencies(self, counts: Mapping[str, Tensor]) -> None:  # [rows] each
        """Let each row learn at log(F + 1) / max log(F + 1) times the rate, F how often it is read (FAL, arXiv
        2505.05605). Rows that have such a share already keep it: what they have learned is multiplied by it.

        Args:
            counts: owner -> F of each row of its own id.
        """
        for owner, rates in self.named_buffers(recurse=False):
            new = torch.log1p(counts[owner.removesuffix("_rates")].to(rates).clamp(min=0))
            rates.copy_(torch.where(rates > 0, rates, new / new.max().clamp(min=1e-12)))

    def views_of(self, series: str) -> RelationViews:
        """What attends to a series."""
        views = self.views[_plain(series)]
        assert isinstance(views, RelationViews)
        return views

    def forward(
        self,
        tables: list[KeyedTensor],
        sparse: KeyedJaggedTensor,
        vectors: Tensor | None,
        found: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if vectors is None or found is None:
            raise ValueError("batch.vectors and found are None: join the series that the ranker reads to the batch")
        parts = list(vectors.split([spec.dim * spec.versions for spec in self.series], 1))
        places = list(found.split([spec.versions for spec in self.series], 1))
        rest = iter(tables)
        for number, spec in enumerate(self.series):
            if not spec.table:
                continue
            row = next(rest).values()[:, : spec.dim]
            if self.frequency_adaptive:
                rates = self.get_buffer(f"{spec.owner}_rates")
                ids = sparse[self.features[spec.owner]]  # one an event; a deployed program may have spare ones behind
                row = row * rates[ids.values()[ids.offsets()[:-1]]].unsqueeze(1)
            if spec.table != "scratch":
                # Of an id that the snapshot lacks the row is all there is, and learns as other tables do.
                held = places[number]
                parts[number] = torch.where(held, parts[number] + self.rate * row, row)
            else:
                parts[number] = row
            places[number] = torch.ones_like(places[number])
        known = list(parts)  # before any of them attends
        for number, spec in enumerate(self.series):
            if spec.table == "attention":
                parts[number] = self.views[_plain(spec.name)](known[number], known[self.candidates[number]])
        return torch.cat(parts, dim=1), torch.cat(places, dim=1)


def rows_name(series: str) -> str:
    """What the table of a series is called."""
    return f"learned_{_plain(series)}"


def _plain(name: str) -> str:
    """A series' name as modules and tables have it, which take no dots."""
    return name.replace(".", "-")


def _candidate(spec: SeriesSpec, series: Sequence[SeriesSpec]) -> int:
    """The place of the items' vectors that attend to a series: those of the same graph; its own where none is to."""
    items = [number for number, x in enumerate(series) if x.owner == "item" and x.space == spec.space]
    if spec.table == "attention" and not items:
        raise ValueError(f"candidates are to attend to series {spec.name!r}: read the items' of the same graph too")
    return items[0] if items else 0


def learned_tables(schema: Schema, series: Sequence[SeriesSpec], config: NetworkConfig) -> LearnedTables | None:
    """Those that the series ask for; None where none is learned. Raises ValueError, see `LearnedTables`."""
    return LearnedTables(schema, series, config) if any(x.table for x in series) else None
