"""The training of a two-tower retrieval model, as a torchx component."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def twotower(
    config: str,
    data: str,
    out: str,
    store: str,
) -> specs.AppDef:
    """Train a two-tower retrieval model on all ranks together and publish its vectors.

    `torchx run -s local_cwd launchers/twotower.py:twotower --config two_tower.toml --data D --out O --store S -j 1x2`

    Args:
        config: config of the model (TOML)
        data: folder of the prepared events
        out: folder of the work
        store: the store that it reads and writes
    """
    return command("twotower", config=config, data=data, out=out, store=store)
