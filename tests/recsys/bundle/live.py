"""Two bundles of one store, one of them deployed, and threads that ask it without a pause."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from recsys.bundle import Bundle, LiveBundle

OFTEN_S = 0.001
SIZES = (5, 1, 0, 37, 2, 90)
"""Rows of the requests."""
Answer = dict[str, Tensor]


class Place(NamedTuple):
    """Bundles `a` of version 1 and `b`, another program of version 2, and a link to the one that is deployed."""

    folder: Path

    @property
    def link(self) -> Path:
        return self.folder / "deployed"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def deploy(self, name: str) -> None:
        """At once."""
        (self.folder / "next").symlink_to(self.folder / name)
        (self.folder / "next").replace(self.link)

    def serve(self, **options: float) -> LiveBundle:
        return LiveBundle(self.link, store=self.store, **{"interval_s": OFTEN_S} | options)


def answers_of(bundle: Bundle, requests: list[pa.Table]) -> list[Answer]:
    return [bundle.predict(rows) for rows in requests]


def same(one: Answer, other: Answer) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[task], other[task]) for task in one)


def until(condition: Callable[[], object]) -> None:
    """However long a busy machine takes."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(OFTEN_S)


class Load:
    """Threads that ask without a pause, three by `predict` and one by `answers`, and note whose answer each was."""

    def __init__(self, live: LiveBundle, requests: list[pa.Table], known: dict[str, list[Answer]]) -> None:
        self._live, self._requests, self._known = live, requests, known
        self.whose: list[list[str]] = [[] for _ in range(4)]
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(x,)) for x in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def of(self, name: str) -> bool:
        """Whether each thread's last answers, to every request that says something, were of this bundle."""
        return all(whose[-len(SIZES) :] == [name] * len(SIZES) for whose in self.whose)

    def changes(self) -> list[list[str]]:
        """What each thread saw, without repeats."""
        return [[name for name, _ in itertools.groupby(whose)] for whose in self.whose]

    def _asked(self) -> Iterator[pa.Table]:
        for rows in itertools.cycle(self._requests):
            if self._ended.is_set():
                return
            yield rows

    def _run(self, number: int) -> None:
        found = self._live.answers(self._asked()) if number == 3 else map(self._live.predict, self._asked())
        try:
            for place, answer in zip(itertools.cycle(range(len(self._requests))), found, strict=False):
                time.sleep(OFTEN_S)  # else the threads would keep a small machine from loading anything
                if len(self._requests[place]):
                    named = [name for name, known in self._known.items() if same(answer, known[place])]
                    self.whose[number] += named or ["a mixture"]
        except Exception as error:
            self.whose[number].append(repr(error))
