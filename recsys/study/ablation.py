"""The ablation: every ranker with and without the store's vectors, on the same rows from the same start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recsys.config import DownstreamConfig, RunConfig
from recsys.downstream.ranking import Ranker, train_each


def ablation_arms(upstreams: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Arm -> series, in the order of the paper's table (papers.md section 1).

    For the upstreams ctr and cvr: none, ctr_user, ctr_user_item, ctr_cvr_user_item.
    """
    first = upstreams[0]
    arms: dict[str, tuple[str, ...]] = {"none": (), f"{first}_user": (f"user_{first}",)}
    for count in range(1, len(upstreams) + 1):
        names = upstreams[:count]
        arms["_".join((*names, "user_item"))] = tuple(f"{owner}_{name}" for name in names for owner in ("user", "item"))
    return arms


def populations(config: RunConfig) -> dict[str, DownstreamConfig]:
    """Population -> its config: `tasks`, and `fragment` if the run has one."""
    return {"tasks": config.downstream, **({"fragment": config.fragment} if config.fragment else {})}


def all_rankers(config: RunConfig) -> Iterator[Ranker]:
    """Every ranker of a run."""
    arms = ablation_arms([upstream.name for upstream in config.upstreams])
    for population, downstream in populations(config).items():
        for task in downstream.tasks:
            for arm, series in arms.items():
                for seed in downstream.seeds:
                    yield Ranker(population, task, arm, series, seed)


def train_rankers(config: RunConfig, data: Path, out: Path) -> None:
    """Train every ranker of the ablation that has not left its predictions yet.

    Raises:
        SchemaError, DataError, KeyError: a file, feature, label or series is not there.
    """
    train_each(list(all_rankers(config)), populations(config), data, out, "downstream")
