"""Figures of predictions that several ranks have are those of all of them on one."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.ranks import ALONE, Ranks
from recsys.evaluate.measures import measures
from recsys.evaluate.metrics import roc_auc
from recsys.evaluate.recalibration import Recalibration
from recsys.shared_figures import shared_auc, shared_figures, shared_loss, shared_recalibration
from tests.recsys.data.threads import run_threads

BY = Recalibration(0.5, 0.1)
SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.5, -1.5, 1e-38, -3e38]), st.floats(-30, 30, width=32))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 1.0]), SCORES, st.integers(0, 3)), max_size=40),
    world_size=st.integers(1, 4),
)
def test_auc_is_that_of_all_rows(rows: list[tuple[float, float, int]], world_size: int) -> None:
    labels, scores = (np.array(column, np.float32) for column in (list(zip(*rows, strict=True)) or ([], [], []))[:2])
    of = np.array([rank % world_size for *_, rank in rows], np.int64)

    def found(ranks: Ranks) -> float:
        mine = of == ranks.rank
        return shared_auc(labels[mine], scores[mine], ranks)

    wanted = roc_auc(labels, scores)
    np.testing.assert_allclose(run_threads(found, world_size), [wanted] * world_size, rtol=1e-12)


@pytest.mark.parametrize("is_value", [False, True])
@pytest.mark.parametrize("kind", ["usual", "no rows", "all 0", "all alike"])
def test_figures_are_those_of_all_rows(is_value: bool, kind: str) -> None:
    random = np.random.default_rng(0)
    rows = 0 if kind == "no rows" else 500
    labels = (
        random.poisson(0.7, rows).astype(np.float32) if is_value else (random.random(rows) < 0.3).astype(np.float32)
    )
    labels = {"all 0": np.zeros(rows, np.float32), "all alike": np.ones(rows, np.float32)}.get(kind, labels)
    logits = (random.normal(size=rows) + labels).astype(np.float32)
    wanted = measures(is_value=is_value).figures(labels, 0.5 * logits.astype(np.float64) + 0.1)
    wanted |= {"rows": rows, "positives": int((labels > 0).sum())}

    def found(ranks: Ranks) -> dict[str, float]:
        mine = np.arange(rows) % 7 % ranks.world_size == ranks.rank
        return shared_figures(labels[mine], logits[mine], BY, is_value=is_value, ranks=ranks)

    for figures in (shared_figures(labels, logits, BY, is_value=is_value, ranks=ALONE), *run_threads(found, 3)):
        assert figures == pytest.approx(wanted, rel=1e-9, nan_ok=True)
    for loss in run_threads(partial(shared_loss_of, labels, logits, is_value), 3):
        assert loss == pytest.approx(wanted["deviance" if is_value else "ne"], rel=1e-9, nan_ok=True)


def shared_loss_of(labels: np.ndarray, logits: np.ndarray, is_value: bool, ranks: Ranks) -> float:
    mine = np.arange(len(labels)) % 7 % ranks.world_size == ranks.rank
    return shared_loss(labels[mine], logits[mine], BY, is_value=is_value, ranks=ranks)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.floats(-20, 20, width=32), st.integers(0, 3)), max_size=40),
    world_size=st.integers(1, 4),
    is_value=st.booleans(),
)
def test_a_recalibration_is_that_of_all_rows(
    rows: list[tuple[int, float, int]], world_size: int, is_value: bool
) -> None:
    """Ranks without a row, rows of one class and rows that a threshold tells apart included."""
    values, logits, of = (np.array(column) for column in (list(zip(*rows, strict=True)) or ([], [], [])))
    labels = values.astype(np.float32) if is_value else (values > 1).astype(np.float32)
    logits = logits.astype(np.float32)
    whole = measures(is_value=is_value).recalibrate(labels, logits)

    def found(ranks: Ranks) -> Recalibration:
        mine = of % ranks.world_size == ranks.rank
        return shared_recalibration(labels[mine], logits[mine], is_value=is_value, ranks=ranks)

    assert shared_recalibration(labels, logits, is_value=is_value, ranks=ALONE) == whole
    shared = run_threads(found, world_size)
    assert shared == [shared[0]] * world_size
    assert (shared[0].scale, shared[0].bias) == pytest.approx((whole.scale, whole.bias), rel=1e-6, abs=1e-6)


def test_ranks_on_unlike_processors_come_to_one_recalibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose linear algebra differs in its last bits: they take as many steps, and halve them as often."""
    random, solve, unlike = np.random.default_rng(1), np.linalg.lstsq, threading.local()
    labels = (random.random(300) < 0.3).astype(np.float32)
    logits = (3 * random.normal(size=300) + labels).astype(np.float32)

    def solved(*arguments: Any, **options: Any) -> Any:
        step, *rest = solve(*arguments, **options)
        return step * (1 + unlike.rank * 1e-9) + unlike.rank * 1e-10, *rest

    def found(ranks: Ranks) -> Recalibration:
        unlike.rank = ranks.rank
        mine = np.arange(300) % ranks.world_size == ranks.rank
        return shared_recalibration(labels[mine], logits[mine], is_value=False, ranks=ranks)

    wanted = shared_recalibration(labels, logits, is_value=False, ranks=ALONE)
    monkeypatch.setattr(np.linalg, "lstsq", solved)
    results = run_threads(found, 3)
    assert results == [results[0]] * 3
    assert (results[0].scale, results[0].bias) == pytest.approx((wanted.scale, wanted.bias), rel=1e-6)
