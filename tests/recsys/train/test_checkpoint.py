import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recsys.train import checkpoint, pieces, saving
from recsys.train.checkpoint import CheckpointError
from recsys.train.distributed import Environment
from recsys.train.optimizer import build_optimizer
from recsys.train.saving import Saver
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
    said = checkpoint.read_progress(path)
    assert progress == {"step": 7, "world_size": 1, "position": 3, "id": said["id"], "files": said["files"]}
    assert set(said["files"]) == {each.name for each in path.iterdir()} - {"progress.json"}
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-good", "step-00000010", "step-100000000"]
    save(tmp_path, 11, environment, model, optimizer)  # a run that begins again before the newest
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000011"]
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_what_a_checkpoint_that_stays_may_come_back_to_stays_as_well(environment: Environment, tmp_path: Path):
    """The newest is of the best pass; the one before it is of a time when another was, and is the way back."""
    model, optimizer = trained(environment, steps=0)
    first = save(tmp_path, 4, environment, model, optimizer, scores=[[0.5]], ends=[4])
    within = save(tmp_path, 6, environment, model, optimizer, scores=[[0.5]], ends=[4])
    best = save(tmp_path, 8, environment, model, optimizer, scores=[[0.5], [0.4]], ends=[4, 8])
    assert {*tmp_path.glob("step-*")} == {first, within, best}
    cut(best / "__0_0.distcp")
    assert checkpoint.newest_good(tmp_path, environment) == within
    newest = save(tmp_path, 10, environment, model, optimizer, scores=[[0.5], [0.4]], ends=[4, 8])
    assert {*tmp_path.glob("step-*")} == {best, newest}


def test_failed_write_leaves_the_last_checkpoint(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, optimizer = trained(environment, steps=0)
    first = save(tmp_path, 1, environment, model, optimizer)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving.dcp, "save", full)
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


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def flip(file: Path) -> None:
    """One bit in the middle: of a number of the model, which nothing but a sum tells."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("name", [".metadata", "packed.json", "progress.json", "__0_0.distcp"])
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_damaged_checkpoint_is_named_and_left_out(
    environment: Environment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    name: str,
):
    model, optimizer = trained(environment, steps=0)
    first, path = (save(tmp_path, step, environment, model, optimizer) for step in (1, 2))
    assert checkpoint.newest_good(tmp_path, environment) == path
    harm(path / name)
    for load in (
        lambda: checkpoint.load_model(path, plain_task()),
        lambda: checkpoint.restore(path, model=model, optimizer=optimizer, environment=environment),
    ):
        with pytest.raises(
            CheckpointError, match=rf"step-00000002/{name}.*; delete .* to go on from the one before it"
        ):
            load()
    assert checkpoint.newest_good(tmp_path, environment) == first
    assert f"warning: step-00000002 is left out, it is damaged: {path / name}" in capsys.readouterr().err
    harm(first / name)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged; mend the disk, or delete it"):
        checkpoint.newest_good(tmp_path, environment)


def test_a_checkpoint_that_came_to_no_end_is_none(environment: Environment, tmp_path: Path):
    """Killed between any two of the things that are done when all ranks have written."""
    model, optimizer = trained(environment, steps=0)
    first, second = (save(tmp_path, step, environment, model, optimizer) for step in (1, 2))
    second.rename(second.with_suffix(".tmp"))  # before the rename
    assert checkpoint.newest_good(tmp_path, environment) == first
    second.with_suffix(".tmp").rename(second)
    second.rename(second.with_suffix(".old.tmp"))  # before another of the same step has its name
    assert checkpoint.newest_good(tmp_path, environment) == second
    (tmp_path / "last-good").write_text("step-00000001\n")  # before the mark
    assert checkpoint.latest(tmp_path) == checkpoint.newest_good(tmp_path, environment) == first
    (tmp_path / "last-good").unlink()
    assert checkpoint.latest(tmp_path) == second
    save(tmp_path, 3, environment, model, optimizer)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["last-good", "step-00000002", "step-00000003"]


@pytest.mark.parametrize("size", [0, 1000])
def test_what_is_written_beside_the_training_is_the_state_when_it_was_asked_for(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    """The disk is held up until the model has changed; the next checkpoint waits for the one before."""
    model, optimizer = trained(environment)
    wanted = {name: value.clone() for name, value in whole_state(model).items()}
    saver, held, dcp_save, options = Saver(tmp_path, environment), threading.Event(), saving.dcp.save, {"progress": {}}
    metrics = {"sum": torch.arange(size, dtype=torch.float64)}
    options |= {"model": model, "optimizer": optimizer, "metrics": metrics}
    monkeypatch.setattr(saving.dcp, "save", lambda *a, **k: held.wait(600) and dcp_save(*a, **k))
    saver.save(1, **options)
    assert checkpoint.latest(tmp_path) is None
    with torch.no_grad():
        for value in whole_state(model).values():
            value.add_(1)
    metrics["sum"] += 1
    held.set()
    saver.save(2, **options)
    assert checkpoint.latest(tmp_path) in (checkpoint.at(tmp_path, 1), checkpoint.at(tmp_path, 2))
    saver.close()
    other, its_optimizer = trained(environment, steps=1, seed=5)
    for step, plus in ((1, 0), (2, 1)):
        path = checkpoint.at(tmp_path, step)
        _, sums = checkpoint.restore(path, model=other, optimizer=its_optimizer, environment=environment)
        for name, value in whole_state(other).items():
            assert torch.equal(value, wanted[name] + plus), name
        assert not size or torch.equal(sums["sum"], torch.arange(size) + float(plus))


def test_a_disk_that_is_full_beside_the_training_is_told_by_the_next_save(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, optimizer = trained(environment, steps=0)
    saver, options = Saver(tmp_path, environment), {"metrics": {}, "progress": {}}
    options |= {"model": model, "optimizer": optimizer}

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    saver.save(1, **options)
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(saving, "_write", full)
        saver.save(2, **options)
        with pytest.raises(OSError, match="No space"):
            saver.save(3, **options)
    assert checkpoint.latest(tmp_path) == checkpoint.at(tmp_path, 1)
    saver.close()


def test_no_copy_is_made_where_memory_is_short(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, optimizer = trained(environment, steps=0)
    monkeypatch.setattr(saving, "free_memory", lambda: 1000)
    saver = Saver(tmp_path, environment)
    saver.save(1, model=model, optimizer=optimizer, metrics={}, progress={})
    assert checkpoint.latest(tmp_path) == checkpoint.at(tmp_path, 1), "it is there when the call returns"
