"""Graph upstreams: which links the columns of Parquet files are, and how their entities are embedded."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys.config.rules import is_word, require
from recsys.mistakes import meant

SCORES = ("transr", "transe", "distmult", "complex", "rotate")
"""What `score` may be, see `recsys.models.graph_scores`."""
_COMPLEX = ("complex", "rotate")
_NORMED = ("distmult", "complex")
LOSSES = ("softmax", "logistic", "margin")
"""What `loss` may be, see `recsys.models.graph`."""


@dataclass(frozen=True, kw_only=True)
class EndConfig:
    """One end of a relation: which column holds its ids, and of which node type they are."""

    type: str
    """Node type, say `user`, `item`, `brand`. Ends of one type share its table: so must their ids be of one kind."""
    column: str
    """Column of the ids: integers, strings (which become a 64-bit hash), or lists of these, each element a link."""

    def __post_init__(self) -> None:
        require(
            is_word(self.type), f"type is {self.type!r}; use letters, digits and _ (it becomes part of a table's name)"
        )
        require(bool(self.column), f"column is empty; name the column that holds the ids of {self.type!r}")


@dataclass(frozen=True, kw_only=True)
class RelationConfig:
    """A kind of link: each row of the files, where both ends have an id, is one."""

    name: str
    """Name of the relation, say `clicked`."""
    head: EndConfig
    """Where a link begins."""
    tail: EndConfig
    """Where it ends. At most one of the two may be a column of lists."""
    events: tuple[str, ...] = ()
    """Glob patterns of the Parquet files; empty: those of the upstream's source."""
    where: str = ""
    """Column of 0 and 1: only rows where it is 1 are links. Empty: all rows are."""
    weight: float = 1.0
    """How much a link of this relation counts in the loss, beside those of others. One that is there n times counts n
    times."""

    def __post_init__(self) -> None:
        require(is_word(self.name), f"name is {self.name!r}; use letters, digits and _")
        require(
            self.head.column != self.tail.column,
            f"relation {self.name!r} has column {self.head.column!r} at both ends; name two columns",
        )
        require(self.weight > 0, f"weight of relation {self.name!r} is {self.weight}; use more than 0")


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """A graph, and the embedding of its entities."""

    relations: tuple[RelationConfig, ...] = ()
    """The kinds of links."""
    score: str = "transr"
    """What makes a link plausible: transr, transe, distmult, complex, rotate."""
    dim: int = 64
    """Width of entity vectors; a multiple of 4, and of complex, rotate half of it are imaginary parts."""
    relation_dim: int = 0
    """Width of a relation's space, of transr alone; 0: `dim`."""
    reciprocal: bool = True
    """Whether a relation has parameters of its own for finding heads of tails (Lacroix et al. 2018). A translation can
    do without: FB15k-237's validation MRR by TransE is 0.320 so, 0.316 with them."""
    negatives: int = 512
    """Entities of each node type that are drawn uniformly for a step, the same on every rank: every link of the step is
    to be told from those that each of these in place of its head, or of its tail, would make."""
    in_batch: bool = False
    """Whether the heads and tails of the links of one relation are negatives of one another too, where no link of the
    group joins them."""
    group: int = 64
    """Links of one relation that lie side by side: its parameters are read once for all of them."""
    loss: str = "softmax"
    """`softmax`: cross-entropy over the candidates; `logistic`: log-sigmoids of links and of negatives, as RotatE's;
    `margin`: hinges."""
    margin: float = 9.0
    """Of the losses `logistic` and `margin`."""
    adversarial: float = 0.0
    """How much the losses `logistic` and `margin` lean to negatives that score high (self-adversarial); 0: all of them
    weigh the same. softmax leans by itself."""
    n3: float = 0.0
    """Factor of the cubed moduli of a link's vectors in the loss (Lacroix et al. 2018), of distmult and complex."""
    dropout: float = 0.0
    """Share of the dimensions that a step of the training leaves out, other ones each time."""
    rows: dict[str, int] = field(default_factory=dict)
    """Node type -> rows of its table; a type that is left out has twice as many as it has ids in the first training."""
    max_collisions: float = 0.05
    """Greatest share of a node type's ids that may be without a row of their own in the first training: more of them
    are refused before it."""
    init: float = 0.1
    """Entity and relation vectors are drawn from [-init, init]."""
    anchors: dict[str, str] = field(default_factory=dict)
    """Node type -> series of the run's store in which its entities have vectors already, all of one space: say
    { user = "user_mf", item = "item_mf" }. A learned linear map brings these to the graph, and an entity of degree n is
    pulled to its own at 1 / (1 + n) of the full strength; one that nothing links ends up there. Ours, after TransRA's
    anchors (arXiv 2508.02609), which are published nowhere. First trainings and cold retrains pull, days do not."""
    anchor_weight: float = 1.0
    """How much the pull counts in the loss, beside the links."""

    def __post_init__(self) -> None:
        require(
            self.score in SCORES, f"score is {self.score!r}{meant(self.score, SCORES)}; use one of {', '.join(SCORES)}"
        )
        require(self.loss in LOSSES, f"loss is {self.loss!r}{meant(self.loss, LOSSES)}; use one of {', '.join(LOSSES)}")
        require(self.dim > 0 and self.dim % 4 == 0, f"dim is {self.dim}; tables need a multiple of 4")
        require(self.relation_dim >= 0, f"relation_dim is {self.relation_dim}; use 1 or more, or 0: dim")
        require(
            self.score == "transr" or self.relation_dim in (0, self.dim),
            f"relation_dim is {self.relation_dim}; only transr's relations have a width of their own, use 0",
        )
        require(self.score in _NORMED or not self.n3, f"n3 is {self.n3}; only {' and '.join(_NORMED)} take it, use 0")
        require(
            self.loss != "softmax" or not self.adversarial,
            f"adversarial is {self.adversarial}; it is for the losses logistic and margin, use 0",
        )
        for name in ("group", "negatives", "init", "anchor_weight"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use more than 0")
        for name in ("n3", "adversarial", "margin"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; use 0 or more")
        require(0 <= self.max_collisions <= 1, f"max_collisions is {self.max_collisions}; use a share from 0 to 1")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; use 0 <= dropout < 1")
        names = [relation.name for relation in self.relations]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"relations names {', '.join(twice)} twice; give each a name of its own")

        unknown = sorted(self.rows.keys() - set(self.node_types))
        require(not unknown, f"rows names {unknown}; the relations have the node types {list(self.node_types)}")
        unknown = sorted(self.anchors.keys() - set(self.node_types))
        require(not unknown, f"anchors names {unknown}; the relations have the node types {list(self.node_types)}")
        for name, rows in self.rows.items():
            require(rows > 0, f"rows.{name} is {rows}; use 1 or more, or leave it out")

    @property
    def vector_dim(self) -> int:
        """D, the dimension of user and item vectors."""
        return self.dim

    @property
    def node_types(self) -> tuple[str, ...]:
        """The node types of all relations, in the order in which they are named first."""
        return tuple(dict.fromkeys(end.type for each in self.relations for end in (each.head, each.tail)))

    @property
    def relation_width(self) -> int:
        """D, the width of a relation's space."""
        return self.relation_dim or self.dim
