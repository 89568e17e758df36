"""Predictions that several ranks have made: each writes its own, and what is read is that of all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from recsys.downstream import predictions
from recsys.downstream.predictions import (
    copy_predictions,
    count_losses,
    read_losses,
    read_predictions,
    write_predictions,
)
from recsys.train.distributed import current_environment
from tests.distributed import run_ranks

ROWS, LOSSES = [5, 0, 3], [2, 4, 0]


def columns(rank: int) -> dict[str, np.ndarray]:
    rows = np.arange(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    return {
        "logits": rows.astype(np.float32) / 3,
        "labels": (rows % 2).astype(np.float32),
        "mask": rows % 3 > 0,
        "users": rows * 2**58,
        "validation_losses": np.arange(sum(LOSSES[:rank]), sum(LOSSES[: rank + 1])) / 7,
    }


def write(path: Path) -> None:
    environment = current_environment()
    write_predictions(path, **columns(environment.rank), environment=environment)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_ranks_write_is_read_as_one(tmp_path: Path, ranks: int) -> None:
    path = tmp_path / "ctr" / "a.b-0.npz"
    run_ranks(write, ranks, path)
    assert len(list(path.parent.iterdir())) == ranks
    copy_predictions(path, copy := tmp_path / "other-0.npz")
    parts = [columns(rank) for rank in range(ranks)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for place in (path, copy):
        found = read_predictions(place)
        assert list(found) == list(whole)
        for name, values in whole.items():
            assert np.array_equal(found[name], values)
            assert found[name].dtype == values.dtype
        losses = whole["validation_losses"]
        assert count_losses(place) == len(losses)
        for start in range(len(losses) + 1):
            for stop in range(start, len(losses) + 1):
                assert np.array_equal(read_losses(place, start, stop), losses[start:stop])


def try_to_write(path: Path) -> str:
    try:
        write(path)
    except OSError as error:
        return type(error).__name__
    return "written"


def test_a_rank_that_cannot_write_fails_all_and_nothing_is_there(tmp_path: Path) -> None:
    path = tmp_path / "user-0.npz"
    path.with_name("user-0.1.npz").mkdir()
    assert run_ranks(try_to_write, 2, path) == ["IsADirectoryError"] * 2
    assert not path.exists()


def test_a_part_that_is_missing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "user-0.npz"
    run_ranks(write, 2, path)
    path.with_name("user-0.1.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"user-0\.1\.npz"):
        read_predictions(path)


def write_and_fail(path: Path) -> None:
    """By ranks of which the first one ends before it writes, and after the others have written."""
    if current_environment().is_main:
        predictions._write = Mock(side_effect=OSError("no space left"))
    with suppress(OSError):
        write(path)


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_of_two_trainings_are_never_read_as_one(tmp_path: Path, ranks: int) -> None:
    """Two ranks wrote what others, as many or more, begin to write anew, and do not end."""
    path = tmp_path / "user-0.npz"
    run_ranks(write, 2, path)
    run_ranks(write_and_fail, ranks, path)
    assert path.with_name("user-0.1.npz").exists()
    assert not path.exists()


def test_a_copy_that_ends_halfway_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, to = tmp_path / "user-0.npz", tmp_path / "other-0.npz"
    run_ranks(write, 3, path)
    run_ranks(write, 2, to)
    copied = Mock(side_effect=[None, OSError("no space left")])
    monkeypatch.setattr(predictions.shutil, "copyfileobj", copied)
    with pytest.raises(OSError, match="no space left"):
        copy_predictions(path, to)
    assert not to.exists()
