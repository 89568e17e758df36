from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor import ShardedTensor

from recsys.config import ConfigError, TrainConfig
from recsys.train import trainer
from recsys.train.distributed import Environment
from recsys.train.interrupt import Interrupted
from recsys.train.run import TrainResult
from recsys.train.schedule import share_of
from recsys.train.trainer import fit
from tests.recsys.train.toy import TASKS, make_stream, make_task, whole_state

CONFIG = TrainConfig(batch_size=32, log_every=1, checkpoint_every=4, sparse_lr=0.1, dense_lr=0.01)


@given(total=st.integers(1, 300), warmup=st.floats(0, 0.9), final=st.floats(0, 1))
def test_the_rates_rise_once_and_fall_once(total: int, warmup: float, final: float) -> None:
    shares = [share_of(step, total, warmup, final) for step in range(total)]
    top = next((step for step in range(total) if step >= warmup * total), total)
    assert all(0 < share <= 1 for share in shares[:top])
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert all(share >= final - 1e-9 for share in shares[top:])
    if top < total:
        assert shares[top] == pytest.approx(1, abs=2 / max(1, total - warmup * total))


def test_known_shares() -> None:
    assert [share_of(step, 10, 0.3, 0.0) for step in (0, 1, 2, 3)] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert [share_of(step, 10, 0.0, 0.5) for step in (0, 5, 9)] == pytest.approx([1, 0.75, 0.55])


def trained(environment: Environment, steps: int, config: TrainConfig, out: Path | None = None, **of) -> TrainResult:
    return fit(make_task(dropout=0.0), make_stream(steps, **of), config, environment, tasks=TASKS, out=out, title=None)


def test_a_step_has_its_own_rate_in_tables_and_elsewhere(environment: Environment, monkeypatch: pytest.MonkeyPatch):
    """A rate of 0 after the first step: later ones change nothing, neither tables nor dense parameters."""
    once = trained(environment, 1, CONFIG)
    monkeypatch.setattr("recsys.train.schedule.share_of", lambda step, *_: float(step == 0))
    still = trained(environment, 5, replace(CONFIG, final_lr=0.5))
    for name, value in whole_state(once.model).items():
        torch.testing.assert_close(whole_state(still.model)[name], value)
    monkeypatch.setattr("recsys.train.schedule.share_of", lambda step, *_: 0.0)
    none, start = trained(environment, 5, replace(CONFIG, final_lr=0.5)), trained(environment, 1, CONFIG)
    changed = [
        name
        for name, value in whole_state(start.model).items()
        if not torch.equal(whole_state(none.model)[name], value)
    ]
    assert any("bags" in name for name in changed)
    assert any("over" in name for name in changed)


def test_a_resumed_run_goes_on_with_its_rates(environment: Environment, tmp_path: Path):
    config = replace(CONFIG, warmup=0.3, final_lr=0.1)
    whole = trained(environment, 6, config, tmp_path / "whole", epochs=2)
    with pytest.raises(Interrupted):
        trained(environment, 6, config, tmp_path / "broken", epochs=2, stop_at=7)
    resumed = trained(environment, 6, config, tmp_path / "broken", epochs=2)
    for name, value in whole_state(whole.model).items():
        assert torch.equal(whole_state(resumed.model)[name], value), name


def test_a_clipped_gradient_moves_less(environment: Environment):
    """AdamW divides by the gradient's own size; a tiny bound lets its epsilon count."""
    free, bound = trained(environment, 3, CONFIG), trained(environment, 3, replace(CONFIG, clip_norm=1e-9))
    start = make_task(dropout=0.0).state_dict()
    dense = {name: value for name, value in whole_state(free.model).items() if "over" in name}
    assert dense
    for name, value in dense.items():
        moved = [(whole_state(run.model)[name] - start[name]).abs().sum() for run in (free, bound)]
        assert moved[1] < moved[0] / 2, name
        assert value.isfinite().all()


def accumulators(run: TrainResult) -> dict[str, torch.Tensor]:
    """Of the tables, by name."""
    state = run.model.fused_optimizer.state_dict()["state"]
    return {
        f"{table}/{name}": value.local_shards()[0].tensor.clone() if isinstance(value, ShardedTensor) else value.clone()
        for table, values in state.items()
        for name, value in values.items()
    }


def test_a_warm_start_keeps_a_share_of_the_accumulators(environment: Environment, tmp_path: Path):
    """And no more than that changes; a training of its own keeps nothing, whatever the share is."""
    before = trained(environment, 6, CONFIG, tmp_path / "before")
    summed, weights = accumulators(before), whole_state(before.model)
    weights = {name: value.clone() for name, value in weights.items()}
    assert sum(value.sum() for value in summed.values()) > 0
    start, config = tmp_path / "before/checkpoints/step-00000006", replace(CONFIG, keep_accumulators=0.25)
    seen = list[tuple[dict, dict]]()

    def look(_: torch.nn.Module) -> None:
        run = runs[-1]
        seen.append((accumulators(run), {name: value.clone() for name, value in whole_state(run.model).items()}))

    runs = list[SimpleNamespace]()
    prepare = trainer._prepare

    def prepared(*arguments):
        runs.append(SimpleNamespace(model=(run := prepare(*arguments)).model))
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_prepare", prepared)
        fit(
            make_task(dropout=0.0),
            make_stream(6),
            config,
            environment,
            tasks=TASKS,
            out=tmp_path / "after",
            start=start,
            title=None,
            before=look,
        )
    ((kept, same),) = seen
    for name, value in summed.items():
        torch.testing.assert_close(kept[name], 0.25 * value, msg=name)
    assert all(torch.equal(same[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"final_lr": 1.5}, "final_lr is 1.5"),
        ({"clip_norm": -1.0}, "clip_norm is -1"),
        ({"keep_accumulators": 0.0}, "keep_accumulators is 0.0; use a share above 0"),
    ],
)
def test_bad_values_are_named(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**values)
