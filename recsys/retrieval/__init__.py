"""Retrieval from the vectors of one version: items for users, by every item or by an index that was built before."""

from recsys.retrieval.manifest import RetrievalError
from recsys.retrieval.retriever import Retrieved, Retriever, open_exact, open_index
from recsys.retrieval.write import build_index

__all__ = ["RetrievalError", "Retrieved", "Retriever", "build_index", "open_exact", "open_index"]
