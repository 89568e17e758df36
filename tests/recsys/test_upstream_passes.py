"""How many passes an upstream is trained for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import TrainConfig, UpstreamConfig
from recsys.data.files import find_files
from recsys.data.held_out import HeldOutBatches, hold_out
from recsys.evaluate.metrics import normalized_entropy
from recsys.folders import upstream_folder
from recsys.models.derm import DERM
from recsys.train import trainer
from recsys.train.checkpoint import load_model
from recsys.train.distributed import current_environment, process_group
from recsys.train.tables import draw_tables
from recsys.training_set import TrainingSet
from recsys.upstream import train_on, train_upstream
from tests.distributed import run_ranks
from tests.recsys.refresh.example import CONFIG, SCHEMA, SOURCE, events

ROWS = 500
TRAINING = TrainConfig(epochs=6, batch_size=64, dense_lr=0.02, sparse_lr=0.2, log_every=100, checkpoint_every=4)
UPSTREAM = replace(CONFIG.upstreams[0], source=replace(SOURCE, users=()), training=TRAINING, held_out=0.2)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """One process group for all runs of this module."""
    with process_group():
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that nothing tells, so that every model overfits."""
    folder = tmp_path_factory.mktemp("log")
    (folder / "events").mkdir()
    SCHEMA.save(folder / "schema.toml")
    pq.write_table(events(ROWS), folder / "events/part-0.parquet", row_group_size=100)
    return folder


def passes(out: Path) -> dict[str, Any]:
    return json.loads((upstream_folder(out, "ctr") / "result.json").read_text())["passes"]


def trained(log: Path, out: Path, upstream: UpstreamConfig = UPSTREAM) -> str:
    train_upstream(upstream, log, out)
    return "trained"


def kept_model_ne(log: Path, out: Path) -> float:
    """Normalized entropy of what the newest checkpoint holds, on the events that were held out."""
    model = draw_tables(DERM(SCHEMA, UPSTREAM.model, ["click"]), 0)
    task = torch.nn.ModuleDict({"model": model}).eval()
    load_model(upstream_folder(out, "ctr") / "checkpoints", task, parts=("model.",))
    files = find_files(log, SOURCE.events)
    held = hold_out(files, SCHEMA, UPSTREAM.held_out)
    (batch,) = HeldOutBatches(files, SCHEMA, held, rank=0, world_size=1, transform=model.vocabulary.resolve)
    assert len(batch) == passes(out)["held_out"]
    with torch.no_grad():
        return normalized_entropy(batch.labels[:, 0].numpy(), model(batch).logits[:, 0].numpy())


def test_passes_end_when_held_out_events_say_so_on_two_ranks(log: Path, tmp_path: Path) -> None:
    run_ranks(trained, 2, log, tmp_path)
    found = passes(tmp_path)
    scores = found["validation_ne"]
    assert found["done"] == len(scores) < found["most"] == 6
    assert found["best"] == scores.index(min(scores)) + 1 == len(scores) - 1
    assert kept_model_ne(log, tmp_path) == pytest.approx(min(scores), rel=0.01)  # an odd event is nobody's


@pytest.mark.parametrize(("most", "patience", "after"), [(6, 2, 2), (3, 6, None)])
def test_more_passes_are_waited_for_and_the_best_is_kept(
    log: Path, tmp_path: Path, most: int, patience: int, after: int | None
) -> None:
    trained(log, tmp_path, replace(UPSTREAM, training=replace(TRAINING, epochs=most, patience=patience)))
    found = passes(tmp_path)
    scores = found["validation_ne"]
    assert found["done"] == len(scores) == (most if after is None else found["best"] + after)
    assert found["best"] == scores.index(min(scores)) + 1 < len(scores)
    assert kept_model_ne(log, tmp_path) == pytest.approx(min(scores), abs=1e-5)


def test_a_killed_training_keeps_the_same_pass(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trained(log, tmp_path / "whole")
    found = passes(tmp_path / "whole")
    assert f"pass {found['done']} of at most 6: validation ne" in capsys.readouterr().out
    assert kept_model_ne(log, tmp_path / "whole") == pytest.approx(min(found["validation_ne"]), abs=1e-5)
    judge = trainer.Run.judge
    for known in range(found["done"]):  # before each score, and on to the next

        def killed(run: trainer.Run, best: Any, known: int = known) -> str:
            if len(run.scores) == known:
                raise KeyboardInterrupt
            return judge(run, best)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Run, "judge", killed)
            with pytest.raises(KeyboardInterrupt):
                trained(log, tmp_path / "killed")
    trained(log, tmp_path / "killed")
    assert passes(tmp_path / "killed") == found
    assert kept_model_ne(log, tmp_path / "killed") == kept_model_ne(log, tmp_path / "whole")


def test_a_single_pass_trains_on_all_events(log: Path, tmp_path: Path) -> None:
    trained(log, tmp_path, replace(UPSTREAM, training=replace(TRAINING, epochs=1)))
    assert passes(tmp_path) == {"done": 1, "most": 1, "best": 1, "held_out": 0} | {
        "validation_ne": [],
        "validation_mrr": [],
    }
    result = json.loads((upstream_folder(tmp_path, "ctr") / "result.json").read_text())
    assert result["steps"] == ROWS // 64


def test_a_judge_of_the_callers_chooses_the_pass_and_holds_nothing_out(log: Path, tmp_path: Path) -> None:
    scores = iter([(0.5,), (0.3,), (0.4,), (0.1,)])
    trained = train_on(
        TrainingSet(files=find_files(log, SOURCE.events), schema=SCHEMA.select(labels=("click",)), data=log),
        UPSTREAM,
        TRAINING,
        current_environment(),
        out=tmp_path,
        store=tmp_path / "store",
        title=None,
        judge=lambda model: next(scores),
    )
    assert trained.result.scores == ((0.5,), (0.3,), (0.4,))  # the first that is not better was the last
    assert trained.held_out == 0
    assert trained.result.steps == 3 * (ROWS // 64)
    assert trained.record()["passes"]["best"] == 2
