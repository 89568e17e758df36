"""The training of a two-tower retrieval model, as a torchx component."""

import torchx
import torchx.specs as specs

from launchers.job import recsys_job


def twotower(
    config: str,
    data: str,
    out: str,
    store: str,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = torchx.IMAGE,
) -> specs.AppDef:
    """Train a two-tower retrieval model on all ranks together and publish its vectors.

    `torchx run -s local_cwd launchers/twotower.py:twotower --config two_tower.toml --data D --out O --store S -j 1x2`

    Args:
        config: config of the model (TOML)
        data: folder of the prepared events
        out: folder of the work
        store: the store that it reads and writes
        j: nodes x ranks per node
        cpu: CPU cores per node
        gpu: GPUs per node; one rank uses one GPU
        memory: memory per node in MB
        image: container image, for schedulers that run containers
    """
    arguments = ["twotower", "--config", config, "--data", data, "--out", out, "--store", store]
    return recsys_job("twotower", arguments, j=j, cpu=cpu, gpu=gpu, memory=memory, image=image)
