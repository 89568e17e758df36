"""What a user asks `recsys run`, `daily` and `demo` for: the study's config, and where its data come from.

Nothing here imports torch: a config's mistakes are told at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys.atomic import write_json
from recsys.checks import check_config
from recsys.config import ConfigError, StudyConfig, override
from recsys.folders import make_out
from recsys.identity import differences, identify_files
from recsys.recipes import Recipe

CONFIG = "config.toml"
"""Name of the study's config in the folder of its run."""
DATA = "data.json"
"""Name of the file there that says which data the run began with."""


@dataclass(frozen=True)
class Opened:
    """A study whose config is valid and written into the folder of its run."""

    study: StudyConfig
    data: Path
    """The folder that the config's paths are relative to."""
    prepare: Callable[[], None] | None
    """Makes the data of a recipe."""


def open_study(
    recipe: str,
    recipes: Mapping[str, Recipe],
    data: Path | None,
    out: Path,
    assignments: tuple[str, ...],
    *,
    tested: bool = True,
) -> Opened:
    """Read a study's config and claim the folder of its run for it.

    Args:
        recipe: a name of `recipes`, or the path of a TOML config.
        recipes: those with a name.
        data: raw files for a recipe; prepared Parquet for a TOML config.
        out: folder of the run.
        assignments: `path=value` changes of the config.
        tested: whether the test files will be read; otherwise they are not looked at.

    Raises:
        ConfigError: unknown recipe, a mistake in the config or an assignment, or `out` holds a run of another config or
            other data.
        DataError: the recipe needs raw files.
    """
    if recipe in recipes:
        entry, prepared = recipes[recipe], out / "data"
        entry.check_source(data)
        study = override(entry.config(), assignments)
        _claim(study, out, data, {})
        return Opened(study, prepared, lambda: entry.prepare(data, prepared))
    if not Path(recipe).is_file():
        raise ConfigError(f"recipe {recipe!r} is unknown; use {', '.join(recipes)}, or the path of a TOML config")
    try:
        study = override(StudyConfig.load(recipe), assignments)
    except ConfigError:
        check_config(Path(recipe), data, assignments)  # tells of schemas and files too
        raise
    if data is None:
        raise ConfigError(f"--data is missing: give the folder that the paths in {recipe} are relative to")
    named = _named_files(study if tested else study.without_test(), data)
    _claim(study, out, data, identify_files(named, data))
    return Opened(study, data, None)


def _claim(study: StudyConfig, out: Path, data: Path | None, files: dict[str, str]) -> None:
    """Write the config, and what the data are, into `out`; if work has been done there, see that it was for the same.

    Args:
        study: the config.
        out: folder of the run.
        data: prepared data; for a recipe, raw ones, or None once they have been prepared.
        files: of prepared data, from `identify_files`. They may be moved, and files may be added: all that the run
            began with must be there. Raw data are known by their folder alone.
    """
    make_out(out)
    path, known = out / CONFIG, out / DATA
    begun = any((out / folder).is_dir() for folder in ("stages", "upstream", "trials"))
    if begun and path.is_file() and StudyConfig.load(path) != study:
        raise ConfigError(f"{out} holds a run of another config ({path}): choose another --out, or delete the folder")
    if begun and known.is_file() and data is not None:
        before = json.loads(known.read_text())
        changed = differences(before["files"], {name: files[name] for name in before["files"] if name in files})
        if changed or (not files and before["folder"] not in ("", str(data.resolve()))):
            raise ConfigError(
                f"{out} holds a run on the data in {before['folder']}, not on those in {data}"
                f"{': ' if changed else ''}{changed}. Give --data {before['folder']}, or choose another --out"
            )
    else:
        write_json(known, {"folder": str(data.resolve()) if data else "", "files": files})
    study.save(path)


def _named_files(study: StudyConfig, data: Path) -> list[Path]:
    """The files below `data` that upstreams and rankers read: schemas, then events."""
    patterns: list[str] = []
    for upstream in study.upstreams:
        source = upstream.source
        patterns += [source.schema, *source.events, *source.users, *source.items]
    for rankers in (study.rankers, study.fragment):
        if rankers is not None:
            patterns += [rankers.schema, *rankers.train, *rankers.validation, *rankers.test]
    found = (sorted(data.glob(pattern)) for pattern in dict.fromkeys(patterns) if not Path(pattern).is_absolute())
    return list(dict.fromkeys(path for paths in found for path in paths if path.is_file()))
