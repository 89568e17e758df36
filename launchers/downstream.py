"""The downstream job as a torchx component."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def downstream(
    config: str,
    data: str,
    out: str,
    store: str = "",
) -> specs.AppDef:
    """Train and test the rankers: on all ranks together, or where they fit one rank's memory a rank each.

    `torchx run -s local_cwd launchers/downstream.py:downstream --config rankers.toml --data D --out O -j 1x2`

    Args:
        config: config of the rankers (TOML)
        data: folder of the prepared events
        out: folder of the run
        store: the store that the rankers read; empty: the run's own
    """
    return command("downstream", config=config, data=data, out=out, store=store)
