"""Scoring with a bundle, as a torchx component."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def score(
    bundle: str,
    data: str,
    out: str,
    files: str = "**/*.parquet",
    store: str = "",
    device: str = "cpu",
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
    """
    return command("score", bundle, data=data, out=out, files=files, device=device, store=store)
