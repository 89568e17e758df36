"""The refresh job as a torchx component."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def refresh(
    config: str,
    data: str,
    out: str,
    day: str = "",
    cold: bool = False,
    every: bool = False,
    after_refused: bool = False,
    train: bool = False,
    store: str = "",
) -> specs.AppDef:
    """One refresh cycle of an upstream: train on its next day, embed, aggregate, publish, tag.

    `torchx run -s local_cwd launchers/refresh.py:refresh --config refresh-ctr.toml --data D --out O -j 1x2`

    Args:
        config: config of the refresh (TOML)
        data: folder of the prepared events
        out: folder of the run
        day: ISO date of the cycle to run; empty: whichever is due
        cold: train from scratch, in a new space
        every: go on until no day is due
        after_refused: go on from the newest day even where a gate refused it
        train: train the upstream on its source first, as the upstream job does
        store: folder or URL of the store, s3://bucket/prefix say; empty: what OUT has noted, or OUT/store
    """
    return command(
        "refresh",
        config=config,
        data=data,
        out=out,
        day=day,
        cold=cold,
        every=every,
        after_refused=after_refused,
        train=train,
        store=store,
    )
