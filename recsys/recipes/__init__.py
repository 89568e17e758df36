"""Named complete configs: each is a plain function that returns the `StudyConfig` of one data set's way to a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recsys.config import ConfigError, StudyConfig, override
from recsys.data.completejourney import find_completejourney, prepare_completejourney
from recsys.data.deskdrop import prepare_deskdrop
from recsys.data.errors import DataError
from recsys.data.kuairand import prepare_kuairand
from recsys.data.movielens import prepare_movielens_1m, prepare_movielens_100k
from recsys.data.synthetic import prepare_synthetic
from recsys.mistakes import meant
from recsys.recipes.journey import completejourney, completejourney_daily, completejourney_demo
from recsys.recipes.logs import deskdrop, deskdrop_daily, kuairand, kuairand_daily, movielens_1m, movielens_100k
from recsys.recipes.market import demo, synthetic, synthetic_daily, synthetic_daily_small, synthetic_small
from recsys.recipes.tables import kuairand_tables


@dataclass(frozen=True)
class Recipe:
    """A data set: how to prepare it, and the config that reads what was prepared."""

    config: Callable[[], StudyConfig]
    write: Callable[[Path, Path], None]
    needs_source: bool = True
    find: Callable[[], Path] | None = None
    """Where the raw files are, if no folder of them is given; None: nobody knows."""

    def check_source(self, source: Path | None) -> None:
        """Raise DataError where files are needed and no folder of them is given, nor found."""
        if self.needs_source and source is None:
            if self.find is None:
                raise DataError(
                    "the folder of the raw files is missing: give it with --source (prepare) or --data (run)"
                )
            self.find()

    def prepare(self, source: Path | None, out: Path) -> None:
        """Turn raw files in `source` into events and schemas in `out`.

        Raises:
            DataError: there is no source, or its files are not what they should be.
        """
        self.check_source(source)
        self.write(source or (self.find() if self.find else Path()), out)


RECIPES: dict[str, Recipe] = {
    "kuairand": Recipe(kuairand, prepare_kuairand),
    "kuairand-tables": Recipe(kuairand_tables, prepare_kuairand),
    "deskdrop": Recipe(deskdrop, prepare_deskdrop),
    "movielens-1m": Recipe(movielens_1m, prepare_movielens_1m),
    "movielens-100k": Recipe(movielens_100k, prepare_movielens_100k),
    "completejourney": Recipe(completejourney, prepare_completejourney, find=find_completejourney),
    "completejourney-demo": Recipe(completejourney_demo, prepare_completejourney, find=find_completejourney),
    "synthetic": Recipe(synthetic, lambda _, out: prepare_synthetic(out), needs_source=False),
    "demo": Recipe(demo, lambda _, out: prepare_synthetic(out), needs_source=False),
    "synthetic-small": Recipe(
        synthetic_small,
        lambda _, out: prepare_synthetic(out, users=600, items=200, events_per_day=2000),
        needs_source=False,
    ),
}
"""Names for `recsys run` and `recsys prepare`."""

DAILY: dict[str, Recipe] = {
    "kuairand": Recipe(kuairand_daily, prepare_kuairand),
    "deskdrop": Recipe(deskdrop_daily, prepare_deskdrop),
    "completejourney": Recipe(completejourney_daily, prepare_completejourney, find=find_completejourney),
    "synthetic": Recipe(
        synthetic_daily,
        lambda _, out: prepare_synthetic(out, days=30, events_per_day=15_000, drift=0.2),
        needs_source=False,
    ),
    "synthetic-small": Recipe(
        synthetic_daily_small,
        lambda _, out: prepare_synthetic(out, users=600, items=200, days=10, events_per_day=2000, upstream_days=4),
        needs_source=False,
    ),
}
"""Names for `recsys daily`."""


def check_recipe(name: str, source: Path | None, assignments: tuple[str, ...]) -> None:
    """Check changes of a recipe, once or day by day, whichever they fit.

    Args:
        name: of the recipe.
        source: folder of its raw files; None: not given.
        assignments: `path=value` changes of its config.

    Raises:
        ConfigError: no such recipe, or changes that fit it neither way.
        DataError: `source` is no folder.
    """
    found = [recipes[name] for recipes in (RECIPES, DAILY) if name in recipes]
    if not found:
        known = dict.fromkeys((*RECIPES, *DAILY))
        raise ConfigError(f"recipe {name!r} is unknown{meant(name, known)}; use {', '.join(known)}, or a TOML config")
    if source is not None and not source.is_dir():
        raise DataError(f"--data is {source}, which is no folder: give the one with the raw files of {name}")
    mistakes = list[ConfigError]()
    for recipe in found:
        try:
            override(recipe.config(), assignments)
        except ConfigError as error:
            mistakes.append(error)
    if len(mistakes) == len(found):
        raise min(mistakes, key=lambda error: len(error.told))
