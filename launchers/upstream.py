"""The upstream job as a torchx component."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def upstream(
    config: str,
    data: str,
    out: str,
) -> specs.AppDef:
    """Train one upstream model.

    `torchx run -s local_cwd launchers/upstream.py:upstream --config ctr.toml --data D --out O -j 1x2`

    Args:
        config: the upstream's config (TOML)
        data: folder of the prepared events
        out: folder of the run
    """
    return command("upstream", config=config, data=data, out=out)
