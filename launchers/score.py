"""Scoring with a bundle, as a torchx component."""

import torchx
import torchx.specs as specs

from launchers.job import recsys_job


def score(
    bundle: str,
    data: str,
    out: str,
    files: str = "**/*.parquet",
    store: str = "",
    device: str = "cpu",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    image: str = torchx.IMAGE,
) -> specs.AppDef:
    """Score Parquet files with a bundle: every rank takes its share of them.

    `torchx run -s local_cwd launchers/score.py:score --bundle runs/cart/bundle --data D --out O -j 1x2`

    Args:
        bundle: folder of the bundle
        data: folder of the files
        out: folder that gets the scores
        files: glob pattern of the files, relative to the data
        store: the store; empty: the one that the bundle names
        device: where to compute, say cuda
        j: nodes x ranks per node
        cpu: CPU cores per node
        gpu: GPUs per node; one rank uses one GPU
        memory: memory per node in MB
        image: container image, for schedulers that run containers
    """
    arguments = ["score", bundle, "--data", data, "--out", out, "--files", files, "--device", device]
    arguments += ["--store", store] if store else []
    return recsys_job("score", arguments, j=j, cpu=cpu, gpu=gpu, memory=memory, image=image)
