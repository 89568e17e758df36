import shutil
from pathlib import Path

import pytest
import torch

from recsys.train import checkpoint, pieces
from recsys.train.checkpoint import CheckpointError
from recsys.train.distributed import Environment
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables
from tests.recsys.train.toy import make_stream, make_task, plain_task, whole_state


def trained(environment: Environment, steps: int = 2, seed: int = 0, **options):
    """A sharded toy task and its optimizer after a few steps."""
    model = draw_tables(shard(make_task(seed, **options), environment, sparse_lr=0.1), seed)
    optimizer = build_optimizer(model, dense_lr=0.01)
    for batch in make_stream(steps):
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, environment: Environment, model, optimizer, **progress) -> Path:
    return checkpoint.save(
        folder,
        step,
        model=model,
        optimizer=optimizer,
        metrics={"sum": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        progress=progress,
        environment=environment,
    )


@pytest.mark.parametrize("piece", [1, 100, 16 * 2**20])
def test_all_of_a_run_comes_back(environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)  # one row, a few, whole shards
    model, optimizer = trained(environment)
    path = save(tmp_path, 7, environment, model, optimizer, position=3)
    drawn = torch.rand(3)
    other, its_optimizer = trained(environment, steps=1, seed=5)
    progress, metrics = checkpoint.restore(path, model=other, optimizer=its_optimizer, environment=environment)
    assert progress == {"step": 7, "world_size": 1, "position": 3, "id": checkpoint.read_progress(path)["id"]}
    assert metrics["sum"].tolist() == [1.0, 2.0]
    assert torch.equal(torch.rand(3), drawn)
    for name, value in whole_state(model).items():
        assert torch.equal(whole_state(other)[name], value), name
    for batch in make_stream(1):  # equal optimizer states take equal next steps
        for each, its in ((model, optimizer), (other, its_optimizer)):
            each.eval()
            its.zero_grad()
            each(batch)[0].backward()
            its.step()
    for name, value in whole_state(model).items():
        assert torch.equal(whole_state(other)[name], value), name


def test_only_the_newest_two_stay_and_rubbish_goes(environment: Environment, tmp_path: Path):
    model, optimizer = trained(environment, steps=0)
    half_written = tmp_path / "step-00000099.tmp"
    half_written.mkdir(parents=True)
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100_000_000):
        assert save(tmp_path, step, environment, model, optimizer) == checkpoint.latest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-100000000"]
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_failed_write_leaves_the_last_checkpoint(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, optimizer = trained(environment, steps=0)
    first = save(tmp_path, 1, environment, model, optimizer)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.dcp, "save", full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 2, environment, model, optimizer)
    assert checkpoint.latest(tmp_path) == first
    assert save(tmp_path, 2, environment, model, optimizer) == checkpoint.latest(tmp_path)


def test_model_alone_for_inference(environment: Environment, tmp_path: Path):
    model, optimizer = trained(environment)
    path = save(tmp_path, 4, environment, model, optimizer)
    for folder in (tmp_path, path):
        plain = plain_task(seed=9)
        assert checkpoint.load_model(folder, plain).step == 4
        batch = make_stream(1).batches[0]
        torch.testing.assert_close(plain.eval()(batch)[1].logits, model.eval()(batch)[1].logits)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint.load_model(tmp_path / "nowhere", plain_task())


def test_checkpoint_of_another_model_is_refused(environment: Environment, tmp_path: Path):
    path = save(tmp_path, 1, environment, *trained(environment))
    other, optimizer = trained(environment, rows={"user": 101, "item": 70, "seen": 50}, steps=0)
    with pytest.raises(CheckpointError, match=r"t_item.weight is \[64, 8\] in the checkpoint, \[70, 8\] in the model"):
        checkpoint.restore(path, model=other, optimizer=optimizer, environment=environment)
    task = plain_task()
    task.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"extra\.bias is not in the checkpoint.*another output folder"):
        checkpoint.load_model(tmp_path, task)
    task = plain_task()
    del task.over
    with pytest.raises(CheckpointError, match=r"over\.net\.0\.bias is not in the model"):
        checkpoint.load_model(tmp_path, task)


def test_damaged_checkpoint_is_named(environment: Environment, tmp_path: Path):
    model, optimizer = trained(environment, steps=0)
    path = save(tmp_path, 1, environment, model, optimizer)
    (path / ".metadata").write_bytes(b"\x00\x01")
    with pytest.raises(CheckpointError, match=r"step-00000001: not a readable checkpoint.*delete the folder"):
        checkpoint.restore(path, model=model, optimizer=optimizer, environment=environment)
    shutil.rmtree(path)
    path = save(tmp_path, 1, environment, model, optimizer)
    (path / "progress.json").write_text('{"step":')
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        checkpoint.load_model(path, plain_task())
    shutil.rmtree(path)
    path = save(tmp_path, 1, environment, model, optimizer)
    (shards,) = path.glob("*.distcp")
    shards.write_bytes(shards.read_bytes()[:100])
    for load in (
        lambda: checkpoint.load_model(path, plain_task()),
        lambda: checkpoint.restore(path, model=model, optimizer=optimizer, environment=environment),
    ):
        with pytest.raises(CheckpointError, match=r"cannot be read.*delete the folder"):
            load()
