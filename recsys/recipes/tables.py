"""What tables of ids and a graph are worth to rankers: the ablation of MFLET (arXiv 2508.05700), on public logs."""

from __future__ import annotations

from dataclasses import replace

from recsys.config import (
    ArmConfig,
    EndConfig,
    GraphConfig,
    LossConfig,
    RelationConfig,
    RetrievalConfig,
    StudyConfig,
    UpstreamConfig,
)
from recsys.recipes.logs import kuairand


def kuairand_tables() -> StudyConfig:
    """KuaiRand-Pure: rankers without, with tables from scratch, with tables pretrained by contrast and by a graph, and
    with DERM's vectors; upstreams learn from the histories before 25 April 2022."""
    config = kuairand()
    derm, source = config.upstreams[0], config.upstreams[0].source
    contrastive = UpstreamConfig(
        name="mf",
        kind="contrastive",
        source=source,
        tasks=("long_view", "is_like"),
        loss=LossConfig(
            contrastive_label="long_view",
            positives={"long_view": 1.0, "is_like": 1.0},
            uniform_negatives=256,
        ),
    )
    videos = ("history/items/*.parquet",)
    graph = UpstreamConfig(
        name="graph",
        kind="graph",
        source=source,
        tasks=("long_view",),
        graph=GraphConfig(
            relations=(
                relation("watched", "user=user_id", "item=item_id"),
                relation("long_watched", "user=user_id", "item=item_id", where="long_view"),
                relation("liked", "user=user_id", "item=item_id", where="is_like"),
                relation("by", "item=item_id", "author=author_id", events=videos),
                relation("plays", "item=item_id", "music=music_id", events=videos),
                relation("tagged", "item=item_id", "tag=tags", events=videos),
            )
        ),
    )
    return replace(
        config,
        name="KuaiRand-Pure, tables of ids",
        note="Real impressions of a short-video app. Upstreams learned from the histories before 25 April 2022 alone: "
        "mf, tables of ids by contrast; graph, by who watched and liked what, of which author, music and tags; ctr, a "
        "DERM. Rankers were trained on 25 April - 4 May, tuned on 5-6 May and tested once on 7-8 May (China days).",
        upstreams=(contrastive, graph, derm),
        arms=table_arms("mf", "graph", derm.name),
        rankers=replace(config.rankers, tasks={"ctr": "is_click"}),
        fragment=None,
        retrieval=RetrievalConfig(upstream="mf"),
    )


def relation(name: str, head: str, tail: str, *, where: str = "", events: tuple[str, ...] = ()) -> RelationConfig:
    """A relation whose ends are written `type=column`."""
    ends = [EndConfig(type=kind, column=column) for kind, column in (end.split("=") for end in (head, tail))]
    return RelationConfig(name=name, head=ends[0], tail=ends[1], where=where, events=events)


def table_arms(contrastive: str, graph: str, derm: str) -> tuple[ArmConfig, ...]:
    """MFLET's steps: tables of the ranker's own, the first facet, the second one, both, both fine-tuned, DERM, all."""
    both, every = pair(contrastive) + pair(graph), pair(contrastive) + pair(graph) + pair(derm)
    return (
        ArmConfig(name="scratch", series=both, tables=dict.fromkeys(both, "scratch")),
        ArmConfig(name="contrastive", series=pair(contrastive)),
        ArmConfig(name="graph", series=pair(graph)),
        ArmConfig(name="both", series=both),
        ArmConfig(name="both_fine_tuned", series=both, tables=dict.fromkeys(both, "fine_tuned")),
        ArmConfig(name="derm", series=pair(derm)),
        ArmConfig(name="everything", series=every),
    )


def pair(*upstreams: str) -> tuple[str, ...]:
    """The series of users and items of these."""
    return tuple(f"{owner}_{name}" for name in upstreams for owner in ("user", "item"))
