"""The training of a ranker that is deployed, as a torchx component."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def ranker(
    config: str,
    arm: str,
    data: str,
    out: str,
    store: str,
    compiled: bool = False,
    start: str = "",
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
    """
    return command("ranker", config=config, arm=arm, data=data, out=out, store=store, compiled=compiled, start=start)
