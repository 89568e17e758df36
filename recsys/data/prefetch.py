"""Iterators that work ahead of their consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread, `depth` items ahead; its exceptions surface in `next`."""

    def __init__(self, source: Generator[T, None, None], depth: int) -> None:
        self._ready: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="recsys-input", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        item, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # whoever asks again gets the same answer
            raise error
        self._slots.release()
        assert item is not None
        return item

    def __iter__(self) -> Iterator[T]:
        return self

    def close(self) -> None:
        """Stop the thread and wait for it: at most for the one item it is working on."""
        self._stopped.set()
        self._slots.release()
        if self._thread is not threading.current_thread():  # the collector may find an abandoned iterator in any thread
            self._thread.join()

    def _run(self, source: Generator[T, None, None]) -> None:
        try:
            for item in source:
                self._slots.acquire()
                if self._stopped.is_set():
                    break
                self._ready.put((item, None))
            self._ready.put((None, StopIteration()))
        except BaseException as error:
            self._ready.put((None, error))
        finally:
            source.close()


def in_order(work: Callable[[S], T], items: Iterable[S], workers: int) -> Generator[T, None, None]:
    """`work` on each of the items, by so many threads, in the items' order: at most `workers` results are ahead.

    What `work` raises surfaces where its result would, and no item after it is begun. Closing waits for what has begun.
    One worker is the caller itself.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pending = deque[Future[T]]()
    with ThreadPoolExecutor(workers, "recsys-decode") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()
