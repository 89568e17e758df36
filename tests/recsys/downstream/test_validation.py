import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.ranks import ALONE, Ranks
from recsys.downstream.validation import Validation, gain, mean, row_losses, validate
from recsys.evaluate.metrics import normalized_entropy
from recsys.evaluate.recalibration import fit_recalibration
from tests.recsys.data.threads import run_threads


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


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_come_to_what_one_process_comes_to(world_size: int) -> None:
    """Each with its own rows, some users on several of them, and a rank that has none of three."""
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, 300).astype(np.float32), rng.standard_normal(300).astype(np.float32)
    users, better = rng.integers(-20, 20, 300) * 2**50, logits + labels / 3
    of = rng.integers(0, 2, 300)

    def found(ranks: Ranks) -> tuple[float, float, float, Validation]:
        mine = slice(None) if ranks.world_size == 1 else of == ranks.rank
        losses = [row_losses(labels[mine], said[mine], ranks) for said in (logits, better)]
        figures = validate(
            labels[mine], better[mine], scores=(0.9,), most_passes=1, reads=True, tried={"with": 0.9}, ranks=ranks
        )
        return mean(losses[0], ranks), *gain(*losses, users[mine], ranks), figures

    entropy, gained, error, figures = found(ALONE)
    assert gained > error > 0
    shared = run_threads(found, world_size)
    assert shared == [shared[0]] * world_size
    assert shared[0][:3] == pytest.approx((entropy, gained, error), rel=1e-9)
    for name, value in vars(figures).items():
        other = getattr(shared[0][3], name)
        assert other == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    assert figures.auc == shared[0][3].auc, "counted, not added"
