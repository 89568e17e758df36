"""A ranker's predictions on the disk. Of a training by several ranks each writes its own rows into a file beside
rank 0's, which comes last: where it is, all are. No process has to hold everybody's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.atomic import whole_file
from recsys.train.distributed import Environment
from recsys.train.exchange import ALONE, of_all

LOSSES = "validation_losses"
_TESTED = ("logits", "labels", "mask", "users")
_SIZES = "sizes"
"""int64 [parts, 2], in rank 0's file where there are several: of each its rows and its validation rows."""


def write_predictions(
    path: Path,
    *,
    logits: NDArray,
    labels: NDArray,
    mask: NDArray,
    users: NDArray,
    validation_losses: NDArray,
    environment: Environment = ALONE,
) -> None:
    """Keep a ranker's recalibrated test predictions, [n] each in the files' order, and the losses [v] of its validation
    rows (`row_losses`), whole or not at all. Each rank gives its own; rank 0's come first. A collective, which raises
    on every rank what it raises on one.
    """
    columns = {"logits": logits, "labels": labels, "mask": mask, "users": users, LOSSES: validation_losses}

    def begin() -> None:
        if environment.is_main:
            _forget(path)

    if environment.world_size > 1:
        of_all(begin, environment)

    def part() -> tuple[int, int]:
        if not environment.is_main:
            _write(_part(path, environment.rank), columns)
        return len(logits), len(validation_losses)

    sizes = of_all(part, environment)

    def first() -> None:
        if environment.is_main:
            _write(path, columns if len(sizes) == 1 else {**columns, _SIZES: np.array(sizes, np.int64)})

    of_all(first, environment)


def read_predictions(path: Path) -> dict[str, NDArray]:
    """`logits`, `labels`, `mask`, `users`, all [N], and `validation_losses` [V]: what all ranks have written.

    Raises:
        FileNotFoundError: it is not there, or a part of it.
    """
    parts = list(_parts(path, (*_TESTED, LOSSES)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_tested(path: Path, of: Callable[[NDArray], NDArray]) -> dict[str, NDArray]:
    """`logits`, `labels`, `mask` and `users` of the test rows of some users alone: those that `of` tells of the rows'
    users, bool [n]. One part after the other is read. Raises FileNotFoundError."""
    parts = [{name: part[name][of(part["users"])] for name in _TESTED} for part in _parts(path, _TESTED)]
    return {name: np.concatenate([part[name] for part in parts]) for name in _TESTED}


def read_losses(path: Path, start: int, stop: int) -> NDArray:
    """Losses start .. stop - 1 of the validation rows; of other parts than those that have them nothing is read. Raises
    FileNotFoundError."""
    found, first = [np.empty(0)], 0
    for place, rows in _losses(path):
        if first < stop and first + rows > start:
            with np.load(place) as file:
                found.append(file[LOSSES][max(0, start - first) : stop - first])
        first += rows
    return np.concatenate(found)


def count_losses(path: Path) -> int:
    """How many there are. Raises FileNotFoundError."""
    return sum(rows for _, rows in _losses(path))


def copy_predictions(path: Path, to: Path) -> None:
    """Keep the same under another name, whole or not at all. One process does it."""
    _forget(to)
    for number in reversed(range(len(_losses(path)))):  # the file that says that all are there comes last
        with _part(path, number).open("rb") as source, whole_file(_part(to, number)) as file:
            shutil.copyfileobj(source, file)


def _forget(path: Path) -> None:
    """Say that nothing is there, before parts take the place of others: of two trainings some each would count."""
    path.unlink(missing_ok=True)


def _part(path: Path, rank: int) -> Path:
    return path.with_suffix(f".{rank}{path.suffix}") if rank else path


def _write(path: Path, columns: dict[str, NDArray]) -> None:
    with whole_file(path) as file:
        np.savez(file, **columns)  # type: ignore[arg-type]


def _losses(path: Path) -> list[tuple[Path, int]]:
    """The files, and how many validation rows each has."""
    with np.load(path) as file:
        sizes = file[_SIZES][:, 1].tolist() if _SIZES in file else [len(file[LOSSES])]
    return [(_part(path, number), rows) for number, rows in enumerate(sizes)]


def _parts(path: Path, names: Sequence[str]) -> Iterator[dict[str, NDArray]]:
    for place, _ in _losses(path):
        with np.load(place) as file:
            yield {name: file[name] for name in names}
