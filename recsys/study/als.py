"""iALS, the matrix factorisation that any retrieval from implicit feedback must beat, by the library `implicit`.

Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (2008). Well tuned it holds its own
against most of what came after it (Rendle et al., arXiv 2110.14037), hence a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.downstream.retrieval import positions
from recsys.study.moments import Log

ITERATIONS = 15


class Settings(NamedTuple):
    """Of one factorisation."""

    factors: int
    regularization: float
    alpha: float
    """Weight of a positive; everything else has 1."""

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.factors} factors, regularization {self.regularization:g}, alpha {self.alpha:g}"


GRID = tuple(Settings(*each) for each in product((16, 64), (0.1, 10.0), (1.0, 10.0)))


def is_installed() -> bool:
    """Whether there is `implicit`: it comes with the extra `study`."""
    return find_spec("implicit") is not None


@dataclass(frozen=True)
class Factors:
    """What iALS learned, and how popular its items were: what a user that it does not know gets."""

    user_ids: Tensor  # int64 [U], ascending
    users: Tensor  # float32 [U, F]
    item_ids: Tensor  # int64 [N], ascending
    items: Tensor  # float32 [N, F]
    popularity: Tensor  # float32 [N]

    def index(self, user_ids: Tensor) -> tuple[Tensor, Tensor]:  # int64 [n] -> float32 [n, F + 1], float32 [N, F + 1]
        """Vectors of users and items: [u, 0] . [v, popularity], or [0, 1] of a user that is not known."""
        rows = positions(self.user_ids, user_ids)
        known = (rows >= 0)[:, None]
        queries = torch.cat([torch.where(known, self.users[rows.clamp(min=0)], 0.0), (~known).float()], dim=1)
        return queries, torch.cat([self.items, self.popularity[:, None]], dim=1)


def factorise(log: Log, settings: Settings) -> Factors:
    """Factorise the positives of a log, each pair once; needs `implicit`."""
    chosen = log.only(log.positive)
    user_ids, users = np.unique(chosen.users, return_inverse=True)
    item_ids, items = np.unique(chosen.items, return_inverse=True)
    user_factors, item_factors = fit(users, items, (len(user_ids), len(item_ids)), settings, ITERATIONS)
    popularity = np.bincount(items).astype(np.float32)
    learned = (user_ids, user_factors, item_ids, item_factors, popularity)
    return Factors(*(torch.from_numpy(each) for each in learned))


def fit(
    users: np.ndarray,  # int [P], rows of the first factors
    items: np.ndarray,  # int [P], rows of the second
    shape: tuple[int, int],
    settings: Settings,
    iterations: int,
) -> tuple[np.ndarray, np.ndarray]:  # float32 [U, F], [N, F]
    """Factorise these pairs, each once, of U users and N items."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
    matrix.data[:] = 1.0  # a pair that came again was added up
    with threadpool_limits(1, "blas"):  # its own threads are many: BLAS's would wait for them
        model = AlternatingLeastSquares(
            factors=settings.factors,
            regularization=settings.regularization,
            alpha=settings.alpha,
            iterations=iterations,
            random_state=0,
        )
        model.fit(matrix, show_progress=False)
    return np.asarray(model.user_factors), np.asarray(model.item_factors)
