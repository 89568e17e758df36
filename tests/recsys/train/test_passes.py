"""Which passes of a training are the best, and what is said of them."""

from __future__ import annotations

import pytest
import torch

from recsys.train.passes import Passes, best_passes, is_settled, told
from recsys.train.running_metrics import LossError


def test_the_best_pass_of_each_score_is_the_first_of_several() -> None:
    scores = [(0.5, 0.9), (0.5, 0.7), (0.6, 0.7)]
    assert best_passes([]) == ()
    assert best_passes(scores) == (0, 1)
    assert [is_settled(scores[:count], 1) for count in range(4)] == [False, False, False, True]
    assert not is_settled(scores, 2)
    assert is_settled([*scores, (0.9, 0.9)], 2)
    assert not is_settled([*scores, (0.4, 0.9)], 2)


def test_what_is_said_of_a_pass() -> None:
    assert told([(0.5,)], 4, "ne") == "pass 1 of at most 4: validation ne 0.5000, the best so far"
    one = [(0.5, 0.9), (0.5, 0.7)]
    assert told(one, 4, "ne") == "pass 2 of at most 4: validation ne 0.5000, 0.7000, 0.7000 the best so far"
    last = told([*one, (0.6, 0.7)], 4, "ne")
    assert last == "pass 3 of at most 4: validation ne 0.6000, 0.7000, no better than 0.5000, 0.7000: this was the last"
    waits = told([*one, (0.6, 0.7)], 4, "ne", patience=2)
    assert waits == "pass 3 of at most 4: validation ne 0.6000, 0.7000, no better than 0.5000, 0.7000"
    assert told([*one, (0.6, 0.7)], 3, "ne", patience=2) == f"{waits.replace('4:', '3:')}: this was the last"


def test_weights_are_kept_of_passes_that_are_the_best_and_no_others() -> None:
    model, scores = torch.nn.Linear(2, 1), iter([(0.5, 0.9), (0.6, 0.8), (0.7, 0.7), (0.7, 0.8)])
    passes, weights = Passes(model, lambda _: next(scores), keeps=True), []
    for improves in (True, True, True, False):
        torch.nn.init.normal_(model.weight)
        weights.append(model.weight.detach().clone())
        assert passes.evaluate() is improves
    for number in (0, 2):
        passes.bring(number)
        assert torch.equal(model.weight, weights[number])
    for number in (1, 3):
        with pytest.raises(KeyError):
            passes.bring(number)


def test_a_score_that_is_not_finite_is_named() -> None:
    passes = Passes(torch.nn.Linear(2, 1), lambda _: (0.5, float("nan")), keeps=True)
    with pytest.raises(LossError, match=r"the score after epoch 1 is 0\.5, nan: lower the learning rates"):
        passes.evaluate()
