"""What the components have in common: a `recsys` subcommand on some ranks, under torch elastic."""

from collections.abc import Sequence

import torchx.specs as specs
from torchx.components import dist


def recsys_job(
    name: str, arguments: Sequence[str], *, j: str, cpu: int, gpu: int, memory: int, image: str
) -> specs.AppDef:
    """A job called `name` that runs `recsys <arguments>` on every rank; the rest as each component says."""
    env = {"OMP_WAIT_POLICY": "PASSIVE"}  # see recsys/jobs.py
    if gpu:
        env["RECSYS_GPUS"] = str(gpu)  # a rank that finds fewer says so: recsys/train/distributed.py
    return dist.ddp(*arguments, m="recsys.cli", name=name, j=j, cpu=cpu, gpu=gpu, memMB=memory, image=image, env=env)
