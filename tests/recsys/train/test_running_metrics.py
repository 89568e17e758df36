import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recsys.evaluate.values import normalized_deviance
from recsys.train.distributed import Environment
from recsys.train.running_metrics import (
    BINS,
    LOGIT_RANGE,
    LossError,
    Metrics,
    binned_auc,
    deviance_of_sums,
    entropy_of_sums,
    score_sums,
    value_sums,
)
from tests.recsys.train.toy import Output


def output(rows: int, seed: int, tasks: int = 2, rate: float = 0.3) -> Output:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, tasks, generator=generator) < rate).float()
    logits = torch.randn(rows, tasks, generator=generator) * 2 + labels
    mask = torch.rand(rows, tasks, generator=generator) < 0.8
    return Output({"a": torch.tensor(0.5), "b": torch.tensor(0.25)}, logits, labels, mask)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 400), seed=st.integers(0, 1000), rate=st.sampled_from([0.01, 0.3, 0.9]))
def test_sums_against_scikit_learn(rows: int, seed: int, rate: float):
    one = output(rows, seed, rate=rate)
    entropy, counts = score_sums(one.logits, one.labels, one.mask)
    for task in range(2):
        valid = one.mask[:, task]
        labels, logits = one.labels[valid, task], one.logits[valid, task]
        assert counts[task].sum() == len(labels)
        ne, auc = entropy_of_sums(entropy[task], counts[task]), binned_auc(counts[task])
        if labels.unique().numel() < 2:
            assert math.isnan(ne)
            assert math.isnan(auc)
            continue
        base = labels.double().mean().item()
        base_entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
        assert ne == pytest.approx(log_loss(labels, logits.double().sigmoid()) / base_entropy, rel=1e-5)
        bins = ((logits + LOGIT_RANGE) * ((BINS - 1) / (2 * LOGIT_RANGE))).round()
        assert auc == pytest.approx(roc_auc_score(labels, bins), rel=1e-9)


def test_auc_is_exact_up_to_bins_on_many_rows():
    one = output(20_000, 3)
    _, counts = score_sums(one.logits, one.labels, one.mask)
    valid = one.mask[:, 0]
    assert binned_auc(counts[0]) == pytest.approx(roc_auc_score(one.labels[valid, 0], one.logits[valid, 0]), abs=1e-4)


def test_ties_count_half_and_extreme_scores_are_kept():
    logits, labels = torch.tensor([[0.0], [0.0], [1e6], [-1e6]]), torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    _, counts = score_sums(logits, labels, torch.ones(4, 1, dtype=torch.bool))
    assert binned_auc(counts[0]) == pytest.approx(3.5 / 4)


def test_window_and_lifetime(environment: Environment):
    metrics = Metrics(["ctr", "cvr"], environment.device)
    first, second = output(200, 1), output(300, 2)
    metrics.update(1, torch.tensor(1.0), first)
    metrics.update(2, torch.tensor(3.0), first)
    metrics.fold()
    record = metrics.take_window(seconds=2.0)
    assert record["loss"] == 2.0
    assert record["loss/a"] == 0.5
    assert record["samples_per_second"] == 200.0
    assert record["ne/ctr"] == record["lifetime_ne/ctr"]
    metrics.update(3, torch.tensor(5.0), second)
    metrics.fold()
    record = metrics.take_window(seconds=1.0)
    entropy, counts = score_sums(second.logits, second.labels, second.mask)
    assert record["auc/cvr"] == binned_auc(counts[1])
    rows = [torch.cat([getattr(x, name) for x in (first, first, second)]) for name in ("logits", "labels", "mask")]
    entropy, counts = score_sums(*rows)
    assert record["lifetime_ne/ctr"] == pytest.approx(entropy_of_sums(entropy[0], counts[0]))
    assert record["lifetime_auc/cvr"] == pytest.approx(binned_auc(counts[1]))
    assert metrics.take_window(1.0) == {}


def test_figures_of_one_kind_of_label_are_left_out(environment: Environment):
    metrics = Metrics(["ctr"], environment.device)
    one = output(10, 1, tasks=1)._replace(labels=torch.zeros(10, 1))
    metrics.update(1, torch.tensor(1.0), one)
    metrics.fold()
    assert "ne/ctr" not in metrics.take_window(1.0)


def test_state_continues_where_it_was(environment: Environment):
    first, second = Metrics(["ctr", "cvr"], environment.device), Metrics(["ctr", "cvr"], environment.device)
    first.update(1, torch.tensor(1.0), output(50, 1))
    first.fold()
    second.load_state(first.state(), first.parts)
    for metrics in (first, second):
        metrics.update(2, torch.tensor(2.0), output(50, 2))
        metrics.fold()
    assert first.take_window(1.0) == second.take_window(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_names_step_and_part(environment: Environment, value: float):
    metrics = Metrics(["ctr", "cvr"], environment.device)
    good, bad = output(5, 1), output(5, 1)
    bad.losses["b"] = torch.tensor(value)
    for step, (loss, one) in enumerate([(1.0, good), (value, bad), (value, bad)], start=7):
        metrics.update(step, torch.tensor(loss), one)
    with pytest.raises(LossError, match=r"loss of 'b' is not finite at step 8: lower training\.dense_lr"):
        metrics.fold()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 40), seed=st.integers(0, 1000), same=st.booleans())
def test_deviance_of_sums_is_that_of_the_rows(rows: int, seed: int, same: bool):
    one = output(rows, seed)
    values = one.labels * (2.0 if same else one.logits.abs().round(decimals=2) + 1)
    sums = value_sums(one.logits, values, one.mask)
    for task in range(2):
        valid = one.mask[:, task]
        wanted = normalized_deviance(values[valid, task].numpy(), one.logits[valid, task].numpy())
        assert deviance_of_sums(sums[task]) == pytest.approx(wanted, rel=1e-4, nan_ok=True)


def test_a_value_is_logged_by_its_deviance(environment: Environment):
    metrics = Metrics(("click", "spent"), environment.device, ("spent",))
    one = output(100, 0)
    one.labels[:, 1] *= 7.5
    metrics.update(1, torch.tensor(0.5), one)
    metrics.fold()
    state = metrics.state()
    record = metrics.take_window(1.0)
    valid = one.mask[:, 1]
    wanted = normalized_deviance(one.labels[valid, 1].numpy(), one.logits[valid, 1].numpy())
    assert record["deviance/spent"] == pytest.approx(wanted, rel=1e-6)
    assert record.keys() >= {"ne/click", "auc/click", "lifetime_deviance/spent"}
    assert not record.keys() & {"ne/spent", "auc/spent", "lifetime_ne/spent"}
    again = Metrics(("click", "spent"), environment.device, ("spent",))
    again.load_state(state, metrics.parts)
    assert again.take_window(1.0) == record
    old = Metrics(("click", "spent"), environment.device)
    old.load_state({key: x for key, x in state.items() if not key.endswith(".values")}, metrics.parts)
    assert old.take_window(1.0)["ne/click"] == record["ne/click"]
