"""A bundle that follows its folder while its process serves: program and vectors move together, or neither does.

    live = LiveBundle("runs/cart-ranker/bundle")
    scores = live.predict(rows)

A thread looks whether `bundle.json` is another one, after `recsys repin` or a new `recsys bundle`; loads and checks
what it names, program and pinned tables, beside the present bundle; and swaps it in with one assignment. A request is
answered by one bundle from beginning to end. What is wrong with a new one is in `error`, never in an answer.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa
import torch
from torch import Tensor

from recsys.bundle.bundle import Bundle, Prepared, load_bundle, place_of
from recsys.bundle.manifest import Manifest
from recsys.data.convert import to_batch
from recsys.data.errors import DataError

_log = logging.getLogger(__name__)
_LONGEST_S = 86_400.0
_LINGER_S = 1.0
"""Most seconds for which the thread keeps a bundle that was replaced, so that no request pays for giving it back."""
_PATIENCE = 6
"""After so many failures in a row, each of which doubles the time until the next look, it grows no more."""


class LiveBundle:
    """A ranker that is replaced while it serves.

    While another one is loaded both are in memory. What is wrong with it is in `error`, and it is looked at again after
    1, 2, 4, ... intervals, at most 64. Threads may share a LiveBundle; after a fork parent and child each follow on
    their own, but not a child on a GPU, which it has not. The thread ends with `close`, with the last reference to the
    LiveBundle, or with the process.

    Args:
        path: folder of the bundle, or a link to one, which may come to point to another.
        device: where to compute.
        store: the store, where it is not at the place that the bundle names.
        vectors: where to look up; in the host's memory, unless said otherwise.
        interval_s: seconds between two looks, at most a day; 0: only `refresh` looks.

    Raises:
        BundleError, StoreError: see `load_bundle`. All vectors are read and checked.
        ValueError: `interval_s` is out of bounds.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        store: str | Path | None = None,
        vectors: torch.device | str = "cpu",
        interval_s: float = 1.0,
    ) -> None:
        if not 0 <= interval_s <= _LONGEST_S:
            raise ValueError(
                f"interval_s is {interval_s}; use seconds, at most a day, or 0 to look only when `refresh` is called"
            )
        self._path, self._store = Path(path), store
        self._device, self._vectors = place_of(device), place_of(vectors)
        self._interval_s = interval_s
        self._state = _State(self._load())
        self._start()

    @property
    def bundle(self) -> Bundle:
        """The one that is served now. Who asks it several things in turn should keep it, but no longer than that: it
        stays in memory meanwhile."""
        return self._state.bundle

    @property
    def error(self) -> Exception | None:
        """Why the bundle that is there is not served; None where it is."""
        return self._state.error

    @property
    def swaps(self) -> int:
        """How often another one took over."""
        return self._state.swaps

    def predict(self, rows: pa.Table | pa.RecordBatch) -> dict[str, Tensor]:
        """Probabilities and expected values of some events, by one bundle: see `Bundle.predict`."""
        return self._state.bundle.predict(rows)

    def answers(self, requests: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[dict[str, Tensor] | DataError]:
        """What `predict` says of each request, in their order; of one that it refuses, the error.

        While the device computes one, a thread draws the next one and does what the CPU does for it: ids to rows, and
        the lookup of the vectors. So a request may wait for the one after it to be asked for, never for it to come;
        and it is answered by the bundle that was served when it was drawn. Ending early waits for the request that is
        being drawn. On a GPU all of it is done on the caller's stream.

        Raises:
            Exception: what `requests` raises, after all before it were answered.
        """
        source = iter(requests)
        with ThreadPoolExecutor(1, thread_name_prefix="live-bundle") as thread:
            ahead = thread.submit(self._next, source, self._stream())
            while (begun := ahead.result()) is not None:
                ahead = thread.submit(self._next, source, self._stream())
                answer = begun.finish() if isinstance(begun, _Begun) else begun
                del begun  # a caller may take its time, and should not keep a bundle that was replaced
                yield answer

    def refresh(self) -> bool:
        """Look now, and take over what is there; whether another bundle took over.

        Waits for a look that the thread has begun, and never raises: see `error`. Works after `close` too.
        """
        replaced = self._look(lambda: True)
        if replaced is not None:
            replaced.release_pages()
        return replaced is not None

    def close(self) -> None:
        """End the thread. What is served goes on."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(self) -> torch.cuda.Stream | None:
        """On which this thread has a GPU work."""
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

    def _next(
        self, source: Iterator[pa.Table | pa.RecordBatch], stream: torch.cuda.Stream | None
    ) -> _Begun | DataError | None:
        """The next request, prepared on a stream; the error of one that is refused; None at the end."""
        for rows in source:
            bundle = self._state.bundle  # the one that is to finish it too
            try:
                with ExitStack() as used:
                    if stream is not None:  # of a GPU that is current first: else its end begins a context on another
                        used.enter_context(torch.cuda.device(self._device))
                        used.enter_context(torch.cuda.stream(stream))
                    return _Begun(bundle, bundle.prepare(to_batch(rows, bundle.schema)) if len(rows) else None)
            except DataError as error:
                return error.with_traceback(None)
        return None

    def _load(self, go_on: Callable[[], bool] | None = None) -> Bundle:
        """Load and check: with all threads at first, when nobody waits for answers yet; with `go_on` unnoticed."""
        bundle = load_bundle(self._path, self._device, store=self._store, vectors=self._vectors, go_on=go_on)
        bundle.check(go_on)
        return bundle

    def _look(self, go_on: Callable[[], bool]) -> Bundle | None:
        """Look for another bundle and swap it in. Returns the one that was replaced, if one was."""
        with self._looking:
            state = self._state
            try:
                # Held against what was loaded, not against what was last seen: a link may be switched in between.
                if _facts(Manifest.load(self._path)) == _facts(state.bundle.manifest):
                    self._state = state._replace(error=None)
                    return None
                bundle = self._load(go_on)
            except Exception as error:  # whatever it is, requests are answered
                if go_on():  # else it was broken off
                    self._failed(error)
                return None
            if not go_on():  # the check was broken off
                return None
            self._state = _State(bundle, state.swaps + 1)
            _log.info("%s: another bundle is served", self._path)
            return state.bundle

    def _failed(self, error: Exception) -> None:
        if (type(error), str(error)) != (type(self.error), str(self.error)):
            _log.warning("%s: the bundle before goes on: %s", self._path, error)
        # Its frames would keep what was loaded in memory; from Python 3.12 on in a circle of their own.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self._state = self._state._replace(error=error)

    def _start(self) -> None:
        """Begin to follow; anew in a forked child, where no other thread lives."""
        self._looking, self._ended = threading.Lock(), threading.Event()
        arguments = (weakref.ref(self), self._ended, self._interval_s)
        self._thread = threading.Thread(target=_follow, args=arguments, daemon=True, name="live-bundle")
        # Runs at interpreter exit too, before daemon threads are torn out of native code.
        self._finalizer = weakref.finalize(self, _end, self._ended, self._thread)
        if self._interval_s:
            self._thread.start()
        _following.add(self)


class _State(NamedTuple):
    """What is served and how that came to be: one assignment, so that who reads several of these mixes no two looks."""

    bundle: Bundle
    swaps: int = 0
    error: Exception | None = None


class _Begun(NamedTuple):
    """A request of which the device's part is left; nothing is prepared of no rows."""

    bundle: Bundle
    prepared: Prepared | None

    def finish(self) -> dict[str, Tensor]:
        return self.bundle.nothing() if self.prepared is None else self.bundle.run(self.prepared)


def _facts(manifest: Manifest) -> str:
    """Equal for equal manifests; of the dataclasses themselves not, where a figure is NaN."""
    return json.dumps(asdict(manifest))


def _follow(reference: weakref.ref[LiveBundle], ended: threading.Event, interval_s: float) -> None:
    """What the thread does; it holds no reference while it waits."""
    failures = 0
    while not ended.wait(min(interval_s * 2 ** min(failures, _PATIENCE), _LONGEST_S)):
        live = reference()
        if live is None:
            return
        replaced = live._look(lambda: not ended.is_set())
        failures = 0 if live.error is None else failures + 1
        del live
        if replaced is not None:
            ended.wait(min(_LINGER_S, interval_s))
            replaced.release_pages()
            del replaced


def _end(ended: threading.Event, thread: threading.Thread) -> None:
    ended.set()
    if thread.is_alive() and thread is not threading.current_thread():  # it may itself drop the last reference
        thread.join(timeout=10.0)


_following: weakref.WeakSet[LiveBundle] = weakref.WeakSet()


def _after_fork() -> None:
    for live in list(_following):
        live._finalizer.detach()
        live._looking = threading.Lock()  # `refresh` works after `close` too
        if not live._ended.is_set() and live._device.type != "cuda":  # a child would fail at every bundle
            live._start()


os.register_at_fork(after_in_child=_after_fork)
