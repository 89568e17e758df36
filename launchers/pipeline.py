"""A whole run as torchx components: one job, whose ranks go through all stages together."""

import torchx.specs as specs

from launchers.job import command, on_ranks


@on_ranks
def run(study: str, out: str, data: str = "") -> specs.AppDef:
    """Train the upstreams, publish their vectors, train the rankers, report what it was worth.

    `torchx run -s local_cwd launchers/pipeline.py:run --study mine/study.toml --data mine --out O -j 1x2`

    Args:
        study: config of the study (TOML), or the name of a recipe
        out: folder of the run
        data: folder of the prepared events, or of a recipe's raw files
    """
    return command("run", study, out=out, data=data)


@on_ranks
def daily(study: str, out: str, data: str = "") -> specs.AppDef:
    """Refresh the upstreams day by day, train the rankers, report what each day was worth.

    `torchx run -s local_cwd launchers/pipeline.py:daily --study mine/study.toml --data mine --out O -j 1x2`

    Args:
        study: config of the study (TOML) with its days, or the name of a recipe
        out: folder of the run
        data: folder of the prepared events, or of a recipe's raw files
    """
    return command("daily", study, out=out, data=data)
