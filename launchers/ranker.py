"""The training of a ranker that is deployed, as a torchx component."""

import torchx
import torchx.specs as specs

from launchers.job import recsys_job


def ranker(
    config: str,
    arm: str,
    data: str,
    out: str,
    store: str,
    compiled: bool = False,
    start: str = "",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = torchx.IMAGE,
) -> specs.AppDef:
    """Train one ranker on all ranks together and leave it as a bundle, OUT/bundle.

    `torchx run -s local_cwd launchers/ranker.py:ranker --config cart.toml --arm ctr_user --data D --out O --store S`

    Args:
        config: config of the rankers (TOML)
        arm: name of the arm whose series the ranker reads
        data: folder of the prepared events
        out: folder of the work and of the bundle
        store: the store that the ranker reads
        compiled: also compile the program with AOTInductor
        start: out of an earlier ranker of this arm, to go on from; empty: train anew
        j: nodes x ranks per node
        cpu: CPU cores per node
        gpu: GPUs per node; one rank uses one GPU
        memory: memory per node in MB
        image: container image, for schedulers that run containers
    """
    arguments = ["ranker", "--config", config, "--arm", arm, "--data", data, "--out", out, "--store", store]
    arguments += ["--compiled"] if compiled else []
    arguments += ["--start", start] if start else []
    return recsys_job("ranker", arguments, j=j, cpu=cpu, gpu=gpu, memory=memory, image=image)
