"""What a user asks `recsys run`, `daily` and `demo` for: the study's config, and where its data come from.

Nothing here imports torch: a config's mistakes are told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys.config import ConfigError, StudyConfig, override
from recsys.recipes import Recipe

CONFIG = "config.toml"
"""Name of the study's config in the folder of its run."""


@dataclass(frozen=True)
class Opened:
    """A study whose config is valid and written into the folder of its run."""

    study: StudyConfig
    data: Path
    """The folder that the config's paths are relative to."""
    prepare: Callable[[], None] | None
    """Makes the data of a recipe."""


def open_study(
    recipe: str, recipes: Mapping[str, Recipe], data: Path | None, out: Path, assignments: tuple[str, ...]
) -> Opened:
    """Read a study's config and claim the folder of its run for it.

    Args:
        recipe: a name of `recipes`, or the path of a TOML config.
        recipes: those with a name.
        data: raw files for a recipe; prepared Parquet for a TOML config.
        out: folder of the run.
        assignments: `path=value` changes of the config.

    Raises:
        ConfigError: unknown recipe, a mistake in the config or an assignment, or `out` holds a run of another config.
        DataError: the recipe needs raw files.
    """
    if recipe in recipes:
        entry, prepared = recipes[recipe], out / "data"
        entry.check_source(data)
        opened = Opened(override(entry.config(), assignments), prepared, lambda: entry.prepare(data, prepared))
    elif Path(recipe).is_file():
        study = override(StudyConfig.load(recipe), assignments)
        if data is None:
            raise ConfigError(f"--data is missing: give the folder that the paths in {recipe} are relative to")
        opened = Opened(study, data, None)
    else:
        raise ConfigError(f"recipe {recipe!r} is unknown; use {', '.join(recipes)}, or the path of a TOML config")
    _claim(opened.study, out)
    return opened


def _claim(study: StudyConfig, out: Path) -> None:
    """Write the config into `out`; if work has been done there, see that it was for the same one."""
    path = out / CONFIG
    begun = any((out / folder).is_dir() for folder in ("stages", "upstream"))
    if begun and path.is_file() and StudyConfig.load(path) != study:
        raise ConfigError(f"{out} holds a run of another config ({path}): choose another --out, or delete the folder")
    out.mkdir(parents=True, exist_ok=True)
    study.save(path)
