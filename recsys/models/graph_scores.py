"""How plausible a link (head, relation, tail) is: TransR, TransE, DistMult, ComplEx and RotatE.

All have one form. A relation takes entities into its own space (TransR alone; elsewhere they stay what they are), makes
a query of one end, and matches the query with candidates for the other end: by a dot product, or by how near they are,
both of which are one matrix product for all candidates. Links come in groups of one relation each, so that a relation's
parameters are read once a group and never once a link.

Distances are Euclidean throughout. RotatE's paper sums the moduli of the complex differences instead, for which there
is no matrix product; the rotation is the paper's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

NEAREST = 1e-12
"""Squares of distances that are not fallen below: the root has a gradient, and 0 where two points are one."""


class Score(nn.Module, ABC):
    """A score and the parameters of its R relations: `vectors` [R, W], and what else a relation has.

    Args:
        relations: R.
        dim: d, the width of entity vectors.
        relation_dim: D, the width of a relation's space; TransR's alone may differ from d.
        init: parameters are drawn uniformly from [-init, init] where nothing better is known.

    Raises:
        ValueError: a width that the score cannot have.
    """

    NORMED: ClassVar[bool] = False
    """Whether the score is unbounded in the lengths of its vectors, so that the N3 regulariser keeps them short."""
    COMPLEX: ClassVar[bool] = False
    """Whether vectors are complex: the real parts, then as many imaginary ones."""
    PROJECTS: ClassVar[bool] = False
    """Whether relations have a space of their own."""

    def __init__(self, relations: int, dim: int, relation_dim: int, init: float) -> None:
        super().__init__()
        if self.COMPLEX and dim % 2:
            raise ValueError(f"dim is {dim}; {type(self).__name__} takes an even one, half of it imaginary parts")
        if relation_dim != dim and not self.PROJECTS:
            raise ValueError(f"relation_dim is {relation_dim}, dim {dim}; only TransR's relations have their own width")
        self.vectors = nn.Parameter(torch.empty(relations, relation_dim).uniform_(-init, init))

    def maps(self, index: Tensor) -> Tensor | None:  # int64 [G] -> [G, d, D]
        """What takes entities into the spaces of these relations; None: they stay what they are. To be asked for once a
        step: each gradient of what is read here is as large as all relations' parameters."""
        return None

    def project(
        self,
        entities: Tensor,  # [G, N, d], or [1, N, d]: the same for every group
        maps: Tensor | None,  # [G, d, D], of the groups' relations
    ) -> Tensor:  # [G, N, D], or [1, N, D]
        """Entities in the spaces of the groups' relations."""
        if maps is None:
            return entities
        if len(entities) == len(maps):
            return torch.bmm(entities, maps)
        columns = maps.transpose(0, 1).flatten(1)  # [d, G D]: one product for all groups
        return (entities[0] @ columns).unflatten(1, maps.shape[::2]).transpose(0, 1)

    @abstractmethod
    def query(
        self,
        known: Tensor,  # [G, P, D], projected
        index: Tensor,  # int64 [G]
        *,
        backwards: bool,
    ) -> Tensor:  # [G, P, D]
        """What the other end is to match: the tail of these heads, or `backwards` the head of these tails."""

    def match(
        self,
        queries: Tensor,  # [G, P, D]
        candidates: Tensor,  # [G, N, D] or [1, N, D], projected
    ) -> Tensor:  # [G, P, N]
        """Scores of every candidate for every query of its group."""
        return products(queries, candidates)

    def pair(
        self,
        queries: Tensor,  # [G, P, D]
        candidates: Tensor,  # [G, P, D], projected
    ) -> Tensor:  # [G, P]
        """Scores of one candidate for each query."""
        return (queries * candidates).sum(2)

    def forward(
        self,
        heads: Tensor,  # [G, P, d]
        tails: Tensor,  # [G, P, d]
        index: Tensor,  # int64 [G]
    ) -> Tensor:  # [G, P]
        """The links' scores."""
        maps = self.maps(index)
        queries = self.query(self.project(heads, maps), index, backwards=False)
        return self.pair(queries, self.project(tails, maps))

    def cubes(self, index: Tensor) -> Tensor:  # int64 [G] -> [G]
        """Sum of the cubed moduli of each relation's vector, for N3."""
        return cubes(self.vectors[index], of_complex=self.COMPLEX)

    def _of(self, index: Tensor) -> Tensor:  # [G, 1, W]
        return self.vectors.index_select(0, index).unsqueeze(1)


class _Distance(Score):
    """Scores that are minus a Euclidean distance."""

    def match(self, queries: Tensor, candidates: Tensor) -> Tensor:
        return distances(queries, candidates)

    def pair(self, queries: Tensor, candidates: Tensor) -> Tensor:
        return -(queries - candidates).square().sum(2).clamp(min=NEAREST).sqrt()


class TransE(_Distance):
    """`-||h + r - t||` (Bordes et al. 2013)."""

    def query(self, known: Tensor, index: Tensor, *, backwards: bool) -> Tensor:
        return known - self._of(index) if backwards else known + self._of(index)


class TransR(TransE):
    """`-||h M_r + r - t M_r||` (Lin et al. 2015). Every M_r is the identity at first, so that it begins as TransE."""

    PROJECTS = True

    def __init__(self, relations: int, dim: int, relation_dim: int, init: float) -> None:
        super().__init__(relations, dim, relation_dim, init)
        self.matrices = nn.Parameter(torch.eye(dim, relation_dim).repeat(relations, 1, 1))

    def maps(self, index: Tensor) -> Tensor:
        return self.matrices.index_select(0, index)


class DistMult(Score):
    """`sum(h r t)` (Yang et al. 2015)."""

    NORMED = True

    def query(self, known: Tensor, index: Tensor, *, backwards: bool) -> Tensor:
        return known * self._of(index)


class ComplEx(Score):
    """`Re sum(h r conj(t))` over complex numbers (Trouillon et al. 2016)."""

    NORMED = True
    COMPLEX = True

    def query(self, known: Tensor, index: Tensor, *, backwards: bool) -> Tensor:
        real, imaginary = self._of(index).chunk(2, dim=2)
        return rotated(known, real, -imaginary if backwards else imaginary)


class RotatE(_Distance):
    """`-||h e^{i r} - t||` over complex numbers, r the phases by which a relation turns them (Sun et al. 2019)."""

    COMPLEX = True

    def __init__(self, relations: int, dim: int, relation_dim: int, init: float) -> None:
        super().__init__(relations, dim, relation_dim, init)
        self.vectors = nn.Parameter(torch.empty(relations, dim // 2).uniform_(-math.pi, math.pi))

    def query(self, known: Tensor, index: Tensor, *, backwards: bool) -> Tensor:
        phases = self._of(index)
        return rotated(known, phases.cos(), -phases.sin() if backwards else phases.sin())


SCORES: dict[str, type[Score]] = {
    "transr": TransR,
    "transe": TransE,
    "distmult": DistMult,
    "complex": ComplEx,
    "rotate": RotatE,
}
"""By the name that a config has for them."""


def products(
    queries: Tensor,  # [G, P, D]
    candidates: Tensor,  # [G, N, D] or [1, N, D]
) -> Tensor:  # [G, P, N]
    """Dot products; where all groups have the same candidates, as one matrix product, whose gradient is one too."""
    if len(candidates) == len(queries):
        return torch.bmm(queries, candidates.transpose(1, 2))
    return queries @ candidates[0].T


def distances(
    queries: Tensor,  # [G, P, D]
    candidates: Tensor,  # [G, N, D] or [1, N, D]
) -> Tensor:  # [G, P, N]
    """Minus the Euclidean distances: (-2 q, |q|^2, 1) . (c, 1, |c|^2) is their square. In float32, what is nearer than
    a thousandth of the vectors' lengths is not told apart."""
    mine, theirs = (x.square().sum(2, keepdim=True) for x in (queries, candidates))
    left = torch.cat((-2 * queries, mine, torch.ones_like(mine)), 2)
    right = torch.cat((candidates, torch.ones_like(theirs), theirs), 2)
    return _MinusRoot.apply(products(left, right))


class _MinusRoot(torch.autograd.Function):
    """-sqrt(max(x, NEAREST)), in place of x: scores of all candidates are the largest of what a step holds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.clamp_(min=NEAREST).sqrt_().neg_())
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return (gradient / root).mul_(0.5).masked_fill_(root >= -math.sqrt(NEAREST), 0.0)


def rotated(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:  # [G, P, d], [G, 1, d / 2] twice -> [G, P, d]
    """The product of complex numbers with others."""
    a, b = x.chunk(2, dim=2)
    return torch.cat((a * real - b * imaginary, a * imaginary + b * real), dim=2)


def cubes(x: Tensor, *, of_complex: bool) -> Tensor:  # [..., d] -> [...]
    """Sum of the cubed moduli: N3 of Lacroix et al. 2018."""
    if not of_complex:
        return x.abs().pow(3).sum(-1)
    a, b = x.chunk(2, dim=-1)
    return (a.square() + b.square()).clamp(min=NEAREST).pow(1.5).sum(-1)
