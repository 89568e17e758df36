"""A snapshot that all ranks write, each the rows that it has: nobody gathers them, and rank 0 alone commits.

Where a rank must know whether others have an id, the ids go to the rank that their hash names, and the answers back.
All of it in the control group: before each of these calls a rank reads and writes files, for as long as that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from embedding_store import Fragment, IndexPiece, Series, SharedDraft, Snapshot
from recsys.data.hashing import splitmix64
from recsys.train.distributed import Environment, broadcast, control_group

ALONE = Environment(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
"""One process, without a process group."""

T = TypeVar("T")


def agreed(value: Callable[[], T], environment: Environment) -> T:
    """What it gives on rank 0, on every rank; what it raises there, too. A collective."""
    if environment.world_size == 1:
        return value()
    result, failed = broadcast(_tried(value) if environment.is_main else None, environment)
    if failed is not None:
        raise failed
    return result


def of_all(value: Callable[[], T], environment: Environment) -> list[T]:
    """What it gives on each rank, on every rank; what it raises on one, too. A collective."""
    if environment.world_size == 1:
        return [value()]
    found: list[Any] = [None] * environment.world_size
    dist.all_gather_object(found, _tried(value), group=control_group())
    for _, failed in found:
        if failed is not None:
            raise failed
    return [result for result, _ in found]


def _tried(value: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """An error too is for every rank: else the others would wait for ever."""
    try:
        return value(), None
    except Exception as error:
        return None, error


def total(count: int, environment: Environment) -> int:
    """The sum of all ranks' counts. A collective."""
    if environment.world_size == 1:
        return count
    counts = torch.tensor([count])
    dist.all_reduce(counts, group=control_group())
    return int(counts)


def in_step(items: Iterator[T], environment: Environment) -> Iterator[T | None]:
    """The items, then None as long as another rank has some. A collective."""
    item = next(items, None)
    while total(item is not None, environment):
        yield item
        item = next(items, None)


class SharedIds:
    """The ids that the ranks have together, each those of one part of the hashes. A collective, as `has` is."""

    def __init__(
        self,
        ids: Tensor,  # int64 [n], of this rank
        environment: Environment,
    ) -> None:
        self._environment = environment
        (received,), *_ = self._to_owners(ids)
        self._ids = received.sort().values

    def has(
        self,
        ids: Tensor,  # int64 [n]
    ) -> Tensor:  # bool [n]
        """Whether each is one of them."""
        if self._environment.world_size == 1:
            return is_in(ids, self._ids)
        (asked,), order, sent, received = self._to_owners(ids)
        answers = self._travel(is_in(asked, self._ids).to(torch.uint8), received, sent)
        known = torch.empty(len(ids), dtype=torch.bool)
        known[order] = answers.bool()
        return known

    def _to_owners(self, ids: Tensor) -> tuple[tuple[Tensor], Tensor, list[int], list[int]]:
        """Those that came, the order in which this rank's went, and how many to and from each rank."""
        ranks = self._environment.world_size
        if ranks == 1:
            return (ids,), torch.arange(len(ids)), [len(ids)], [len(ids)]
        owners = torch.from_numpy((splitmix64(ids.numpy().view("uint64")) % ranks).astype("int64"))
        order = owners.argsort(stable=True)
        sent = owners.bincount(minlength=ranks)
        received = self._travel(sent, [1] * ranks, [1] * ranks).tolist()
        return (self._travel(ids[order], sent.tolist(), received),), order, sent.tolist(), received

    def _travel(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        out = torch.empty(sum(received), dtype=rows.dtype)
        dist.all_to_all_single(out, rows, received, sent, group=control_group())
        return out


class SharedWriter:
    """Writes one snapshot with all ranks, in a `with` block: nothing is visible before `commit`. Every method but
    `append` and `delete` is a collective, and so is the end of the block if it is clean.

    Raises, when made, what Series.draft raises, on every rank.
    """

    def __init__(self, series: Series, environment: Environment, **options: Any) -> None:
        """`options`: of Series.draft, but for `parts`."""
        self._series, self._environment = series, environment
        self._draft: SharedDraft = agreed(lambda: series.draft(parts=environment.world_size, **options), environment)
        self._writer = series.fragment(self._draft, environment.rank)
        self._open = ExitStack()
        self._fragments: list[Fragment] | None = None
        self._pieces: list[IndexPiece | None] = []
        self.snapshot: Snapshot | None = None
        """After `commit`, on rank 0."""

    def append(
        self,
        ids: Tensor,  # int64 [n]
        vectors: Tensor,  # float [n, D]
    ) -> None:
        """Rows of this rank; each id on one of them. Raises what FragmentWriter.append raises."""
        self._writer.append(ids, vectors)

    def delete(
        self,
        ids: Tensor,  # int64 [n]
    ) -> None:
        """Leave these ids out of a delta. Raises what FragmentWriter.delete raises."""
        self._writer.delete(ids)

    def finish(self) -> None:
        """End this rank's fragment, and write its piece of the index. Raises, on every rank, what it raises on one."""

        def end() -> Fragment:
            self._open.close()
            return self._writer.fragment

        rank, environment = self._environment.rank, self._environment
        fragments = of_all(end, environment)
        self._pieces = of_all(lambda: self._series.index_piece(self._draft, fragments, rank), environment)
        self._fragments = fragments

    def commit(self) -> None:
        """After `finish`: publish, on rank 0; nothing on the others. Raises what Series.commit raises."""
        assert self._fragments is not None
        if self._environment.is_main:
            self.snapshot = self._series.commit(self._draft, self._fragments, self._pieces)

    def __enter__(self) -> SharedWriter:
        self._open.enter_context(self._writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, trace)
            return
        if self._fragments is None:
            self.finish()
        self.commit()


def is_in(
    ids: Tensor,  # int64 [n]
    among: Tensor,  # int64 [m], ascending
) -> Tensor:  # bool [n]
    """Whether each id is one of `among`."""
    if len(among) == 0:
        return torch.zeros(len(ids), dtype=torch.bool)
    return among[torch.searchsorted(among, ids).clamp_(max=len(among) - 1)] == ids
