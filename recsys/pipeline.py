"""A whole run, stage by stage: prepare, then for each upstream train and refresh, then the rankers, then the report.

Every stage is a job of its own (see `launchers/`) that leaves its result on disk, so a run that was stopped goes on
with the first stage that is not done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from recsys.checks import check_run
from recsys.config import ConfigError, RunConfig, override
from recsys.jobs import run_job
from recsys.recipes import RECIPES, Recipe
from recsys.stages import is_done, record
from recsys.study.collect import collect_results
from recsys.study.report import build_report, write_report
from recsys.study.terminal import print_report

CONFIG = "config.toml"


def run_recipe(recipe: str, data: Path | None, out: Path, assignments: tuple[str, ...] = ()) -> None:
    """Prepare the data of a recipe (or take a TOML config and prepared data) and run everything.

    Args:
        recipe: a name of `recsys.recipes.RECIPES`, or the path of a TOML config.
        data: raw files for a recipe; prepared Parquet for a TOML config.
        out: folder of the run.
        assignments: `path=value` changes of the config.

    Raises:
        ConfigError: unknown recipe, a bad assignment, or `out` holds a run of another config.
        DataError, SchemaError: the data do not fit; before anything is trained.
        JobError: a job failed.
    """
    config, prepared = open_run(recipe, RECIPES, data, out, assignments)
    run_config(config, prepared, out)


def open_run(
    recipe: str, recipes: Mapping[str, Recipe], data: Path | None, out: Path, assignments: tuple[str, ...]
) -> tuple[RunConfig, Path]:
    """Claim the folder of a run for its config, and prepare the data of a recipe unless they are.

    Returns:
        the config, and the folder that its paths are relative to.

    Raises:
        ConfigError, DataError: see `run_recipe`.
    """
    if recipe in recipes:
        entry = recipes[recipe]
        config, prepared = override(entry.config(), assignments), out / "data"
        _claim(config, out)
        _timed(out, "prepare", lambda: entry.prepare(data, prepared))
    elif Path(recipe).is_file():
        if data is None:
            raise ConfigError(f"--data is missing: give the folder that the paths in {recipe} are relative to")
        config, prepared = override(RunConfig.load(recipe), assignments), data
        _claim(config, out)
    else:
        raise ConfigError(f"recipe {recipe!r} is unknown; use {', '.join(recipes)}, or the path of a TOML config")
    return config, prepared


def run_config(config: RunConfig, data: Path, out: Path) -> None:
    """Run every stage of `config` on prepared data, then write and print the report.

    Raises:
        DataError, SchemaError, ConfigError: data and config do not fit; before anything is trained.
        JobError: a job failed.
    """
    check_run(config, data)
    ranks, common = ranks_here(config), job_arguments(data, out)
    for upstream in config.upstreams:
        job(out, f"upstream-{upstream.name}", ("upstream", "--name", upstream.name, *common), ranks)
        job(out, f"refresh-{upstream.name}", ("refresh", "--name", upstream.name, *common), ranks)
    job(out, "downstream", ("downstream", *common), ranks)
    report = build_report(collect_results(config, data, out))
    write_report(report, out)
    print_report(report)
    print(f"\nreport: {out / 'report.html'}  (figures: {out / 'report.json'})")


def job_arguments(data: Path, out: Path) -> tuple[str, ...]:
    """What every job of a run is told."""
    return ("--config", str(out / CONFIG), "--data", str(data), "--out", str(out))


def ranks_here(config: RunConfig) -> int:
    """The config's ranks, or one a GPU where this machine has GPUs, but fewer of them."""
    gpus = torch.cuda.device_count()
    if not 0 < gpus < config.ranks:
        return config.ranks
    print(f"{gpus} GPU{'s' if gpus > 1 else ''} here: {gpus} ranks a job instead of {config.ranks}")
    return gpus


def _claim(config: RunConfig, out: Path) -> None:
    """Write the config into `out`; if work has been done there, see that it was for the same one."""
    path = out / CONFIG
    begun = any((out / folder).is_dir() for folder in ("stages", "upstream"))
    if begun and path.is_file() and RunConfig.load(path) != config:
        raise ConfigError(f"{out} holds a run of another config ({path}): choose another --out, or delete the folder")
    out.mkdir(parents=True, exist_ok=True)
    config.save(path)


def job(out: Path, name: str, arguments: tuple[str, ...], ranks: int) -> None:
    """Run a stage's job, unless it has come to its end before. Raises JobError if it fails."""
    if is_done(out, name):
        print(f"{name}: done before")
        return
    print(f"{name}: {ranks} rank{'s' if ranks > 1 else ''}", flush=True)
    run_job(name, arguments, ranks, out / "logs" / name)


def _timed(out: Path, name: str, work: Callable[[], None]) -> None:
    if not is_done(out, name):
        start = time.monotonic()
        work()
        record(out, name, time.monotonic() - start)
        print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
