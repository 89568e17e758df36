import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.ranks import ALONE, Ranks
from recsys.downstream.validation import Validation, gain, mean, row_losses, validate
from recsys.evaluate.metrics import normalized_entropy
from recsys.evaluate.recalibration import fit_recalibration
from recsys.train.distributed import current_environment
from recsys.train.exchange import ranks_of
from tests.distributed import run_ranks
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


def figures(ranks: Ranks) -> tuple[tuple[float, ...], Validation]:
    """What ranks find together, each with its own rows, some users on several of them, and of three one with none."""
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, 300).astype(np.float32), rng.standard_normal(300).astype(np.float32)
    users, better = rng.integers(-20, 20, 300) * 2**50, logits + labels / 3
    mine = slice(None) if ranks.world_size == 1 else rng.integers(0, 2, 300) == ranks.rank
    losses = [row_losses(labels[mine], said[mine], ranks) for said in (logits, better)]
    found = validate(
        labels[mine], better[mine], scores=(0.9,), most_passes=1, reads=True, tried={"with": 0.9}, ranks=ranks
    )
    return (mean(losses[0], ranks), *gain(*losses, users[mine], ranks)), found


def on_ranks() -> tuple[tuple[float, ...], Validation]:
    return figures(ranks_of(current_environment()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("gloo", [False, True])
def test_ranks_come_to_what_one_process_comes_to(world_size: int, gloo: bool) -> None:
    (entropy, gained, error), whole = figures(ALONE)
    assert gained > error > 0
    found = run_ranks(on_ranks, world_size) if gloo else run_threads(figures, world_size)
    assert found == [found[0]] * world_size
    sums, shared = found[0]
    assert sums == pytest.approx((entropy, gained, error), rel=1e-9)
    for name, value in vars(whole).items():
        assert getattr(shared, name) == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    assert shared.auc == whole.auc, "counted, not added"
    if world_size == 1:
        assert (sums, shared) == ((entropy, gained, error), whole)
