"""A bundle that follows its folder while its process serves: program and vectors move together, or neither does.

    live = LiveBundle("runs/cart-ranker/bundle")
    scores = live.predict(rows)

A thread looks whether `bundle.json` is another one, after `recsys repin` or a new `recsys bundle`; loads and checks
what it names, program and pinned tables, beside the present bundle; and swaps it in with one assignment. A request is
answered by one bundle from beginning to end. What is wrong with a new one is in `error`, never in an answer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import torch
from torch import Tensor

from recsys.bundle.bundle import Bundle, Prepared, load_bundle
from recsys.bundle.manifest import MANIFEST
from recsys.data.convert import to_batch

_log = logging.getLogger(__name__)
_AHEAD = 1
"""Requests that are prepared while the one before them is computed."""


class LiveBundle:
    """A ranker that is replaced while it serves. Threads may share it; close it, or use it as a context.

    Args:
        path: folder of the bundle, or a link to one, which may come to point to another.
        device: where to look up and to compute.
        store: the store, where it is not at the place that the bundle names.
        interval_s: seconds between two looks; 0: only `refresh` looks.

    Raises:
        BundleError, StoreError: see `load_bundle`.
        ValueError: `interval_s` is negative.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        store: str | Path | None = None,
        interval_s: float = 1.0,
    ) -> None:
        if not interval_s >= 0:
            raise ValueError(f"interval_s is {interval_s}; use seconds, or 0 to look only when `refresh` is called")
        self._path, self._device, self._store = Path(path), device, store
        self._loading, self._ended = threading.Lock(), threading.Event()
        self.error: Exception | None = None
        """Why the bundle that is there is not served; None where it is."""
        self.swaps = 0
        """How often another one took over."""
        self._seen = self._manifest()
        self._bundle = load_bundle(self._path.resolve(), device, store=store)
        self._thread = threading.Thread(target=self._follow, args=(interval_s,), daemon=True, name="live-bundle")
        if interval_s:
            self._thread.start()

    @property
    def bundle(self) -> Bundle:
        """The one that is served now. Who asks it several things in turn should keep it."""
        return self._bundle

    def predict(self, rows: pa.Table | pa.RecordBatch) -> dict[str, Tensor]:
        """Probabilities and expected values of some events, by one bundle: see `Bundle.predict`."""
        return self._bundle.predict(rows)

    def answers(self, requests: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[dict[str, Tensor]]:
        """What `predict` says of each request, in their order. What the CPU does for the next one, ids to rows and the
        lookup of the vectors, is done while the device computes the one before.

        Raises:
            DataError: see `Bundle.predict`; the requests before it have been answered.
        """
        ahead = deque[Future[tuple[Bundle, Prepared | None]]]()
        with ThreadPoolExecutor(1, thread_name_prefix="live-bundle") as thread:
            for rows in requests:
                ahead.append(thread.submit(self._prepared, rows))
                if len(ahead) > _AHEAD:
                    yield _answer(*ahead.popleft().result())
            for each in ahead:
                yield _answer(*each.result())

    def refresh(self) -> bool:
        """Look now, and take over what is there; whether that is another bundle than before.

        Raises:
            BundleError, StoreError, OSError: it cannot be served; the one before goes on.
        """
        with self._loading:
            seen = self._manifest()
            if seen == self._seen:
                return False
            # Through the link once: what it points to meanwhile must not be read in part.
            bundle = load_bundle(self._path.resolve(), self._device, store=self._store)
            self._bundle, self._seen = bundle, seen
            self.swaps += 1
            return True

    def close(self) -> None:
        """Stop looking. What is served goes on."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepared(self, rows: pa.Table | pa.RecordBatch) -> tuple[Bundle, Prepared | None]:
        """By one bundle, which is to answer too; nothing of no rows."""
        bundle = self._bundle
        return bundle, bundle.prepare(to_batch(rows, bundle.schema)) if len(rows) else None

    def _manifest(self) -> bytes:
        return (self._path / MANIFEST).read_bytes() if (self._path / MANIFEST).is_file() else b""

    def _follow(self, interval_s: float) -> None:
        while not self._ended.wait(interval_s):
            try:
                if self.refresh():
                    _log.info("%s: another bundle is served", self._path)
                self.error = None
            except Exception as error:  # whatever it is, requests are answered
                if str(error) != str(self.error):
                    _log.warning("%s: the bundle before goes on: %s", self._path, error)
                self.error = error


def _answer(bundle: Bundle, prepared: Prepared | None) -> dict[str, Tensor]:
    return bundle.run(prepared) if prepared is not None else bundle.nothing()
