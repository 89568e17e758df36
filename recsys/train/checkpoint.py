"""Checkpoints with torch.distributed.checkpoint: model, optimizer, metrics, random state; readable on any world size.

A checkpoint is a folder `step-00000500`. It is written under another name and renamed when every rank is done, so one
that can be seen is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from recsys.train.distributed import Environment
from recsys.train.pieces import PiecePlanner
from recsys.train.shards import is_sharded

if TYPE_CHECKING:
    from torchrec.optim.keyed import KeyedOptimizer

PROGRESS = "progress.json"
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that is not there, is damaged, or belongs to another model."""


class Loaded(NamedTuple):
    """The checkpoint that a model was loaded from."""

    step: int
    """Steps done when it was written."""
    id: str
    """Its own: no other checkpoint has it, of the same step of the same config or not."""


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def at(folder: Path, step: int) -> Path:
    """The checkpoint in `folder` after so many steps."""
    return folder / f"step-{step:08d}"


def save(
    folder: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: KeyedOptimizer,
    metrics: Mapping[str, Tensor],
    progress: Mapping[str, Any],
    environment: Environment,
    keep: int = 2,
    protected: Collection[int] = (),
) -> Path:
    """Write `folder/step-<number>` and delete all but the newest `keep`. A collective: every rank calls it.

    Args:
        folder: made if it does not exist; must be seen by all ranks.
        step: steps done.
        model: sharded, see `recsys.train.sharding.shard`.
        optimizer: its optimizer.
        metrics: tensors equal on every rank.
        progress: what JSON can say about the run so far, equal on every rank.
        environment: this rank.
        keep: how many checkpoints to leave.
        protected: the steps of others to leave.

    Raises:
        torch.distributed.checkpoint.api.CheckpointException: a rank could not write (a full disk, say); on every rank.
    """
    final = at(folder, step)
    unfinished = final.with_suffix(".tmp")
    if environment.is_main:
        for rubbish in folder.glob("step-*.tmp"):  # of runs that were killed while writing
            shutil.rmtree(rubbish)
        unfinished.mkdir(parents=True)
    dist.barrier()
    state = _training_state(model, optimizer, metrics)
    state["rng"] = {str(environment.rank): _random_state(environment)}
    dcp.save(state, checkpoint_id=unfinished, planner=PiecePlanner())
    if environment.is_main:
        facts = {"step": step, "world_size": environment.world_size, "id": uuid.uuid4().hex}
        _write(unfinished / PROGRESS, json.dumps({**progress, **facts}))
        if final.exists():  # written before the pass that ended with this step was judged
            shutil.rmtree(final)
        unfinished.rename(final)
        _sync(folder)
        left = {at(folder, step) for step in protected}
        for old in _checkpoints(folder)[:-keep]:
            if old not in left:
                shutil.rmtree(old)
    dist.barrier()
    return final


def restore(
    path: Path,
    *,
    model: nn.Module,
    optimizer: KeyedOptimizer,
    environment: Environment,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load a checkpoint in place, resharded to this world size. A collective: every rank calls it.

    The random state is that of the same rank when the checkpoint was written; a rank that did not exist then keeps its
    own.

    Returns:
        what `read_progress` does, and what `save` was given as metrics.

    Raises:
        CheckpointError: it is damaged, or belongs to another model; names the keys and shapes that differ.
    """
    metadata, progress = _metadata(path), read_progress(path)
    metrics = _blank(metadata, "metrics.", environment.device)
    state = _training_state(model, optimizer, metrics)
    _check_keys(path, state, metadata, prefixes=("model.", "optimizer."), collective=True)
    random_state = _blank(metadata, f"rng.{environment.rank}.", torch.device("cpu"))
    if random_state:  # none of a rank that did not exist then
        state["rng"] = {str(environment.rank): random_state}
    _load(path, state)
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
    path = folder if _NAME.fullmatch(folder.name) else latest(folder)
    if path is None:
        raise CheckpointError(f"{folder}: no checkpoint there; train the model first")
    metadata, progress = _metadata(path), read_progress(path)
    state = {"model": {key: value for key, value in model.state_dict().items() if key.startswith(parts)}}
    collective = any(is_sharded(value) for value in state["model"].values())
    _check_keys(path, state, metadata, prefixes=tuple(f"model.{part}" for part in parts), collective=collective)
    _load(path, state, no_dist=not collective)
    model.load_state_dict(state["model"], strict="" in parts)
    return Loaded(int(progress["step"]), progress["id"])


def _checkpoints(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _training_state(model: nn.Module, optimizer: KeyedOptimizer, metrics: Mapping[str, Tensor]) -> dict[str, Any]:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"], "metrics": dict(metrics)}
    return {name: entries for name, entries in state.items() if entries}  # an empty one is saved, but never found


def _random_state(environment: Environment) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if environment.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(environment.device)
    return state


def _set_random_state(state: Mapping[str, Tensor], environment: Environment) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and environment.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], environment.device)


def _blank(metadata: Metadata, prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Tensors to load into, for the keys that a checkpoint has under `prefix`."""
    return {
        key.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for key, entry in metadata.state_dict_metadata.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def _metadata(path: Path) -> Metadata:
    try:
        return dcp.FileSystemReader(path).read_metadata()
    except Exception as error:  # whatever unpickling a damaged file raises
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error}); delete the folder to go on from the "
            "one before it"
        ) from error


def _load(path: Path, state: dict[str, Any], *, no_dist: bool = False) -> None:
    try:
        with warnings.catch_warnings():  # it tells that a load without ranks is one
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            dcp.load(state, checkpoint_id=path, no_dist=no_dist)
    except CheckpointException as error:
        causes = "; ".join(sorted({f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}))
        raise CheckpointError(
            f"{path}: cannot be read ({causes}); delete the folder to go on from the one before it"
        ) from error


def read_progress(path: Path) -> dict[str, Any]:
    """What `save` was given as progress, and `step`, `world_size` and `id`. Raises CheckpointError if damaged."""
    try:
        return json.loads((path / PROGRESS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / PROGRESS}: {error}; delete the folder to go on from the one before it"
        ) from error


def _check_keys(
    path: Path, state: Mapping[str, Any], metadata: Metadata, *, prefixes: tuple[str, ...], collective: bool
) -> None:
    """Compare names and global shapes, over all ranks (a table's optimizer state is known where the table lies)."""
    mine = {f"{top}.{key}": shape for top, entries in state.items() for key, shape in _shapes(entries).items()}
    wanted = {key: shape for key, shape in mine.items() if key.startswith(prefixes)}
    if collective:
        parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, wanted)
        wanted = {key: shape for part in parts for key, shape in part.items()}
    saved = {
        key: tuple(entry.size)
        for key, entry in metadata.state_dict_metadata.items()
        if key.startswith(prefixes) and isinstance(entry, TensorStorageMetadata)
    }
    problems = [f"{key} is not in the checkpoint" for key in sorted(wanted.keys() - saved.keys())]
    problems += [f"{key} is not in the model" for key in sorted(saved.keys() - wanted.keys())]
    problems += [
        f"{key} is {list(saved[key])} in the checkpoint, {list(wanted[key])} in the model"
        for key in sorted(saved.keys() & wanted.keys())
        if saved[key] != wanted[key]
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(
            f"{path} was written by another model or schema: {'; '.join(problems[:6])}{more}. "
            "Use the config it was trained with, or another output folder"
        )


def _shapes(entries: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            shapes |= _shapes(value, f"{prefix}{key}.")
        elif hasattr(value, "size"):
            shapes[f"{prefix}{key}"] = tuple(value.size())
    return shapes


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
