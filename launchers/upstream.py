"""The upstream job as a torchx component."""

import torchx
import torchx.specs as specs

from launchers.job import recsys_job


def upstream(
    config: str,
    data: str,
    out: str,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = torchx.IMAGE,
) -> specs.AppDef:
    """Train one upstream model.

    `torchx run -s local_cwd launchers/upstream.py:upstream --config ctr.toml --data D --out O -j 1x2`

    Args:
        config: the upstream's config (TOML)
        data: folder of the prepared events
        out: folder of the run
        j: nodes x ranks per node
        cpu: CPU cores per node
        gpu: GPUs per node; one rank uses one GPU
        memory: memory per node in MB
        image: container image, for schedulers that run containers
    """
    arguments = ("upstream", "--config", config, "--data", data, "--out", out)
    return recsys_job("upstream", arguments, j=j, cpu=cpu, gpu=gpu, memory=memory, image=image)
