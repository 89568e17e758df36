"""What is published between two cycles, as torchx components: one process, in seconds."""

import torchx.specs as specs

from launchers.job import command, in_one_process


@in_one_process
def embed(config: str, rows: str, owner: str, data: str, out: str) -> specs.AppDef:
    """Embed rows of users or items that are new, or withdraw them.

    `torchx run -s local_cwd launchers/between.py:embed --config refresh-ctr.toml --rows new.parquet --owner item \
        --data D --out O`

    Args:
        config: config of the refresh (TOML)
        rows: Parquet file with one row an entity
        owner: whose rows these are, user or item
        data: folder of the prepared events
        out: folder of the run
    """
    return command("embed", config=config, rows=rows, owner=owner, data=data, out=out)


@in_one_process
def prior(config: str, data: str, out: str, events: str = "") -> specs.AppDef:
    """Count the items' prior anew and publish it.

    `torchx run -s local_cwd launchers/between.py:prior --config refresh-ctr.toml --data D --out O`

    Args:
        config: config of the refresh (TOML)
        data: folder of the prepared events
        out: folder of the run
        events: glob pattern of the files to count, relative to the data; empty: the source's and the days' files
    """
    return command("prior", config=config, data=data, out=out, events=events)
