"""What labels that are values are learned by."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.config import NetworkConfig
from recsys.data.batch import Batch
from recsys.data.label_facts import QUANTILES, LabelFacts
from recsys.data.schema import Label
from recsys.models.objective import STEEPEST, Objective, safe_exp, unfinished_logit
from recsys.models.ranker import RankerLoss, joint_log_mean
from recsys.models.rankers import build_ranker
from tests.recsys.models.support import full_schema, random_batch

LABELS = (Label(name="click"), Label(name="revenue", kind="value"))


def batch_of(values: Tensor) -> Batch:
    """Rows that are all clicked, with these values."""
    batch = random_batch(full_schema(), len(values))
    batch.labels = torch.stack([torch.ones_like(values), values], dim=1)
    batch.label_mask = torch.ones_like(batch.labels, dtype=torch.bool)
    return batch


def objective(kind: str, mean: float) -> Objective:
    return Objective(LABELS, LabelFacts(means={"revenue": mean}), kind)


@pytest.mark.parametrize("kind", ["poisson", "weighted"])
@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(0, 400).map(lambda x: x / 4), min_size=1, max_size=8).filter(any),
    unit=st.sampled_from([1e-4, 1.0, 3e5]),
    mean=st.floats(0.1, 100),
)
def test_the_loss_is_least_at_the_mean(kind: str, values: list[float], unit: float, mean: float) -> None:
    """Whatever the unit is, and whatever the mean of all rows that are trained on."""
    y = torch.tensor(values) * unit
    batch, loss = batch_of(y), objective(kind, mean * unit)
    z = torch.full((len(y), 2), y.mean().log().item(), requires_grad=True)
    best = loss(z, batch, batch.label_mask)[1]
    best.backward()
    scale = max(1.0, y.mean().item() / (mean * unit))
    assert abs(z.grad[:, 1].sum().item()) < 1e-4 * scale
    for step in (-0.5, 0.5):
        assert loss(z + step, batch, batch.label_mask)[1] > best


@pytest.mark.parametrize("kind", ["poisson", "weighted"])
def test_the_unit_of_a_value_is_nothing_to_the_loss(kind: str) -> None:
    y, z = torch.tensor([0.0, 1.0, 7.5]), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    plain, scaled = batch_of(y), batch_of(1000 * y)
    in_seconds, in_ms = objective(kind, 2.0), objective(kind, 2000.0)
    shift = torch.tensor([0.0, math.log(1000)])
    torch.testing.assert_close(
        in_ms(z + shift, scaled, scaled.label_mask), in_seconds(z, plain, plain.label_mask), atol=1e-4, rtol=1e-4
    )


def test_weights_and_masks_are_those_of_values_too() -> None:
    y, z = torch.tensor([1.0, 4.0, 9.0]), torch.zeros(3, 2)
    batch = batch_of(y)
    batch.weights = torch.tensor([1.0, 0.0, 3.0])
    got = objective("poisson", 1.0)(z, batch, batch.label_mask)[1].item()
    assert got == pytest.approx((1 * 1 + 3 * 1) / 4)  # exp(0) - y * 0
    got = objective("poisson", 1.0)(z + 1, batch, torch.tensor([True, True, False]).unsqueeze(1))[1].item()
    assert got == pytest.approx(math.e - 1)


@pytest.mark.parametrize("kind", ["poisson", "weighted"])
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_no_logit_is_too_great(kind: str, logit: float) -> None:
    z = torch.full((3, 2), logit, requires_grad=True)
    batch = batch_of(torch.tensor([0.0, 1.0, 3e8]))
    loss = objective(kind, 1e8)(z, batch, batch.label_mask).sum()
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert (z.grad[:, 1].sum() > 0) == (logit > 0)


@given(x=st.floats(-50, 60, width=32))
def test_safe_exp_is_exp_and_then_its_tangent(x: float) -> None:
    y = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = safe_exp(y)
    (slope,) = torch.autograd.grad(value, y)
    at = math.exp(min(x, STEEPEST))
    assert value.item() == pytest.approx(at + max(x - STEEPEST, 0) * at)
    assert slope.item() == pytest.approx(at)


def test_a_value_over_the_entire_space_is_rate_times_expectation() -> None:
    batch = batch_of(torch.tensor([5.0, 0.0, 2.0, 0.0]))
    batch.labels[:, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    batch.label_mask[:, 1] = batch.labels[:, 0] > 0
    learned = objective("poisson", 3.0)
    rate, mean = math.log(0.5 / 0.5), math.log(3.5)  # half are clicked, these have 3.5
    z = torch.tensor([[rate, mean]]).expand(4, 2).clone().requires_grad_()
    loss, output = RankerLoss({1: 0}, learned)(z, batch)
    loss.backward()
    assert z.grad.sum(0).abs().max() < 1e-5
    torch.testing.assert_close(joint_log_mean(z[:, 1], z[:, 0]).exp(), torch.full((4,), 1.75))
    assert torch.equal(output.mask, batch.label_mask)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(kind="dlrm", embedding_dim=4, hidden=(8,)),
        NetworkConfig(kind="dlrm", embedding_dim=4, hidden=()),
        NetworkConfig(kind="dcnv2", embedding_dim=4, hidden=(8, 4)),
        NetworkConfig(kind="dhen", embedding_dim=4, hidden=(8,), tokens=2),
    ],
)
def test_every_ranker_begins_with_the_levels(config: NetworkConfig) -> None:
    torch.manual_seed(0)
    ranker = build_ranker(full_schema(), config, tasks=2)
    before = [layer.bias.detach().clone() for layer in ranker.outputs()]
    ranker.raise_logits(objective("poisson", 20.0).levels)
    added = torch.cat([layer.bias - old for layer, old in zip(ranker.outputs(), before, strict=True)])
    torch.testing.assert_close(added, torch.tensor([0.0, math.log(20)]))


DELAYED = Label(name="sale", time="sold_at", window="10h", delayed="corrected")


def waiting(elapsed: Tensor, labels: Tensor) -> Batch:
    """Rows of two tasks: one that is delayed, and one that is not."""
    batch = random_batch(full_schema(), len(labels))
    batch.labels = torch.stack([labels, labels], dim=1).float()
    batch.label_mask = torch.ones_like(batch.labels, dtype=torch.bool)
    batch.elapsed = torch.stack([elapsed, torch.ones_like(elapsed)], dim=1)
    return batch


def corrected(delays: Tensor) -> Objective:
    facts = LabelFacts(as_of=1, delays={"sale": delays.float().sort().values.numpy()})
    return Objective((DELAYED, Label(name="click")), facts)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_likelihood_of_what_may_still_come(rows: int, seed: int) -> None:
    """log p where it has come, log(1 - p F(e)) where it has not, log(1 - p) where it cannot any more."""
    generator = torch.Generator().manual_seed(seed)
    delays = torch.rand(QUANTILES, generator=generator)
    elapsed = (torch.rand(rows, generator=generator) * 1.3).clamp(max=1)
    labels, z = torch.rand(rows, generator=generator) < 0.4, 3 * torch.randn(rows, 2, generator=generator)
    batch = waiting(elapsed, labels)
    got = corrected(delays)(z, batch, batch.label_mask)
    wanted = []
    for row in range(rows):
        p, come = 1 / (1 + math.exp(-z[row, 0].item())), float((delays <= elapsed[row]).double().mean())
        assert come == 1 or elapsed[row] < 1
        wanted.append(-math.log(p) if labels[row] else -math.log(1 - p * come))
    assert got[0].item() == pytest.approx(sum(wanted) / rows, rel=1e-4, abs=1e-6)
    plain = Objective((Label(name="sale"), Label(name="click")))(z, batch, batch.label_mask)
    torch.testing.assert_close(got[1], plain[1])
    assert torch.equal(batch.known[:, 0], elapsed >= 1)
    assert batch.known[:, 1].all()


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("come", [0.0, 2**-10, 0.5, 1 - 2**-10, 1.0])
def test_an_unfinished_logit_is_exact_and_has_a_gradient(logit: float, come: float) -> None:
    z = torch.tensor([logit], requires_grad=True)
    loss = torch.nn.functional.softplus(unfinished_logit(z, torch.tensor([come])))
    loss.backward()
    p = 1 / (1 + math.exp(-logit)) if logit > -100 else 0.0
    wanted = -math.log1p(-p * come) if p * come < 1 - 1e-9 else logit
    assert loss.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert z.grad.isfinite().all()
    assert z.grad.item() >= -1e-6


def best(objective: Objective, batch: Batch) -> Tensor:
    """The logits, the same for all rows, of the least loss, [T]."""
    z = torch.zeros(batch.labels.shape[1], requires_grad=True)
    steps = torch.optim.LBFGS([z], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        steps.zero_grad()
        value = objective(z.expand(len(batch), -1), batch, batch.label_mask).sum()
        value.backward()
        return value

    steps.step(loss)
    return z.detach()


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_the_true_rate_is_what_is_learned(rate: float) -> None:
    """Of all seeds, that of a model which takes open rows for negatives is far too low."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows, window = 20_000, 1.0
        delay = torch.empty(rows).exponential_(2.0, generator=generator) % window
        comes, elapsed = torch.rand(rows, generator=generator) < rate, torch.rand(rows, generator=generator) * 1.2
        seen = comes & (delay <= elapsed)
        old = torch.empty(1000).exponential_(2.0, generator=generator) % window
        batch = waiting(elapsed.clamp(max=1), seen)
        learned = corrected(old.sort().values[torch.arange(QUANTILES) * 1000 // QUANTILES])
        right, naive = torch.sigmoid(best(learned, batch)).tolist()
        assert right == pytest.approx(rate, rel=0.12)
        assert naive < 0.8 * rate
