"""Indexes of inner products by faiss: flat, HNSW, and IVF with product quantisation.

An item is [v / temperature, weight * prior - base], a user [u, 1]: the inner product is the score, less `base`. That is
the least of what the prior adds to any item, so that an item's last value is 0 or more, and greater the more popular it
is. Logs of shares are negative: without it the least popular items would be the longest vectors, and a graph of inner
products would link every item to them. Of 10,000 random items HNSW found 29 % of the best hundred so, and all with it.

faiss and torch each bring an OpenMP of their own, under different names: they live side by side, whichever is imported
first, and each keeps its own threads. Their threads take turns here, since one call ends before the next begins; faiss
is given as many as torch has, so that a process that is told to use few does.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.evaluate.nearest import Nearest
from recsys.retrieval.manifest import Kind, RetrievalError

LINKS = 32
"""HNSW: neighbours of an item in the graph; twice as many in its lowest layer."""
BUILD_WIDTH = 128
"""HNSW: candidates that are kept while an item is linked."""
SEARCH_WIDTH = 256
"""HNSW: candidates that are kept while a user is answered; twice k if that is more."""
LISTS_SHARE = 1 / 32
"""IVF: of its lists, the share that is searched; eight lists at least."""
DIMS_A_BYTE = 4
"""IVF-PQ: values that one byte of an item's code stands for."""
LEAST_ITEMS = 39 * 256
"""IVF-PQ: fewer cannot teach the 256 centroids of a byte, by faiss's own rule of 39 a centroid."""
_BATCH = 16_384
"""Items that are added at once, between two steps of the progress bar."""


def is_installed() -> bool:
    """Whether there is faiss."""
    return find_spec("faiss") is not None


def check_installed() -> None:
    """Raise RetrievalError unless there is faiss: it comes with the extra `retrieval`."""
    if not is_installed():
        raise RetrievalError(
            "an index needs faiss, which is not installed: pip install 'recsys-derm[retrieval]', or retrieve without "
            "an index"
        )


def check_kind(kind: Kind, items: int) -> None:
    """Raise RetrievalError unless an index of this kind can be built of so many items."""
    if not items:
        raise RetrievalError("there is no item to retrieve, so no index is built: publish vectors of items first")
    if kind == "ivfpq" and items < LEAST_ITEMS:
        raise RetrievalError(
            f"kind is 'ivfpq', which needs {LEAST_ITEMS:,} items, and there are {items:,}: use flat or hnsw"
        )


def lifted(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Items [N, D + 1] as an index takes them, a copy, and the `base` that their products lack."""
    base = float(vectors[:, -1].min())
    vectors = vectors.copy()
    vectors[:, -1] -= base
    return vectors, base


def build(vectors: NDArray[np.float32], kind: Kind, advance: Callable[[int], None]) -> Any:
    """A faiss index of some vectors [N, W], which are its rows; on one thread the same every time.

    Args:
        vectors: the items, as above.
        kind: of index; see `check_kind`.
        advance: is told how many items were added.
    """
    faiss = _faiss()
    index = _empty(faiss, kind, vectors.shape[1], len(vectors))
    vectors = _padded(vectors, index.d)
    if not index.is_trained:
        index.train(vectors)
    for first in range(0, len(vectors), _BATCH):
        part = vectors[first : first + _BATCH]
        index.add(part)
        advance(len(part))
    return index


def save(index: Any, path: Path) -> None:
    """Write an index."""
    _faiss().write_index(index, str(path))


def load(path: Path) -> Any:
    """Read an index that `save` has written."""
    return _faiss().read_index(str(path))


def search(
    index: Any,
    kind: Kind,
    queries: Tensor,  # float32 [U, W]
    k: int,
    without: Tensor,  # int64 [R], rows that nobody gets
    *,
    width: int = 0,
) -> Nearest:
    """Rows and inner products of the k items that the index holds for the best, best first; -1 and -inf where there is
    none. Those of `ivfpq` are of vectors that were rounded. `width`: of the search of `hnsw`, k at least; 0: as wide as
    is right for most, see SEARCH_WIDTH."""
    faiss = _faiss()
    chosen: dict[str, Any] = {}
    if len(without):
        chosen["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(without.numpy()))
    if kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=max(width, k) if width else max(SEARCH_WIDTH, 2 * k), **chosen)
    elif kind == "ivfpq":
        parameters = faiss.SearchParametersIVF(nprobe=max(8, round(index.nlist * LISTS_SHARE)), **chosen)
    else:
        parameters = faiss.SearchParameters(**chosen)
    scores, rows = index.search(_padded(queries.numpy(), index.d), k, params=parameters)
    found = Nearest(torch.from_numpy(rows), torch.from_numpy(scores))
    return Nearest(found.rows, found.scores.masked_fill(found.rows < 0, float("-inf")))


def _empty(faiss: Any, kind: Kind, width: int, items: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, LINKS, metric)
        index.hnsw.efConstruction = BUILD_WIDTH
        return index
    pieces = -(-width // DIMS_A_BYTE)
    lists = min(round(4 * items**0.5), items // 39)
    # np: without the training for a search by Hamming distance, which takes ten times as long as all the rest
    return faiss.index_factory(pieces * DIMS_A_BYTE, f"IVF{lists},PQ{pieces}np", metric)


def _padded(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """With as many zeros more as the index's pieces need."""
    if vectors.shape[1] == width:
        return np.ascontiguousarray(vectors)
    return np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))


def _faiss() -> Any:
    """faiss, with torch's number of threads. Raises RetrievalError if it is not installed."""
    check_installed()
    import faiss  # only here: it is an optional extra

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
