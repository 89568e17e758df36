"""The kinds of upstreams: which model each is. All of them train by the one loop and publish by the one refresh.

What a model must have: `forward(batch) -> DermOutput`, `user_vector` and `item_vector`, whose towers are its attributes
`user` and `item`; `vocabulary`, `vector_dim` and `raise_logits`.
"""

from __future__ import annotations

from recsys.config import UpstreamConfig
from recsys.data.schema import Schema
from recsys.models.derm import DERM
from recsys.models.id_tables import IdTables

UpstreamModel = DERM | IdTables


def build_upstream(upstream: UpstreamConfig, schema: Schema) -> UpstreamModel:
    """The model of an upstream, its tables on "meta".

    Args:
        upstream: its config.
        schema: from `recsys.source.upstream_schema`.
    """
    tasks = [label.name for label in schema.labels]
    if upstream.kind == "contrastive":
        return IdTables(schema, upstream.contrastive, tasks)
    return DERM(schema, upstream.model, tasks)
