"""Checkpoints with torch.distributed.checkpoint: model, optimizer, metrics, random state; readable on any world size.

How they are written is in `recsys.train.saving`, of small tensors in `recsys.train.packing`, which checkpoints can be
gone on from in `recsys.train.good`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, TensorStorageMetadata
from torchrec.optim.keyed import KeyedOptimizer

from recsys.train import packing
from recsys.train.distributed import Environment, control_group
from recsys.train.good import CheckpointError, at, check, is_checkpoint, latest, newest_good, read_progress
from recsys.train.saving import Saver, training_state
from recsys.train.shards import is_sharded

__all__ = [
    "CheckpointError",
    "Loaded",
    "at",
    "latest",
    "load_model",
    "newest_good",
    "read_progress",
    "restore",
    "save",
]


class Loaded(NamedTuple):
    """The checkpoint that a model was loaded from."""

    step: int
    """Steps done when it was written."""
    id: str
    """Its own: no other checkpoint has it, of the same step of the same config or not."""


class _Contents(NamedTuple):
    """What a checkpoint holds."""

    named: Mapping[str, STORAGE_TYPES]
    """By name."""
    packed: packing.Layout
    """Of earlier versions of this package nothing is."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of a tensor -> its global shape."""
        named = {key: entry for key, entry in self.named.items() if isinstance(entry, TensorStorageMetadata)}
        return {key: tuple(entry.size) for key, entry in named.items()} | packing.shapes(self.packed)


def save(
    folder: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: KeyedOptimizer,
    metrics: Mapping[str, Tensor],
    progress: Mapping[str, Any],
    environment: Environment,
) -> Path:
    """Write `folder/step-<number>` at once, see `recsys.train.saving.Saver.save`. A collective."""
    options = {"model": model, "optimizer": optimizer, "metrics": metrics, "progress": progress}
    Saver(folder, environment).save(step, **options, last=True)
    return at(folder, step)


def restore(
    path: Path,
    *,
    model: nn.Module,
    optimizer: KeyedOptimizer,
    environment: Environment,
    checked: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load a checkpoint in place, resharded to this world size. A collective: every rank calls it.

    The random state is that of the same rank when the checkpoint was written; a rank that did not exist then keeps its
    own.

    Args:
        path: of the checkpoint.
        model: sharded, see `recsys.train.sharding.shard`.
        optimizer: its optimizer.
        environment: this rank.
        checked: its files are known to be what was written, by `newest_good`.

    Returns:
        what `read_progress` does, and what `save` was given as metrics.

    Raises:
        CheckpointError: it is damaged, or belongs to another model; names the keys and shapes that differ.
    """
    if not checked:
        check(path, together=True)
    contents, progress = _contents(path), read_progress(path)
    metrics = _blank(contents, "metrics.", environment.device)
    state = training_state(model, optimizer, metrics)
    _check_keys(path, state, contents, prefixes=("model.", "optimizer."), collective=True)
    random_state = _blank(contents, f"rng.{environment.rank}.", torch.device("cpu"))
    if random_state:  # none of a rank that did not exist then
        state["rng"] = {str(environment.rank): random_state}
    _load(path, state, contents)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict({"state": state.get("optimizer", {})})
    _set_random_state(random_state, environment)
    return progress, metrics


def load_model(folder: Path, model: nn.Module, *, parts: tuple[str, ...] = ("",)) -> Loaded:
    """Load only the model from a checkpoint, say for inference.

    Args:
        folder: a checkpoint, or a folder of checkpoints whose newest is taken.
        model: a plain module, which gets whole tables (no process group needed, and any one rank may do it), or a
            sharded one, which gets this rank's shards (a collective then).
        parts: load only what is called by names that begin so; the rest of the model is left as it is.

    Returns:
        which checkpoint it was.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another model.
    """
    path = folder if is_checkpoint(folder) else latest(folder)
    if path is None:
        raise CheckpointError(f"{folder}: no checkpoint there; train the model first")
    collective = any(is_sharded(value) for value in model.state_dict().values())
    check(path, together=collective)
    contents, progress = _contents(path), read_progress(path)
    state = {"model": {key: value for key, value in model.state_dict().items() if key.startswith(parts)}}
    _check_keys(path, state, contents, prefixes=tuple(f"model.{part}" for part in parts), collective=collective)
    _load(path, state, contents, no_dist=not collective)
    model.load_state_dict(state["model"], strict="" in parts)
    return Loaded(int(progress["step"]), progress["id"])


def _set_random_state(state: Mapping[str, Tensor], environment: Environment) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and environment.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], environment.device)


def _blank(contents: _Contents, prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Tensors to load into, for the keys that a checkpoint has under `prefix`."""
    return {
        key.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for key, entry in contents.named.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def _contents(path: Path) -> _Contents:
    try:
        layout = path / packing.LAYOUT
        packed = packing.read(layout.read_text()) if layout.exists() else {}
        return _Contents(dcp.FileSystemReader(path).read_metadata().state_dict_metadata, packed)
    except Exception as error:  # whatever unpickling a damaged file raises
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error}); delete the folder to go on from the "
            "one before it"
        ) from error


def _load(path: Path, state: dict[str, Any], contents: _Contents, *, no_dist: bool = False) -> None:
    group = None if no_dist else control_group()  # ranks have more or less to read
    load = partial(dcp.load, checkpoint_id=path, process_group=group, no_dist=no_dist)
    try:
        with warnings.catch_warnings():  # it tells that a load without ranks is one
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            packing.unpacked(state, contents.packed, load)
    except CheckpointException as error:
        causes = "; ".join(sorted({f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}))
        raise CheckpointError(
            f"{path}: cannot be read ({causes}); delete the folder to go on from the one before it"
        ) from error


def _check_keys(
    path: Path, state: Mapping[str, Any], contents: _Contents, *, prefixes: tuple[str, ...], collective: bool
) -> None:
    """Compare names and global shapes, over all ranks (a table's optimizer state is known where the table lies)."""
    mine = {f"{top}.{key}": shape for top, entries in state.items() for key, shape in _shapes(entries).items()}
    wanted = {key: shape for key, shape in mine.items() if key.startswith(prefixes)}
    if collective:
        parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, wanted)
        wanted = {key: shape for part in parts for key, shape in part.items()}
    saved = {key: shape for key, shape in contents.shapes().items() if key.startswith(prefixes)}
    problems = [f"{key} is not in the checkpoint" for key in sorted(wanted.keys() - saved.keys())]
    problems += [f"{key} is not in the model" for key in sorted(saved.keys() - wanted.keys())]
    problems += [
        f"{key} is {list(saved[key])} in the checkpoint, {list(wanted[key])} in the model"
        for key in sorted(saved.keys() & wanted.keys())
        if saved[key] != wanted[key]
    ]
    if problems:
        _check_columns(path, saved, wanted)
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(
            f"{path} was written by another model or schema: {'; '.join(problems[:6])}{more}. "
            "Use the config it was trained with, or another output folder"
        )


def _check_columns(path: Path, saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Say why, where a table is the same and has another number of accumulators: each column shard has its own."""
    tables = {key.split(".")[-2]: shape for key, shape in saved.items() if wanted.get(key) == shape and len(shape) == 2}
    for key in sorted(saved.keys() & wanted.keys()):
        *_, table, state = key.split(".")
        if not state.startswith("momentum") or table not in tables or saved[key] == wanted[key]:
            continue
        before, now = (shape[key][0] // max(1, tables[table][0]) for shape in (saved, wanted))
        raise CheckpointError(
            f"{path}: table {table!r} was trained in {_shards(before)}, which have {state} of their own, and has "
            f"{_shards(now)} now: give training.tables.{table} the sharding and columns it was trained with"
        )


def _shards(count: int) -> str:
    return f"{count} shards of columns" if count > 1 else "one piece or shards of rows"


def _shapes(entries: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            shapes |= _shapes(value, f"{prefix}{key}.")
        elif hasattr(value, "size"):
            shapes[f"{prefix}{key}"] = tuple(value.size())
    return shapes
