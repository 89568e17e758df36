"""The refresh job as a torchx component."""

import torchx
import torchx.specs as specs

from launchers.job import recsys_job


def refresh(
    config: str,
    data: str,
    out: str,
    day: str = "",
    cold: bool = False,
    every: bool = False,
    after_refused: bool = False,
    train: bool = False,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = torchx.IMAGE,
) -> specs.AppDef:
    """One refresh cycle of an upstream: train on its next day, embed, aggregate, publish, tag.

    `torchx run -s local_cwd launchers/refresh.py:refresh --config refresh-ctr.toml --data D --out O -j 1x2`

    Args:
        config: config of the refresh (TOML)
        data: folder of the prepared events
        out: folder of the run
        day: ISO date of the cycle to run; empty: whichever is due
        cold: train from scratch, in a new space
        every: go on until no day is due
        after_refused: go on from the newest day even where a gate refused it
        train: train the upstream on its source first, as the upstream job does
        j: nodes x ranks per node
        cpu: CPU cores per node
        gpu: GPUs per node; one rank uses one GPU
        memory: memory per node in MB
        image: container image, for schedulers that run containers
    """
    arguments = ["refresh", "--config", config, "--data", data, "--out", out]
    arguments += ["--day", day] if day else []
    arguments += ["--cold"] if cold else []
    arguments += ["--every"] if every else []
    arguments += ["--after-refused"] if after_refused else []
    arguments += ["--train"] if train else []
    return recsys_job("refresh", arguments, j=j, cpu=cpu, gpu=gpu, memory=memory, image=image)
