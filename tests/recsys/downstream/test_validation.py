import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.downstream.validation import gain, row_losses
from recsys.evaluate.metrics import normalized_entropy
from recsys.evaluate.recalibration import fit_recalibration


@given(st.integers(0, 2**32 - 1))
def test_the_mean_of_the_rows_losses_is_the_entropy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.permutation([0.0, 1.0, *rng.integers(0, 2, 20)]), rng.standard_normal(22)
    entropy = normalized_entropy(labels, fit_recalibration(labels, logits)(logits))
    assert row_losses(labels, logits).mean() == pytest.approx(entropy)


def test_a_gain_is_as_sure_as_there_are_users_that_share_it() -> None:
    """The same 400 differences, of as many users and of four who are each lucky or not."""
    rng = np.random.default_rng(0)
    without, luck = np.ones(400), np.repeat([0.3, -0.1, 0.2, 0.0], 100)
    alone, error = gain(without, without - rng.permutation(luck), np.arange(400))
    together, wider = gain(without, without - luck, np.repeat([7, -1, 2**62, 0], 100))
    assert alone == pytest.approx(together) == pytest.approx(0.1)
    assert error == pytest.approx(luck.std() / 20)
    assert wider == pytest.approx(luck.std() / 2)


def test_nothing_gained_is_nothing_for_certain() -> None:
    losses = np.linspace(0, 1, 5)
    assert gain(losses, losses, np.arange(5)) == (0, 0)
