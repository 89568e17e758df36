import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recsys.config import TrainConfig
from recsys.data.batch import Batch
from recsys.train import sharding
from recsys.train.checkpoint import CheckpointError, latest, load_model, read_progress
from recsys.train.distributed import Environment
from recsys.train.interrupt import Interrupted, StopSignals
from recsys.train.passes import Scores
from recsys.train.predict import predict
from recsys.train.run import TrainResult
from recsys.train.running_metrics import LossError
from recsys.train.trainer import fit
from tests.recsys.train.toy import TASKS, ListStream, Output, make_stream, make_task, plain_task, whole_state

CONFIG = TrainConfig(batch_size=32, log_every=1, checkpoint_every=4, sparse_lr=0.1, dense_lr=0.01)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_speed(records: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in record.items() if key != "samples_per_second"} for record in records]


def test_what_is_taken_of_a_gpu_is_known_to_the_planner(environment: Environment, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[object, ...]] = []
    plan = sharding.topology_of

    def noted(environment: Environment, *memory: object) -> object:
        told.append(memory)
        return plan(environment)

    monkeypatch.setattr(sharding, "topology_of", noted)
    fit(make_task(), make_stream(1), CONFIG, environment, tasks=TASKS, title=None, taken=7)
    assert told == [(None, 7)]


def test_resumed_run_is_the_uninterrupted_one(environment: Environment, tmp_path: Path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = fit(make_task(), make_stream(6, epochs=2), CONFIG, environment, tasks=TASKS, out=whole, title="toy")
    assert "toy 12/12 loss" in capsys.readouterr().out
    stream = make_stream(6, epochs=2, stop_at=10)  # the pipeline reads ahead
    with pytest.raises(Interrupted) as caught:
        fit(make_task(), stream, CONFIG, environment, tasks=TASKS, out=broken)
    assert caught.value.code == 75
    said = capsys.readouterr().err
    assert "stopped by SIGTERM after step 9 of 12; the same command continues from" in said
    assert "step-00000009" in said
    assert [line["step"] for line in lines(broken)] == list(range(1, 10))
    resumed = fit(make_task(seed=3), make_stream(6, epochs=2), CONFIG, environment, tasks=TASKS, out=broken)
    assert without_speed(lines(broken)) == without_speed(lines(whole))
    assert resumed.steps == result.steps == 12
    for name, value in whole_state(result.model).items():
        assert torch.equal(whole_state(resumed.model)[name], value), name
    # File by file: TensorBoard orders files by name, which two of one second and one process do not keep.
    boards = [EventAccumulator(str(path)).Reload() for path in (broken / "tensorboard").iterdir()]
    assert {event.step for board in boards for event in board.Scalars("loss")} == set(range(1, 13))
    again = fit(make_task(), make_stream(6, epochs=2), CONFIG, environment, tasks=TASKS, out=broken)
    assert (again.steps, again.metrics["loss"]) == (12, lines(whole)[-1]["loss"])


def test_a_run_that_is_stopped_before_its_first_checkpoint_writes_one(environment: Environment, tmp_path: Path):
    config = replace(CONFIG, checkpoint_every=0)
    whole = fit(make_task(), make_stream(6), config, environment, tasks=TASKS, out=tmp_path / "whole", title=None)
    with pytest.raises(Interrupted, match=r"after step 1 of 6; the same command continues from .*step-00000001"):
        fit(make_task(), make_stream(6, stop_at=1), config, environment, tasks=TASKS, out=tmp_path / "a", title=None)
    resumed = fit(make_task(seed=3), make_stream(6), config, environment, tasks=TASKS, out=tmp_path / "a", title=None)
    for name, value in whole_state(whole.model).items():
        assert torch.equal(whole_state(resumed.model)[name], value), name


def test_a_run_begins_with_anothers_model_and_resumes_as_itself(environment: Environment, tmp_path: Path):
    """Warm start: model and optimizer of the day before; broken off and resumed, the same bits as unbroken."""
    first, whole, broken = (tmp_path / name for name in ("first", "whole", "broken"))
    before = fit(make_task(), make_stream(6), CONFIG, environment, tasks=TASKS, out=first)
    weights = {name: value.clone() for name, value in whole_state(before.model).items()}
    start = first / "checkpoints/step-00000006"
    again = make_stream(6, epochs=2)
    result = fit(make_task(seed=5), again, CONFIG, environment, tasks=TASKS, out=whole, start=start)
    assert [line["step"] for line in lines(whole)] == list(range(1, 13)), "its own steps, on its own stream"
    assert any(not torch.equal(value, weights[name]) for name, value in whole_state(result.model).items())
    stream = make_stream(6, epochs=2, stop_at=10)
    with pytest.raises(Interrupted):
        fit(make_task(seed=6), stream, CONFIG, environment, tasks=TASKS, out=broken, start=start)
    resumed = fit(
        make_task(seed=7), make_stream(6, epochs=2), CONFIG, environment, tasks=TASKS, out=broken, start=start
    )
    for name, value in whole_state(result.model).items():
        assert torch.equal(whole_state(resumed.model)[name], value), name
    cold = fit(make_task(seed=5), make_stream(6, epochs=2), CONFIG, environment, tasks=TASKS, out=tmp_path / "cold")
    assert lines(whole)[0]["loss"] < without_speed(lines(tmp_path / "cold"))[0]["loss"], "it knows what it had learned"
    assert cold.steps == 12


def test_resume_between_log_lines_keeps_the_window(environment: Environment, tmp_path: Path):
    config = replace(CONFIG, log_every=6, checkpoint_every=4)
    records = []
    for name, stops in (("whole", [None]), ("broken", [6, None])):
        for stop_at in stops:
            try:
                fit(
                    make_task(),
                    make_stream(12, stop_at=stop_at),
                    config,
                    environment,
                    tasks=TASKS,
                    out=tmp_path / name,
                    title=None,
                )
            except Interrupted:
                assert stop_at is not None
        records.append(without_speed(lines(tmp_path / name)))
    assert records[0] == records[1]


def test_loss_falls_and_figures_are_reported(environment: Environment):
    stream = make_stream(40, epochs=5)
    result = fit(make_task(), stream, replace(CONFIG, log_every=50), environment, tasks=TASKS, title=None)
    assert result.metrics["auc/ctr"] > 0.9
    assert result.metrics["ne/ctr"] < 0.8
    assert result.metrics["epoch"] == 5.0
    assert result.samples_per_second > 0
    assert result.input_wait_fraction == 0.0
    assert result.steps == 200


def test_best_epoch_is_kept(environment: Environment):
    scores, states = iter([0.5, 0.25, 0.75, 0.1]), []

    def after_epoch(model: torch.nn.Module) -> tuple[float]:
        assert not model.training
        logits, *_ = predict(model, make_stream(2, rank=9), environment)
        states.append(logits)
        return (next(scores),)

    stream = make_stream(3, epochs=4)
    result = fit(make_task(), stream, CONFIG, environment, tasks=TASKS, title=None, after_epoch=after_epoch)
    assert result.scores == ((0.5,), (0.25,), (0.75,))  # the fourth epoch is not trained
    assert result.steps == 9
    assert torch.equal(predict(result.model, make_stream(2, rank=9), environment)[0], states[1])
    assert not torch.equal(states[1], states[2])


SCORES = ((0.5,), (0.25,), (0.75,))
STOPS = {"within the second pass": 10, "at its end, before its score": 13, "in the third": 16}


def judged(out: Path, environment: Environment, scores: list[Scores], stop_at: int | None = None) -> TrainResult:
    """At most four passes of six steps, of which the second is the best."""
    left = iter(scores)
    stream = make_stream(6, epochs=4, stop_at=stop_at)
    return fit(make_task(), stream, CONFIG, environment, tasks=TASKS, out=out, after_epoch=lambda model: next(left))


@pytest.fixture(scope="module")
def whole(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    out = tmp_path_factory.mktemp("whole")
    return out, judged(out, environment, [*SCORES, (0.1,)])


def test_the_newest_checkpoint_is_of_the_best_pass(
    environment: Environment, whole: tuple[Path, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out, result = whole
    two = fit(make_task(), make_stream(6, epochs=2), CONFIG, environment, tasks=TASKS, out=tmp_path, title=None)
    model = plain_task(seed=4)
    load_model(out / "checkpoints", model)
    for name, value in whole_state(two.model).items():
        assert torch.equal(whole_state(result.model)[name], value), name
        assert torch.equal(model.state_dict()[name], value), name
    assert [path.name for path in sorted((out / "checkpoints").iterdir())][-1] == "step-00000018"
    again = judged(out, environment, [])  # nothing is left to be trained or scored
    assert (again.steps, again.scores) == (18, SCORES)
    assert "pass 3 of" not in capsys.readouterr().out


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_is_judged_as_the_whole_one(
    environment: Environment, whole: tuple[Path, TrainResult], tmp_path: Path, stop: str
):
    _, result = whole
    with pytest.raises(Interrupted):
        judged(tmp_path, environment, list(SCORES), stop_at=STOPS[stop])
    newest = latest(tmp_path / "checkpoints")
    assert newest is not None
    known = len(read_progress(newest)["scores"])
    resumed = judged(tmp_path, environment, [*SCORES[known:]])
    assert resumed.scores == result.scores == SCORES
    assert resumed.steps == result.steps == 18
    for name, value in whole_state(result.model).items():
        assert torch.equal(whole_state(resumed.model)[name], value), name


def test_a_stop_while_the_last_pass_is_judged_is_not_forgotten(environment: Environment, tmp_path: Path):
    """Whoever called has work of its own to do then, and no handler that knows of it."""

    def stopping(model: torch.nn.Module) -> tuple[float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return (0.5,)

    options = {"tasks": TASKS, "out": tmp_path, "title": None}
    with pytest.raises(Interrupted, match=r"after step 6 of 6; the same command continues from .*step-00000006"):
        fit(make_task(), make_stream(6), CONFIG, environment, after_epoch=stopping, **options)
    assert fit(make_task(), make_stream(6), CONFIG, environment, after_epoch=stopping, **options).scores == ((0.5,),)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    environment: Environment, whole: tuple[Path, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """That of the third pass, then that of the second, which was the best and is to be brought back."""
    _, result = whole
    with pytest.raises(Interrupted):
        judged(tmp_path, environment, list(SCORES), stop_at=16)
    folder = tmp_path / "checkpoints"
    newest = latest(folder)
    assert newest is not None
    file = newest / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    resumed = judged(tmp_path, environment, [*SCORES[len(read_progress(newest)["scores"]) :]])
    assert f"warning: {newest.name} is left out, it is damaged: {file} has" in capsys.readouterr().err
    for name, value in whole_state(result.model).items():
        assert torch.equal(whole_state(resumed.model)[name], value), name
    (best := folder / "step-00000012" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        judged(tmp_path, environment, [])
    assert f"it needs step-00000012, the best pass so far: {best} has 0 bytes" in capsys.readouterr().err


EACH = ((0.5, 0.9), (0.6, 0.8), (0.7, 0.7), (0.8, 0.8))
"""The first column's best pass is the first, the second's the third; the fourth lowers neither."""


@pytest.mark.parametrize("kept", ["in memory", "in checkpoints"])
def test_every_column_is_predicted_by_its_own_best_pass(environment: Environment, tmp_path: Path, kept: str) -> None:
    states: list[torch.Tensor] = []

    def after_epoch(model: torch.nn.Module) -> tuple[float, float]:
        states.append(predict(model, make_stream(2, rank=9), environment)[0])
        return EACH[len(states) - 1]

    out = None if kept == "in memory" else tmp_path
    stream = make_stream(6, epochs=9)
    result = fit(make_task(), stream, CONFIG, environment, tasks=TASKS, title=None, out=out, after_epoch=after_epoch)
    assert (result.scores, result.best.numbers, result.ends) == (EACH, (0, 2), (6, 12, 18, 24))
    wanted = torch.stack([states[0][:, 0], states[2][:, 1]], dim=1)
    for _ in range(2):  # it leaves the model as it was
        assert torch.equal(predict(result.model, make_stream(2, rank=9), environment)[0], states[2])
        found = result.best.predict(result.model, make_stream(2, rank=9), environment)
        assert torch.equal(found[0], wanted)
        assert all(map(torch.equal, found[1:], predict(result.model, make_stream(2, rank=9), environment)[1:]))
    if out is not None:
        again = fit(make_task(), stream, CONFIG, environment, tasks=TASKS, out=out, after_epoch=after_epoch)
        assert (again.best.numbers, len(states)) == ((0, 2), 4)
        assert torch.equal(again.best.predict(again.model, make_stream(2, rank=9), environment)[0], wanted)


class DenseTask(torch.nn.Module):
    """No embedding table at all."""

    def __init__(self) -> None:
        super().__init__()
        self.over = torch.nn.Linear(2, 2)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Output]:
        logits = self.over(batch.dense["context"])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        return loss, Output({}, logits.detach(), batch.labels, batch.label_mask)


def test_task_without_tables(environment: Environment, tmp_path: Path):
    for epochs in (1, 2):
        stream = make_stream(4, epochs=epochs)
        result = fit(DenseTask(), stream, CONFIG, environment, tasks=TASKS, out=tmp_path, title=None)
        assert result.steps == 4 * epochs


def test_predict_is_the_plain_forward(environment: Environment):
    result = fit(make_task(), make_stream(3), CONFIG, environment, tasks=TASKS, title=None)
    plain = plain_task(seed=4).eval()
    plain.load_state_dict(whole_state(result.model))
    stream = make_stream(3, rank=5)
    outputs = [plain(batch)[1] for batch in stream]
    logits, labels, mask, users = predict(result.model, stream, environment)
    torch.testing.assert_close(logits, torch.cat([output.logits for output in outputs]))
    assert torch.equal(labels, torch.cat([batch.labels for batch in stream.batches]))
    assert torch.equal(mask, torch.cat([batch.label_mask for batch in stream.batches]))
    assert torch.equal(users, torch.cat([batch.user_ids for batch in stream.batches]))
    assert result.model.training


def test_loss_that_is_not_finite_stops_before_the_checkpoint(environment: Environment, tmp_path: Path):
    stream = make_stream(8)
    stream.batches[2].dense["context"][:, 0] = float("nan")
    config = replace(CONFIG, log_every=100)
    with pytest.raises(LossError, match="loss of 'ctr', 'cvr' is not finite at step 3"):
        fit(make_task(), stream, config, environment, tasks=TASKS, out=tmp_path, title=None)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_score_that_is_not_finite(environment: Environment, score: float):
    with pytest.raises(LossError, match="score after epoch 1"):
        fit(
            make_task(),
            make_stream(2),
            CONFIG,
            environment,
            tasks=TASKS,
            title=None,
            after_epoch=lambda model: (score,),
        )


def test_impossible_requests_say_what_to_do(environment: Environment):
    with pytest.raises(ValueError, match="no batch for this rank: give it a row for every rank"):
        fit(make_task(), ListStream([]), CONFIG, environment, tasks=TASKS)
    with pytest.raises(ValueError, match="no batch"):
        predict(make_task(), ListStream([]), environment)


def test_a_signal_that_comes_while_ranks_agree_waits_for_the_next_time(environment: Environment, monkeypatch):
    """Else this rank would stop after a step after which the others go on."""
    agree = torch.distributed.all_reduce
    with StopSignals() as stop:

        def agreed_meanwhile(tensor: torch.Tensor, *arguments: object) -> None:
            agree(tensor, *arguments)
            os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(torch.distributed, "all_reduce", agreed_meanwhile)
            assert not stop.agreed(environment.device)
        assert stop.received == signal.SIGTERM
        assert stop.agreed(environment.device)
