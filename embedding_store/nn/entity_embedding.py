"""The layer through which a model reads stored vectors.

users = EntityEmbedding([ctr.latest(), cvr.latest()], missing="learned", projection=32)
features = users(user_ids)  # [B, 64]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embedding_store.dtypes import DTYPES
from embedding_store.errors import InvalidArgumentError, InvalidIdsError, PinMismatchError, SchemaChangedError
from embedding_store.native import gpu, ops
from embedding_store.native.mapping import check_now
from embedding_store.nn.pins import Pin, reopen
from embedding_store.read.budget import Budget, budgets
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table
from embedding_store.read.tiered import TieredTable
from embedding_store.serve.ranks import on_cpu
from embedding_store.serve.sharded import ShardedTable, load_sharded

MISSING = ("zeros", "mean", "learned")


class EntityEmbedding(nn.Module):
    """Vectors of the same entities from several series, side by side: ids int64 [...] -> float [..., `out_dim`].

    The output holds for each series, in the order given, its vector or its vector's projection; after them, if wanted,
    a found flag (1 or 0) for each. Each series has a projection of its own, because its vectors lie in a space of their
    own and may be missing on their own. Vectors get no gradient; projections and learned vectors do. Values are of the
    parameters' dtype: `.half()` and `.bfloat16()` work; vectors stay as they are stored.

    A checkpoint holds no vectors but *pins*: which snapshots they came from. `load_state_dict` opens the very same ones
    again, whatever the layer was built on. `copy.deepcopy` shares the vectors, pickling keeps the pins.

    The tables are neither parameters nor buffers, because DistributedDataParallel would broadcast them into the mapped
    files; `.to(device)`, `torch.compile` and `torch.export` do see them. An exported program holds a copy of the
    vectors, which nothing checks any more: `torch.export` checks all of them first, and raises ChecksumError.

    With a `group` each rank holds its part of the rows, see `load_sharded`: what makes, calls and loads the layer are
    then collectives, every rank with ids of its own. Outputs, losses and checkpoints are the same. It is neither
    compiled nor exported nor pickled then: load the checkpoint into a layer without a group for that.

    Args:
        snapshots: one of each series.
        missing: what stands for the vector of an id that a series does not have: "zeros"; "mean", the mean of the
            snapshot's vectors; or "learned", a parameter for each series that starts as the mean.
        found_feature: append the found flags.
        projection: size of each series' projected vector; None: no projection.
        entity_dropout: in training, the probability for an entity to be treated as missing in every series, so that the
            model learns to live without; all positions of an id in one call share its fate.
        group: of torch.distributed, over whose ranks the rows are spread; None: this process has all of them.
        gpu_bytes: on a GPU, for index and rows in its memory, the other rows being read from host memory, as for
            Snapshot.load; on the CPU it does nothing. Of several series a mapping from name to bytes; one that it
            leaves out is copied whole. See `tiers`. The layer is exported on the CPU only then.
        hot_ids: int64 [N], whose rows should be in the GPU's memory, the most important one first; of several series
            a mapping from name.

    Raises:
        InvalidArgumentError: naming the argument and its value.
        InvalidIdsError: `hot_ids` are not int64 [N].
        CorruptStoreError: a snapshot cannot be loaded; of the class that fits, naming the file.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        *,
        missing: str = "zeros",
        found_feature: bool = False,
        projection: int | None = None,
        entity_dropout: float = 0.0,
        group: dist.ProcessGroup | None = None,
        gpu_bytes: int | Mapping[str, int] | None = None,
        hot_ids: Tensor | Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not snapshots:
            raise InvalidArgumentError("snapshots is empty: give one of each series")
        if missing not in MISSING:
            raise InvalidArgumentError(f"missing is {missing!r}; use one of {', '.join(MISSING)}")
        if projection is not None and projection < 1:
            raise InvalidArgumentError(f"projection is {projection}; use 1 or more, or None for no projection")
        if not 0 <= entity_dropout < 1:
            raise InvalidArgumentError(f"entity_dropout is {entity_dropout}; use a probability below 1")
        if group is not None and gpu_bytes is not None:
            raise InvalidArgumentError(f"gpu_bytes is {gpu_bytes} with a group, whose ranks hold rows whole: give one")
        given = budgets([snapshot.series for snapshot in snapshots], gpu_bytes, hot_ids)
        self.series = nn.ModuleList(
            _SeriesVectors(snapshot, missing, projection, group, given.get(snapshot.series)) for snapshot in snapshots
        )
        self.found_feature = found_feature
        self.entity_dropout = entity_dropout
        self.out_dim = sum(projection or snapshot.dim for snapshot in snapshots) + found_feature * len(snapshots)
        """Size of the last dimension of the output."""

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """What the vectors are from."""
        return tuple(series.snapshot for series in self._series())

    @property
    def tiers(self) -> dict[str, TieredTable]:
        """By series, what a layer with `gpu_bytes` reads on a GPU: its hits and, if they are counted, its accesses."""
        return {series.snapshot.series: series.tiered for series in self._series() if series.tiered is not None}

    def forward(
        self,
        ids: Tensor,  # int64 [...]
    ) -> Tensor:
        """float [..., `out_dim`]. Raises InvalidIdsError for ids that are not int64 or on another device."""
        device = self.series[0].storage.device
        if ids.dtype != torch.int64 or ids.device != device:
            if isinstance(table := self._series()[0].table, ShardedTable):
                table.refuse()
            raise InvalidIdsError(f"ids are {ids.dtype} on {ids.device}: give torch.int64 on {device}")
        kept = ~self._dropped(ids) if self.training and self.entity_dropout else None
        vectors, found = zip(*(series(ids, kept) for series in self.series), strict=True)
        if self.found_feature:
            vectors = (*vectors, torch.stack(found, dim=-1).to(vectors[0].dtype))
        return torch.cat(vectors, dim=-1)

    def _dropped(self, ids: Tensor) -> Tensor:  # bool [...]
        """A choice of `entity_dropout` of all ids, another one each time: 24 bits of a hash with a random seed."""
        x = ids ^ torch.randint(-(2**62), 2**62, (), device=ids.device)
        x = (x ^ (x >> 33 & 0x7FFFFFFF)) * -0xAE502812AA7333  # murmur3's finaliser, as signed numbers
        x = (x ^ (x >> 33 & 0x7FFFFFFF)) * -0x3B314601E57A13AD
        return (x >> 40 & 0xFFFFFF) < round(self.entity_dropout * 2**24)

    def get_extra_state(self) -> dict[str, Any]:
        """The pins, as strings and integers: any loader of checkpoints accepts them."""
        return {"pins": [Pin.of(snapshot).to_dict() for snapshot in self.snapshots]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Open the snapshots that were pinned: in the stores that are used now, or else where they were.

        Raises:
            PinMismatchError: the layer is of other series, or a version exists but is another snapshot.
            SchemaChangedError: a pinned snapshot has another dim than this layer was built for.
            VersionExpiredError, VersionNotFoundError, SeriesNotFoundError: naming what is gone.
            DeviceMemoryError: the GPU has no room for the pinned vectors beside those that are there.
        """
        pins = [Pin.from_dict(fields) for fields in state["pins"]]
        names = [snapshot.series for snapshot in self.snapshots]
        if [pin.series for pin in pins] != names:
            pinned = ", ".join(pin.series for pin in pins)
            raise PinMismatchError(f"the checkpoint is of {pinned}, this layer of {', '.join(names)}: build it alike")
        for pin, present in zip(pins, self.snapshots, strict=True):
            if pin.dim != present.dim:
                raise SchemaChangedError(
                    f"the checkpoint's {pin.series} version {pin.version} has dim {pin.dim}; this layer was built on "
                    f"version {present.version}, dim {present.dim}: build it on version {pin.version}"
                )
        if pins != [Pin.of(snapshot) for snapshot in self.snapshots]:
            # All before the first is taken: where one cannot be had, or a GPU is full, nothing has changed.
            reopened = zip(self._series(), self._reopened(pins), strict=True)
            opened = [series.opened(snapshot) for series, snapshot in reopened]
            for series, vectors in zip(self._series(), opened, strict=True):
                series.hold(vectors)

    def _reopened(self, pins: Sequence[Pin]) -> list[Snapshot]:
        """The pinned snapshots; of a group on all ranks, or on none."""
        table = self._series()[0].table
        if not isinstance(table, ShardedTable):
            return reopen(pins, self.snapshots)
        found, error = list[Snapshot](), None
        try:
            found = reopen(pins, self.snapshots)
        except Exception as raised:
            error = raised
        on_cpu(table.group).agree(error)
        return found

    def _series(self) -> list[_SeriesVectors]:
        return list(self.series)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """For print(module)."""
        return f"out_dim={self.out_dim}, found_feature={self.found_feature}, entity_dropout={self.entity_dropout}"


class _Vectors(NamedTuple):
    """A snapshot's vectors on a device, as `_SeriesVectors` has them."""

    snapshot: Snapshot
    table: Table
    storage: Tensor
    layout: Tensor
    host_layout: Tensor
    tiered: TieredTable | None = None


class _SeriesVectors(nn.Module):
    """One series' vectors, what stands for the missing ones, and the projection."""

    storage: Tensor  # uint8 [bytes]
    layout: Tensor  # int64 [8 + 4 * S], where `storage` is
    host_layout: Tensor  # the same numbers, on the CPU where `storage` holds values: lookups take them, and faster
    missing: Tensor  # float [D]

    budget: Budget | None = None
    """Of a copy on a GPU. None in what was pickled before there were budgets."""
    tiered: TieredTable | None = None
    """On a GPU, with a budget, what `storage` and `layout` are of."""

    def __init__(
        self,
        snapshot: Snapshot,
        missing: str,
        projection: int | None,
        group: dist.ProcessGroup | None,
        budget: Budget | None,
    ) -> None:
        super().__init__()
        self.budget = budget
        self.policy = missing
        if missing == "learned":
            self.missing = nn.Parameter(torch.tensor(snapshot.statistics.mean))
        else:
            self.register_buffer("missing", torch.zeros(snapshot.dim), persistent=False)
        self.projection = nn.Linear(snapshot.dim, projection) if projection is not None else None
        table = snapshot.load() if group is None else load_sharded(snapshot, group)
        self.hold(self._placed(snapshot, table, self.missing.device))

    def opened(self, snapshot: Snapshot) -> _Vectors:
        """Its vectors on the device of the parameters, spread over the same ranks as the present ones, if these are."""
        spread = isinstance(self.table, ShardedTable)
        table = load_sharded(snapshot, self.table.group) if spread else snapshot.load()  # type: ignore[attr-defined]
        return self._placed(snapshot, table, self.missing.device)

    def hold(self, vectors: _Vectors) -> None:
        """Look up in these from here on."""
        self.snapshot, self.table, self.storage, self.layout, self.host_layout, self.tiered = vectors
        self.dim = self.table.dim
        self.dtype = self.table.dtype
        if self.policy == "mean":
            self.missing.copy_(torch.tensor(self.snapshot.statistics.mean))

    def forward(
        self,
        ids: Tensor,  # int64 [...]
        kept: Tensor | None,  # bool [...]; None: all
    ) -> tuple[Tensor, Tensor]:
        """float [..., D or projection], found bool [...]."""
        dtype = self.missing.dtype
        out = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
        exporting = torch.compiler._is_exporting_flag  # torch 2.11's compile takes is_exporting() for True
        if exporting and self.tiered is not None:
            raise InvalidArgumentError("the layer has gpu_bytes and is on a GPU: take it to the CPU to export it")
        if exporting and self.table.mapping is not None:
            check_now(self.table.mapping)  # the program keeps a copy, which nothing checks any more
        if isinstance(self.table, ShardedTable):
            vectors, found = self.table.lookup(ids, out)
        elif self.tiered is not None:
            vectors, found = self.tiered._lookup(ids, out)
        else:
            layout = self.layout if torch.compiler.is_compiling() else self.host_layout
            vectors, found = ops.lookup(ids, self.storage, layout, self.dim, self.dtype, out)
        if kept is not None:
            found = found & kept
        if kept is not None or self.policy != "zeros":  # else the op has written the zeros
            vectors = torch.where(found.unsqueeze(-1), vectors.to(dtype), self.missing)
        return (vectors.to(dtype) if self.projection is None else self.projection(vectors.to(dtype))), found

    def _placed(self, snapshot: Snapshot, table: Table, device: torch.device) -> _Vectors:
        """The vectors of a snapshot on a device; always from the files, so that every byte is checked on its way.
        `table` is on the CPU, unless it is spread."""
        if isinstance(table, ShardedTable):
            table = table.to(device)
        if device.type == "cpu" or isinstance(table, ShardedTable):
            return _Vectors(snapshot, table, table._storage, table.layout, table.layout)
        if device.type == "meta":
            layout = table.layout.to(device)
            return _Vectors(snapshot, table, table._storage.to(device), layout, layout)
        return self._copied(snapshot, table, device)

    def _copied(self, snapshot: Snapshot, table: Table, device: torch.device) -> _Vectors:
        """A copy of the mapped `table` on another device than the CPU, within the budget if there is one."""
        from embedding_store.read.upload import upload, upload_tiered  # not needed where only the CPU serves

        mapping, dtype = table.mapping, DTYPES[table.dtype]
        assert mapping is not None  # the table is on the CPU
        path = snapshot._storage.locate(snapshot.manifest.index.path)
        if self.budget is None:
            storage, host_layout = upload(
                mapping, table.layout, dim=table.dim, dtype=dtype, device=device, index_path=path
            )
            return _Vectors(snapshot, table, storage, gpu.copied(host_layout, storage.device), host_layout)
        copied = upload_tiered(
            mapping, table.layout, dim=table.dim, dtype=dtype, device=device, budget=self.budget, index_path=path
        )
        tiered = TieredTable(snapshot.manifest, copied)
        return _Vectors(snapshot, table, copied.storage, tiered.layout, tiered.host_layout, tiered)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _SeriesVectors:
        device = fn(self.layout.new_empty(0)).device
        # Before the parameters: where a GPU is full, they stay where the vectors are.
        moved = None if device == self.storage.device else self._placed(self.snapshot, self.table, device)
        super()._apply(fn, recurse)
        if moved is not None:
            self.hold(moved)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _SeriesVectors:
        memo.update({id(shared): shared for shared in (self.storage, self.layout, self.host_layout)})
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.table, ShardedTable):
            raise InvalidArgumentError("the layer is of a process group and cannot be pickled: save its state_dict")
        shared = ("snapshot", "table", "storage", "layout", "host_layout", "tiered")
        state = {key: value for key, value in self.__dict__.items() if key not in shared}
        return {**state, "pin": Pin.of(self.snapshot).to_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pin = Pin.from_dict(state.pop("pin"))
        super().__setstate__(state)
        (snapshot,) = reopen([pin])
        self.hold(self._placed(snapshot, snapshot.load(), self.missing.device))

    def extra_repr(self) -> str:
        """For print(module)."""
        version = f"{self.snapshot.series} version={self.snapshot.version}"
        return f"{version}, dim={self.dim}, dtype={self.dtype}, missing={self.policy}"
