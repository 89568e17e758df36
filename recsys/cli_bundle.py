"""The subcommands of rankers that are deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

# Rooms are imported inside the functions, as in cli.py.


def bundle(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    arm: str,
    data: Path,
    store: str,
    out: Path,
    ranks: int = 2,
    compiled: bool = False,
    start: Path | None = None,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = (),
) -> None:
    """Train one ranker on all ranks together, all its tasks in one model, and leave it as files that a service loads.

    Stopped, it goes on from its last checkpoint when the same command is given again. No test file is opened.

    Args:
        config: The rankers' TOML config (`recsys config ranker`; a run has them in OUT/configs).
        arm: Name of the arm whose series the ranker reads; "none" for no vectors, where the config has it.
        data: Folder that the config's paths are relative to.
        store: The store to read, say runs/mine/store or s3://bucket/prefix; its newest versions are pinned.
        out: Folder of the work; the bundle is OUT/bundle.
        ranks: Processes that train it together.
        compiled: Also compile the program with AOTInductor, for this kind of device (needs a C++ compiler).
        start: OUT of an earlier ranker of this arm, to go on from with the rows of this config: it scores them first.
        set_: Change one value of the config, `path=value`; may be repeated.
    """
    from recsys.checks import check_rankers
    from recsys.jobs import warm_up

    settings = check_rankers(config, data, store, set_, compared=False)
    warm_up()
    from recsys.bundle.command import make_bundle

    make_bundle(settings, arm, data, store, out, ranks, compiled=compiled, start=start)


def score(
    bundle: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    data: Path,
    files: str = "**/*.parquet",
    out: Path,
    store: str = "",
    ranks: int = 1,
    device: str = "cpu",
) -> None:
    """Score Parquet files with a bundle: ids, time and a probability (of values: the expected one) for each task.

    Stopped, it goes on where it was when the same command is given again. Under `torchx run` every rank does its share.

    Args:
        bundle: Folder of the bundle.
        data: Folder of the files.
        files: Glob pattern of the files to score, relative to the data.
        out: Folder that gets the scores, in files of the same names.
        store: The store, where it is not at the place any more that the bundle names.
        ranks: Processes that share the files.
        device: Where to compute, say cuda: each rank on a GPU of its own, as far as there are so many.
    """
    from recsys.bundle.command import score as score_share

    score_share(bundle, data, files, out, store, ranks, device)


def repin(bundle: Annotated[Path, tyro.conf.Positional], /, *, store: str = "", max_drift: float = 0.5) -> None:
    """Let a bundle read the newest versions of its series, if these are of the same spaces and have not moved too far.

    Args:
        bundle: Folder of the bundle.
        store: The store, where it is not at the place any more that the bundle names.
        max_drift: 1 - median cosine, of vectors that changed, that a series may have moved by.
    """
    from recsys.bundle.command import move

    move(bundle, store, max_drift)


def publish(out: Annotated[Path, tyro.conf.Positional], /, *, data: Path, name: str, store: str = "") -> None:
    """Publish the tables that a ranker has learned on top of a store's series (`tables` of its arm) as new series.

    Args:
        out: Folder that `recsys bundle` worked in.
        data: Folder of the events that it was trained on.
        name: The series are user_NAME and item_NAME.
        store: Where to; left out, the store that the ranker reads.
    """
    from recsys.bundle.publish import publish_tables

    for snapshot in publish_tables(out, data, name, store=store):
        print(f"{snapshot.series}: version {snapshot.version} of {snapshot.rows:,} in space {snapshot.space}")
