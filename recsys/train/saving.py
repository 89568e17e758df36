"""Writing checkpoints, beside the training where memory allows: it waits for a copy of its state, not for the disk.

`torch.distributed.checkpoint.async_save` does the same for tensors that its stager knows how to copy. TorchRec's
`ShardedTensor`s hold a process group and cannot be copied by it, and what makes a checkpoint good comes after it: sums,
the rename, the mark. So the copy is made here, and the whole of the writing runs in one thread with a gloo group of its
own; a thread dies with its rank, where a process of torch's would go on to write after it was killed.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import uuid
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensorBase
from torch.distributed.tensor import DTensor
from torchrec.optim.keyed import KeyedOptimizer

from recsys.train.distributed import FILE_TIMEOUT, Environment, control_group, free_memory
from recsys.train.good import PROGRESS, REPLACED, Sums, at, checkpoints, mark, needed, sealed, sums
from recsys.train.packing import LAYOUT, State, packed, written
from recsys.train.pieces import PiecePlanner
from recsys.train.watch import Pulse

_OF_FREE = 0.5
"""Of the memory that is free, copies of the state take this share at most."""
_WORK = "a checkpoint"


@dataclass
class Saver:
    """Writes the checkpoints of a run, one at a time."""

    folder: Path
    environment: Environment
    keep: int = 2
    """How many to leave, beside those of the passes that each of these may come back to."""
    beside: bool = True
    """Whether a training may go on while one is written."""
    _copies: _Copies = field(init=False)
    _group: dist.ProcessGroup | None = None
    _writing: Future[Path] | None = None

    def __post_init__(self) -> None:
        self._copies = _Copies(self.environment)

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: KeyedOptimizer,
        metrics: Mapping[str, Tensor],
        progress: Mapping[str, Any],
        last: bool = False,
    ) -> None:
        """Write a checkpoint, once the one before is written. A collective: every rank calls it.

        Args:
            step: steps done.
            model: sharded, see `recsys.train.sharding.shard`.
            optimizer: its optimizer.
            metrics: tensors equal on every rank.
            progress: what JSON can say about the run so far, equal on every rank.
            last: nothing is trained beside it; it is written when this returns.

        Raises:
            torch.distributed.checkpoint.api.CheckpointException: a rank could not write (a full disk, say), this one or
                the one before; on every rank.
        """
        self.wait()
        state, layout = packed(training_state(model, optimizer, metrics, self.environment))
        beside = self.beside and not last and self._copies.fit(state)
        if beside:
            state = self._copies.of(state)
        writing = _Checkpoint(self.folder, step, state, written(layout), dict(progress), self.environment, self.keep)
        if beside:
            self._writing = _in_thread(writing, self._own_group())
        else:
            with Pulse(_WORK, self.environment):  # ranks have more or less to write: longer than a step may take
                writing.write(control_group())

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Until the checkpoint that is being written is there, if there is one. Raises what it ended with."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with Pulse(_WORK, self.environment):
                writing.result()

    def close(self) -> None:
        """Wait, and give back what was needed to write beside the training."""
        try:
            self.wait()
        finally:
            self._copies.forget()
            if self._group is not None:
                dist.destroy_process_group(self._group)
                self._group = None

    def _own_group(self) -> dist.ProcessGroup:
        """Its collectives run beside those of the training, in whatever order."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=FILE_TIMEOUT)
        assert self._group is not None  # every rank is in it
        return self._group


def training_state(
    model: nn.Module, optimizer: KeyedOptimizer, metrics: Mapping[str, Tensor], environment: Environment | None = None
) -> State:
    """What a checkpoint holds: of the random state that of this rank, or without an environment none."""
    state: State = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"], "metrics": dict(metrics)}
    state = {name: entries for name, entries in state.items() if entries}  # an empty one is saved, but never found
    if environment is not None:
        random = {"cpu": torch.get_rng_state()}
        if environment.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(environment.device)
        state["rng"] = {str(environment.rank): random}
    return state


@dataclass(frozen=True)
class _Checkpoint:
    """One that is to be written."""

    folder: Path
    step: int
    state: State
    layout: str
    """Where its small tensors are, see `recsys.train.packing`."""
    progress: dict[str, Any]
    environment: Environment
    keep: int

    def write(self, group: dist.ProcessGroup) -> Path:
        """Write it, then delete all but the newest and what these need. A collective of the group."""
        final = at(self.folder, self.step)
        unfinished = final.with_suffix(".tmp")
        self._on_main(lambda: self._begin(unfinished), group)
        dcp.save(self.state, checkpoint_id=unfinished, planner=PiecePlanner(), process_group=group)
        found: list[Any] = [None] * self.environment.world_size
        mine = (zlib.crc32(self.layout.encode()), _sums_or_error(unfinished, self.environment.rank))
        dist.all_gather_object(found, mine, group=group)
        for _, part in found:
            if isinstance(part, OSError):
                raise part
        assert len({layout for layout, _ in found}) == 1, "ranks have other small tensors; one of them wrote its own"
        files = {name: each for _, part in found for name, each in part.items()}
        self._on_main(lambda: self._finish(unfinished, final, files), group)
        return final

    def _on_main(self, work: Callable[[], None], group: dist.ProcessGroup) -> None:
        """Let rank 0 do something that the others wait for, and raise on every rank what it raises."""
        error: list[Exception | None] = [None]
        if self.environment.is_main:
            try:
                work()
            except Exception as problem:
                error = [problem]
        dist.broadcast_object_list(error, src=0, group=group)
        if error[0] is not None:
            raise error[0]

    def _begin(self, unfinished: Path) -> None:
        for rubbish in self.folder.glob("step-*.tmp"):  # of runs that were killed while writing
            shutil.rmtree(rubbish)
        unfinished.mkdir(parents=True)

    def _finish(self, unfinished: Path, final: Path, files: Sums) -> None:
        """Make good what all ranks have written, and delete what it is newer than."""
        _write(unfinished / LAYOUT, self.layout)
        files |= sums([unfinished / ".metadata", unfinished / LAYOUT])
        facts = {"step": self.step, "world_size": self.environment.world_size, "id": uuid.uuid4().hex}
        _write(unfinished / PROGRESS, sealed({**self.progress, **facts}, files))
        replaced = final.with_suffix(REPLACED)
        if final.exists():  # written before the pass that ended with this step was judged
            final.rename(replaced)
        unfinished.rename(final)
        _sync(self.folder)
        mark(final)
        shutil.rmtree(replaced, ignore_errors=True)
        found = checkpoints(self.folder)
        left = found[: found.index(final) + 1][-self.keep :]  # later ones are of a run that began again before them
        for old in {*found} - {*left, *chain.from_iterable(map(needed, left))}:
            shutil.rmtree(old)


def _sums_or_error(folder: Path, rank: int) -> Sums | OSError:
    """Of the files that a rank has written."""
    try:
        return sums(folder.glob(f"__{rank}_*"))
    except OSError as error:
        return error


class _Copies:
    """Copies of the state in the host's memory, which is kept from one checkpoint to the next."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._buffers: dict[str, Tensor] = {}

    def fit(self, state: State) -> bool:
        """Whether they do on every rank; those of tables in groups of ranks (2D) do not. A collective."""
        new: list[float] = []

        def note(name: str, value: Tensor) -> Tensor:
            size = math.inf if isinstance(value, DTensor) else _taken(value)  # 2D; nobody has copied these yet
            new.append(0 if name in self._buffers else size)
            return value

        _mapped(state, note)
        fits = sum(new) <= _OF_FREE * free_memory() / self._environment.local_world_size
        agreed = torch.tensor(int(fits), device=self._environment.device)
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
        return bool(agreed)

    @torch.no_grad()
    def of(self, state: State) -> State:
        """The state with copies of this rank's tensors."""
        copied = _mapped(state, self._copy)
        if self._environment.device.type == "cuda":
            torch.cuda.synchronize(self._environment.device)
        return copied

    def forget(self) -> None:
        """Free the memory. Of what is page-locked torch keeps a cache, which no other part of the program may have."""
        self._buffers = {}
        if self._environment.device.type == "cuda":
            give_back = getattr(torch.accelerator, "empty_host_cache", None) or torch._C._host_emptyCache  # 2.11
            give_back()

    def _copy(self, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            pinned = value.device.type == "cuda"
            buffer = self._buffers[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
        return buffer.copy_(value, non_blocking=True)


def _taken(value: Tensor) -> int:
    """Bytes of the host's memory for a copy: torch rounds what is page-locked up to a power of two."""
    size = value.nbytes
    return 1 << (size - 1).bit_length() if size and value.device.type == "cuda" else size


def _mapped(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    """The same state with every tensor, and every part of a sharded one that is here, changed."""
    if isinstance(value, Mapping):
        return {key: _mapped(each, change, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, ShardedTensor):
        shards = [
            Shard(change(f"{name}.{number}", shard.tensor.detach()), shard.metadata)
            for number, shard in enumerate(value.local_shards())
        ]
        return ShardedTensorBase._init_from_local_shards_and_global_metadata(
            shards, value.metadata(), value.sharding_spec()
        )
    return change(name, value.detach()) if isinstance(value, Tensor) else value


def _in_thread(writing: _Checkpoint, group: dist.ProcessGroup) -> Future[Path]:
    future: Future[Path] = Future()

    def run() -> None:
        try:
            if writing.environment.device.type == "cuda":  # a thread begins with the first: of all ranks that would be
                torch.cuda.set_device(writing.environment.device)
            future.set_result(writing.write(group))
        except BaseException as error:  # whoever waits is told
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


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
