"""The Python door to a ranker that was deployed: `load_bundle(path).predict(rows)`."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from embedding_store import EmbeddingStore
from recsys.bundle.manifest import COMPILED, PROGRAM, SCHEMA, VOCABULARY, BundleError, Manifest, verified
from recsys.bundle.pins import PinnedFeatures
from recsys.bundle.program import Inputs, on_device
from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.schema import Schema
from recsys.models.vocabulary import Vocabulary

_loading = threading.RLock()
"""torch.export loads one program at a time; a fork waits, so that no child gets one that is half loaded."""
_SWITCH_S = 1e-4
os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


class Prepared(NamedTuple):
    """What `Bundle.run` takes."""

    rows: int
    inputs: Inputs


class Bundle:
    """A ranker with the vectors that it reads, got from `load_bundle`. Threads may share it."""

    def __init__(
        self,
        manifest: Manifest,
        schema: Schema,
        vocabulary: Vocabulary,
        program: Callable[..., Tensor],
        features: PinnedFeatures,
        device: torch.device,
    ) -> None:
        self.manifest = manifest
        self.schema = schema
        """The columns it reads; it has no labels."""
        self.device = device
        self._vocabulary = vocabulary
        self._program = program
        self._features = features
        self._streams = dict[int, torch.cuda.Stream]()
        weakref.finalize(self, _give_back, program, self._streams).atexit = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the outputs, in their order: a task's, or `<task>_expected` where that is an expected value."""
        return tuple(task.output for task in self.manifest.tasks)

    def predict(self, rows: pa.Table | pa.RecordBatch | Batch) -> dict[str, Tensor]:
        """Recalibrated probabilities, and expected values, of some events.

        Args:
            rows: the columns of `schema.columns()`; or a batch, fresh from `to_batch` with that schema.

        Returns:
            task -> float32 [B] on the bundle's device.

        Raises:
            DataError: a column is missing or has a wrong type; a value is out of bounds or an id is null: then it is a
                `RowError`, which says which row.
        """
        if not len(rows):
            return self.nothing()
        return self.run(self.prepare(rows if isinstance(rows, Batch) else to_batch(rows, self.schema)))

    def check(self, go_on: Callable[[], bool] | None = None) -> None:
        """Read and check all vectors now: see `PinnedFeatures.check`."""
        self._features.check(go_on)

    def release_pages(self) -> None:
        """Give most of the vectors' memory back where nobody needs them soon: see `PinnedFeatures.release_pages`."""
        self._features.release_pages()

    def nothing(self) -> dict[str, Tensor]:
        """What is said of no events."""
        return {task: torch.zeros(0, device=self.device) for task in self.tasks}

    def prepare(self, batch: Batch) -> Prepared:
        """All of `predict` that the CPU does, and the lookup of the vectors. The batch holds a row at least."""
        joined = self._features(self._vocabulary.resolve(batch))
        return Prepared(len(batch), Inputs.of(joined, self.device))

    def run(self, prepared: Prepared) -> dict[str, Tensor]:
        """The rest of `predict`."""
        with torch.no_grad(), self._noted():
            scores = self._program(*prepared.inputs)[: prepared.rows]
        return dict(zip(self.tasks, scores.unbind(1), strict=True))

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """A GPU's current stream is known to read the weights. A compiled program takes that of the GPU that is current
        in the thread, so let it be this one."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream(self.device)
            self._streams[stream.cuda_stream] = stream
            yield


def load_bundle(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    store: str | Path | None = None,
    vectors: torch.device | str | None = None,
    go_on: Callable[[], bool] | None = None,
) -> Bundle:
    """Load a ranker, and open the pinned versions of the vectors that it reads.

    Every file is held against its checksum first. Where the bundle has a compiled program for this kind of device, that
    one is run.

    Args:
        path: folder of the bundle.
        device: where to look up and to compute.
        store: the store, where it is not at the place any more that the bundle names.
        vectors: where to look up, if not on `device`: "cpu" leaves the tables in the host's memory, mapped.
        go_on: of copies of tables to a GPU what it is of `Bundle.check`; where it says False they end with an error.

    Raises:
        BundleError: no bundle, a changed or missing file, one that was replaced while it was read, or pinned versions
            that are gone or of another space; or `vectors` is a GPU, and `device` the CPU.
        StoreError: the store cannot be read.
    """
    folder, where = Path(path).resolve(), place_of(device)  # a link may come to point elsewhere meanwhile
    tables = where if vectors is None else place_of(vectors)
    if where.type == "cpu" and tables.type != "cpu":
        raise BundleError(
            f"vectors is {str(vectors)!r}, but device {str(device)!r}: a ranker on the CPU reads them there; "
            f"leave vectors out, or give device={str(vectors)!r}"
        )
    manifest = Manifest.load(folder)
    with verified(folder, manifest):
        opened = EmbeddingStore(store or manifest.store)
        features = PinnedFeatures(opened, manifest.pins, manifest.history, manifest.history_pooling, tables, go_on)
        schema = Schema.load(folder / SCHEMA)
        vocabulary = Vocabulary(schema)
        with np.load(folder / VOCABULARY) as owners:
            vocabulary.restore({owner: torch.from_numpy(owners[owner]) for owner in owners})
        program = _program(folder, manifest, where)
    return Bundle(manifest, schema, vocabulary, program, features, where)


def place_of(device: torch.device | str) -> torch.device:
    """The same, of a GPU with its number: to another thread "cuda" may be another one."""
    found = torch.device(device)
    unnumbered = found.type == "cuda" and found.index is None and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if unnumbered else found


def _program(folder: Path, manifest: Manifest, device: torch.device) -> Callable[..., Tensor]:
    if manifest.compiled == device.type:
        number = -1 if device.index is None else device.index
        return torch._inductor.aoti_load_package(str(folder / COMPILED), device_index=number)
    with _loading, _giving_way():
        return on_device(torch.export.load(folder / PROGRAM), device).module()


@contextmanager
def _giving_way() -> Iterator[None]:
    """Loading a program is a second of Python. A thread that serves beside it needs the interpreter after each of its
    operations, and would wait for it 5 ms each time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _give_back(program: Callable[..., Tensor], streams: dict[int, torch.cuda.Stream]) -> None:
    """The weights, once nobody has the bundle. The modules refer to one another in a circle, which a full garbage
    collection alone would find: late, and with all threads stopped. `streams`: on which a GPU may be reading them
    still; torch would give their memory to others at once."""
    for module in program.modules() if isinstance(program, nn.Module) else ():
        for weights in (module._parameters, module._buffers):
            for tensor, stream in itertools.product(weights.values(), streams.values()):
                if tensor is not None:
                    tensor.record_stream(stream)
            weights.clear()
