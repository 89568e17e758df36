"""The kinds of upstreams: which model each is. All of them train by the one loop and publish by the one refresh.

What a model must have: `user_vector` and `item_vector`, `vector_dim`, a `vocabulary`, and `part_of(owner)`, what of it
is needed for the vectors of one. Those of events, trained by `recsys.event_upstream`, also have
`forward(batch) -> DermOutput` and `raise_logits`; a graph's links are trained on by `recsys.graph_upstream`.
"""

from __future__ import annotations

from recsys.config import UpstreamConfig
from recsys.data.relations import declared
from recsys.data.schema import Schema
from recsys.models.derm import DERM
from recsys.models.graph import GraphModel
from recsys.models.id_tables import IdTables

UpstreamModel = DERM | IdTables | GraphModel


def build_upstream(upstream: UpstreamConfig, schema: Schema) -> UpstreamModel:
    """The model of an upstream, its tables on "meta".

    Args:
        upstream: its config.
        schema: from `recsys.source.upstream_schema`.
    """
    tasks = [label.name for label in schema.labels]
    if upstream.kind == "contrastive":
        return IdTables(schema, upstream.contrastive, tasks)
    if upstream.kind == "graph":
        return GraphModel(declared(upstream.graph.relations, upstream.graph.rows), upstream.graph)
    return DERM(schema, upstream.model, tasks)
