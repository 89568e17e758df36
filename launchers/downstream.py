"""The downstream job as a torchx component."""

import torchx
import torchx.specs as specs

from launchers.job import recsys_job


def downstream(
    config: str,
    data: str,
    out: str,
    store: str = "",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = torchx.IMAGE,
) -> specs.AppDef:
    """Train and test the rankers: on all ranks together, or where they fit one rank's memory a rank each.

    `torchx run -s local_cwd launchers/downstream.py:downstream --config rankers.toml --data D --out O -j 1x2`

    Args:
        config: config of the rankers (TOML)
        data: folder of the prepared events
        out: folder of the run
        store: the store that the rankers read; empty: the run's own
        j: nodes x ranks per node
        cpu: CPU cores per node
        gpu: GPUs per node; one rank uses one GPU
        memory: memory per node in MB
        image: container image, for schedulers that run containers
    """
    arguments = ["downstream", "--config", config, "--data", data, "--out", out]
    arguments += ["--store", store] if store else []
    return recsys_job("downstream", arguments, j=j, cpu=cpu, gpu=gpu, memory=memory, image=image)
