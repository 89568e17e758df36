"""Whether all ranks were started for the same work: they would train on, and nobody could say what."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist

from recsys.identity import code_version, differences
from recsys.train.distributed import Environment


class RanksDifferError(ValueError):
    """Ranks of one job have another config, other files or other code; names what differs."""


def check_ranks_agree(identity: Mapping[str, Mapping[str, str]], environment: Environment) -> None:
    """Compare what a training is of with the other ranks'. A collective, before anything is trained.

    Args:
        identity: `files`, `config` and what else it depends on, as name -> value; also what may change from start to
            start, but not from rank to rank: when to log and to save, where collectives are.
        environment: this rank.

    Raises:
        RanksDifferError: on every rank.
    """
    mine = {**identity, "code": {"version": code_version()}}
    found: list[Mapping[str, Mapping[str, str]]] = [{} for _ in range(environment.world_size)]
    dist.all_gather_object(found, mine)
    for rank, other in enumerate(found):
        for part in mine:
            if told := differences(found[0].get(part, {}), other.get(part, {})):
                raise RanksDifferError(
                    f"rank {rank} was started with other {part} than rank 0: {told} there. Give all machines the same "
                    "config, data folder and version of this package"
                )
