"""Embedding a graph: a table for each node type, relations between them, and the loss by which both are learned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from recsys.config.graph import GraphConfig
from recsys.data.batch import Batch
from recsys.data.links import LinkBatch, one_each
from recsys.data.triples import Graph
from recsys.models.graph_scores import SCORES, cubes
from recsys.models.losses import TaskOutput
from recsys.models.nodes import NodeVocabulary
from recsys.models.objective import weighted_means

HIDDEN = float("-inf")
"""The score of a candidate that is no negative."""


class GraphOutput(NamedTuple):
    """Scores of a batch's links and of their negatives: those in place of the tail, then those in place of the head."""

    links: Tensor  # float32 [2, G, P]
    drawn: tuple[Tensor, Tensor]  # float32 [G, P, N] each; -inf: it is the end itself
    others: tuple[Tensor, Tensor] | None  # float32 [G, P, P] each; -inf: it is linked in the group as well, or no link
    entities: Tensor  # float32 [2, G], how many entities there are for that end
    cubes: Tensor | None  # float32 [G, P], of the vectors of each link, for N3
    anchored: Tensor  # float32 [K, d], the vectors of entities that have anchors


class GraphModel(nn.Module):
    """Entity vectors and relations.

    Its tables are on "meta" until `recsys.train.tables.draw_tables` draws them or a checkpoint is loaded.

    Args:
        graph: node types, the rows of their tables, relations.
        config: score and sizes.
    """

    def __init__(self, graph: Graph, config: GraphConfig) -> None:
        super().__init__()
        self.types = graph.types
        self.vector_dim = config.dim
        self.vocabulary = NodeVocabulary(graph)
        """Who owns the rows that ids read; events are to pass its `resolve`, links its `locate`."""
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=f"node_{name}",
                    embedding_dim=config.dim,
                    num_embeddings=rows + 1,  # the unknown one
                    feature_names=[name],
                    weight_init_min=-config.init,
                    weight_init_max=config.init,
                )
                for name, rows in zip(graph.types, graph.rows, strict=True)
            ],
            device=torch.device("meta"),
        )
        self.tables.ids_a_row = dict.fromkeys(graph.types, 2)  # a link's ends; those drawn are few beside them
        self.links = Links(graph, config)

    def forward(self, batch: LinkBatch) -> GraphOutput:
        """Scores of G x P links and their negatives."""
        return self.links(self.tables(batch.nodes), batch)

    def part_of(self, owner: str) -> tuple[nn.Module, tuple[str, ...]]:
        """All of it, for users and for items: in a batch of links its tables are one collection."""
        return self, ("",)

    def user_vector(self, batch: Batch) -> Tensor:
        """Vectors [B, d] of the users of events, or of users' own rows, that have passed `vocabulary.resolve`."""
        return self._published("user", batch)

    def item_vector(self, batch: Batch) -> Tensor:
        """Vectors [B, d] of the items."""
        return self._published("item", batch)

    def _published(self, name: str, batch: Batch) -> Tensor:
        if name not in self.types:
            raise ValueError(
                f"the graph has no node type {name!r}, but {', '.join(self.types)}; name the type of its {name}s so"
            )
        return self.tables(batch.sparse)[name].values()

    def entity_vectors(self, name: str, rows: Tensor) -> Tensor:  # int64 [n] -> float32 [n, d]
        """Vectors of entities of a node type by their rows. A collective where the tables are sharded."""
        counts = [len(rows) if each == name else 0 for each in self.types]
        return self.tables(one_each(self.types, rows, counts, len(rows)))[name].values()


class Links(nn.Module):
    """Entity vectors and a batch -> GraphOutput; a leaf of the train pipeline's trace.

    While training, `dropout` leaves out dimensions of the relations' spaces, other ones in every step and for either
    end: both of queries and of candidates, so that a distance is one within the rest.
    """

    ends: Tensor  # int64 [R, 2]

    def __init__(self, graph: Graph, config: GraphConfig) -> None:
        super().__init__()
        self.types, self.config, self.count = graph.types, config, len(graph.relations)
        sides = 2 if config.reciprocal else 1
        self.score = SCORES[config.score](sides * self.count, config.dim, config.relation_width, config.init)
        self.register_buffer("ends", torch.from_numpy(graph.ends.copy()), persistent=False)

    def forward(self, found: dict[str, JaggedTensor], batch: LinkBatch) -> GraphOutput:
        with torch.autocast(batch.weights.device.type, enabled=False):
            rows = torch.cat([found[name].values() for name in self.types]).float()
            ends = F.embedding(torch.stack((batch.heads, batch.tails)), rows)  # [2, G, P, d]
            near, far = self._projected(ends, F.embedding(batch.drawn, rows), batch.relations)
            sides = [self._side(side, near[side], far[side], batch) for side in (0, 1)]
            links, drawn, others = zip(*sides, strict=True)
            return GraphOutput(
                torch.stack(links),
                drawn,
                others if self.config.in_batch else None,
                batch.entities[self.ends[batch.relations].flip(1).T].float(),
                self._cubes(ends, batch.relations) if self.config.n3 else None,
                F.embedding(batch.anchored, rows),
            )

    @torch.no_grad()
    def views(self) -> tuple[Tensor, Tensor]:  # float32 [R, d, D] and [R, D]
        """A and b of every relation: what it asks the tails of a head h to match is h A + b, of every score."""
        relations = torch.arange(self.count, device=self.ends.device)
        ends = torch.eye(self.config.dim + 1, self.config.dim, device=self.ends.device)  # the last one is 0
        projected = self.score.project(ends.expand(self.count, -1, -1), self.score.maps(relations))
        asked = self.score.query(projected, relations, backwards=False)
        return asked[:, :-1] - asked[:, -1:], asked[:, -1]

    def space(self, relations: Tensor, *, backwards: bool) -> Tensor:  # int64 [G] -> int64 [G]
        """The parameters of relations for finding tails of heads, or heads of tails."""
        return relations + self.count if backwards and self.config.reciprocal else relations

    def query(self, known: Tensor, space: Tensor, *, backwards: bool) -> Tensor:  # [G, P, D]
        """What the other end of links is to match; reciprocal relations are asked for heads as others for tails."""
        return self.score.query(known, space, backwards=backwards and not self.config.reciprocal)

    def _projected(
        self,
        ends: Tensor,  # [2, G, P, d]
        drawn: Tensor,  # [T, N, d]
        relations: Tensor,  # int64 [G]
    ) -> tuple[list[Tensor], list[Tensor]]:  # [2, G, P, D] and [G or 1, N, D] each
        """Heads and tails, and the candidates, in the relations' spaces for finding tails, then for finding heads. What
        is the same for both is projected once."""
        own, one = self.config.reciprocal, len(self.types) == 1
        spaces = [self.space(relations, backwards=backwards) for backwards in (False, True)]
        maps = self.score.maps(torch.cat(spaces) if own else relations)
        both, near, far = torch.cat((ends[0], ends[1]), 1), [], []
        for side in (0, 1):
            mine = maps.chunk(2)[side] if maps is not None and own else maps
            if side == 0 or own:
                near.append(torch.stack(self.score.project(both, mine).chunk(2, 1)))
            if side == 0 or own or not one:
                candidates = drawn if one else drawn[self.ends[relations, 1 - side]]
                far.append(self.score.project(candidates, mine))
        return [near[0], near[-1]], [far[0], far[-1]]

    def _side(
        self,
        side: int,  # 0: candidates for the tail, 1: for the head
        near: Tensor,  # [2, G, P, D]
        far: Tensor,  # [G or 1, N, D]
        batch: LinkBatch,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of links [G, P], of candidates that were drawn [G, P, N], and of those in the batch [G, P, P],
        if any."""
        wanted, places = near[1 - side], (batch.heads, batch.tails)[1 - side]
        space = self.space(batch.relations, backwards=side == 1)
        queries = self.query(near[side], space, backwards=side == 1)
        if self.training and self.config.dropout:
            kept = F.dropout(torch.ones_like(far[:1, :1]), self.config.dropout).sqrt()  # [1, 1, D], in the mean 1
            queries, wanted, far = queries * kept, wanted * kept, far * kept
        drawn = batch.drawn if len(self.types) == 1 else batch.drawn[self.ends[batch.relations, 1 - side]]
        same = places.unsqueeze(2) == drawn.unsqueeze(1)
        negatives = self.score.match(queries, far).masked_fill(same, HIDDEN)
        links = self.score.pair(queries, wanted)
        if not self.config.in_batch:
            return links, negatives, links
        return links, negatives, self.score.match(queries, wanted).masked_fill(linked(batch, side), HIDDEN)

    def _cubes(self, ends: Tensor, relations: Tensor) -> Tensor:  # [2, G, P, d], int64 [G] -> [G, P]
        """N3 of each link, of a relation that has two vectors their mean."""
        spaces = [self.space(relations, backwards=backwards) for backwards in (False, True)]
        of_relations = torch.stack([self.score.cubes(space) for space in spaces]).mean(0)
        return cubes(ends, of_complex=self.score.COMPLEX).sum(0) + of_relations.unsqueeze(1)


class LinkLoss(nn.Module):
    """GraphOutput and its batch -> (loss, TaskOutput); a leaf of the train pipeline's trace. See `GraphTask`."""

    def __init__(self, config: GraphConfig, anchor_dim: int) -> None:
        super().__init__()
        self.config = config
        self.pull = Pull(anchor_dim, config.dim) if anchor_dim else None

    def forward(self, output: GraphOutput, batch: LinkBatch) -> tuple[Tensor, TaskOutput]:
        loss_of = self._softmax if self.config.loss == "softmax" else self._contrasted
        each = torch.stack([loss_of(output, side) for side in (0, 1)])  # [2, G, P]
        parts = each if output.cubes is None else torch.cat((each, output.cubes.unsqueeze(0)))
        columns = parts.flatten(1).T  # [G P, 2 or 3]
        weights = batch.weights.flatten()
        there = (weights > 0).unsqueeze(1).expand_as(columns)
        means = weighted_means(columns, there, weights)
        losses = dict(zip(("tail", "head", "n3"), means.detach().unbind(), strict=False))
        nothing = columns.new_zeros(len(columns), 0)
        loss = means[:2].mean() + self.config.n3 * means[2:].sum()
        if self.pull is not None:
            pull = self.pull(output.anchored, batch)
            losses["anchors"] = pull.detach()
            loss = loss + self.config.anchor_weight * pull
        return loss, TaskOutput(losses, nothing, nothing, nothing.bool())

    def _softmax(self, output: GraphOutput, side: int) -> Tensor:  # [G, P]
        """Cross-entropy of the end among the candidates. One that was drawn stands for as many as there are entities
        for each that was drawn: in the mean the denominator is that of all entities."""
        links, drawn = output.links[side], output.drawn[side]
        share = (output.entities[side] / drawn.shape[2]).log().unsqueeze(1)  # [G, 1]
        total = torch.logaddexp(links, drawn.logsumexp(2) + share)
        if output.others is not None:
            total = torch.logaddexp(total, output.others[side].logsumexp(2))
        return total - links

    def _contrasted(self, output: GraphOutput, side: int) -> Tensor:  # [G, P]
        """Links above, negatives below: by log-sigmoids or by hinges, a mean over negatives that may lean to the
        hardest (self-adversarial, Sun et al. 2019)."""
        links, negatives, margin = output.links[side], output.drawn[side], self.config.margin
        if output.others is not None:
            negatives = torch.cat((negatives, output.others[side]), 2)
        there = negatives > HIDDEN
        scores = negatives.masked_fill(~there, 0.0)
        lean = (self.config.adversarial * scores.detach()).masked_fill(~there, HIDDEN)
        shares = lean.softmax(2).nan_to_num()  # nothing to learn where there is no negative
        if self.config.loss == "margin":
            return (shares * F.relu(margin + scores - links.unsqueeze(2))).sum(2)
        return F.softplus(-margin - links) + (shares * F.softplus(margin + scores)).sum(2)


class Pull(nn.Module):
    """How far entities are from their anchors: vectors of another space, brought here by a learned linear map.

    The squared distance of an entity of degree n is split in two. 1 / (1 + n) of it moves the entity to where its
    anchor is mapped; the rest moves the map, to where the entity is: those that links say much of teach the map, which
    places the others.

    Args:
        anchor_dim: A, the width of anchors.
        dim: d, the width of entity vectors.
    """

    def __init__(self, anchor_dim: int, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(anchor_dim, dim)

    def forward(self, vectors: Tensor, batch: LinkBatch) -> Tensor:  # float32 [K, d] -> scalar
        """Mean over the batch's K entities; 0 without one."""
        if not len(vectors):
            return 0 * self.map.weight.sum()
        mapped, strength = self.map(batch.anchors), 1 / (1 + batch.degrees)
        moved = strength * (vectors - mapped.detach()).square().sum(1)
        taught = (1 - strength) * (vectors.detach() - mapped).square().sum(1)
        return (moved + taught).mean()


class GraphTask(nn.Module):
    """A graph and its loss, in the form the trainer takes: `forward(batch) -> (loss, TaskOutput)`.

    The loss is the mean of that of tails and that of heads, over the links of all ranks by their weights: averaged over
    ranks, loss and gradient are those of one rank with all groups. `losses` has both, and `n3` and `anchors`. There are
    no logits.
    """

    def __init__(self, model: GraphModel, config: GraphConfig, anchor_dim: int = 0) -> None:
        super().__init__()
        self.model = model
        self.loss = LinkLoss(config, anchor_dim)

    def forward(self, batch: LinkBatch) -> tuple[Tensor, TaskOutput]:
        """Scalar loss of this rank's links, and what to log."""
        return self.loss(self.model(batch), batch)


def linked(batch: LinkBatch, side: int) -> Tensor:  # bool [G, P, P]
    """Which ends of a group are no negatives of which of its links: those linked to the same entity there as well, and
    those that stand where there is no link."""
    known, wanted = (batch.heads, batch.tails) if side == 0 else (batch.tails, batch.heads)
    there = batch.weights > 0
    same_known = (known.unsqueeze(2) == known.unsqueeze(1)) & there.unsqueeze(1)  # [G, P, P]
    same_wanted = wanted.unsqueeze(2) == wanted.unsqueeze(1)
    return (same_known.float() @ same_wanted.float() > 0) | ~there.unsqueeze(1)


class WholeGraph:
    """A model's scores of all entities, by vectors that it is asked for once: a `recsys.train.link_ranks.Scorer`.

    Built by every rank where the tables are sharded; then each scores by itself.

    Args:
        model: trained, sharded or not.
        graph: what it was built for.
        device: where its tables are.
    """

    def __init__(self, model: GraphModel, graph: Graph, device: torch.device) -> None:
        self._graph, self._links = graph, model.links
        with torch.no_grad():
            self._vectors = [
                model.entity_vectors(name, torch.from_numpy(rows).to(device)).clone()
                for name, rows in zip(graph.types, graph.entities, strict=True)
            ]

    @torch.no_grad()
    def __call__(self, relation: int, known: Tensor, *, backwards: bool) -> Tensor:
        """See `Scorer`."""
        here, there = self._graph.ends[relation, ::-1] if backwards else self._graph.ends[relation]
        at = np.searchsorted(self._graph.entities[here], known.numpy())
        vectors, score = self._vectors[here][torch.from_numpy(at).to(self._vectors[here].device)], self._links.score
        space = self._links.space(torch.tensor([relation], device=vectors.device), backwards=backwards)
        maps = score.maps(space)
        queries = self._links.query(score.project(vectors.unsqueeze(0), maps), space, backwards=backwards)
        return score.match(queries, score.project(self._vectors[there].unsqueeze(0), maps)).squeeze(0)
