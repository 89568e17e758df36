"""What stored vectors are worth on every log at hand: `recsys run` on each of them, `recsys daily` where it has days.

    python -m benchmarks.worth --data DIR --out runs/worth

DIR holds a folder a public data set, as its publishers ship it: kuairand-pure, deskdrop, ml-1m, ml-100k. One that is
not there is left out, and said so; the market is SYNTHETIC and made on the spot. Each run is `OUT/<log>-<way>`, and
`OUT/worth.md` is written anew after each. Hours on two cores; stopped, the same command goes on: what has a report of
the same config is not run again. No choice sees a test day, but whoever reads the table does: settings (--set, another
OUT) are to be compared by the validation NE.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.worth_table import Entry, worth_page
from recsys.atomic import write_text
from recsys.config import StudyConfig, to_dict
from recsys.opening import open_study
from recsys.recipes import DAILY, RECIPES, Recipe
from recsys.study.daily_report import load_daily
from recsys.study.report import load_report, plain
from recsys.study.scores import ReportError

LOGS = {
    "kuairand": "kuairand-pure",
    "deskdrop": "deskdrop",
    "movielens-1m": "ml-1m",
    "movielens-100k": "ml-100k",
    "synthetic": "",
}
"""Recipe -> folder of its raw files; empty: it needs none."""
COMMANDS = {"once": "run", "daily": "daily"}
REFUSED = 3
"""Exit code of `recsys daily` where a gate refused a tag: the report is there."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, and where."""

    data: Path = Path("../shared/data")
    """Folder of the data sets."""
    out: Path = Path("runs/worth")
    """Folder of the runs and of the table."""
    logs: tuple[str, ...] = tuple(LOGS)
    """Recipes to run."""
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = ()
    """Change one value of every config, `path=value`; may be repeated."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.logs if name not in LOGS]
        if unknown:
            raise ValueError(f"logs names {unknown[0]!r}; use {', '.join(LOGS)}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One log in one way."""

    recipe: str
    way: str
    source: Path | None
    out: Path
    study: StudyConfig | None
    """None: its files are not there."""

    @property
    def log(self) -> str:
        """Name to show."""
        name = RECIPES[self.recipe].config().name
        return name if RECIPES[self.recipe].needs_source else f"{name} (SYNTHETIC)"

    def report(self) -> dict[str, Any] | None:
        """The report of a run of this very config that has come to its end."""
        try:
            document = (load_report if self.way == "once" else load_daily)(self.out)
        except (FileNotFoundError, ReportError):
            return None
        return document if self.study and document["config"] == plain(to_dict(self.study)) else None

    def entry(self, failure: str = "") -> Entry:
        """Its row of the table."""
        document = self.report()
        if document is not None:
            return Entry(log=self.log, way=self.way, document=document)
        reason = f"{self.source} is not there" if self.study is None else failure or "not run yet"
        return Entry(log=self.log, way=self.way, reason=reason)


def main(options: Options) -> None:
    """Run what is missing, and write the table.

    Raises:
        ConfigError: a folder holds a run of another config, or `set` does not fit; before anything is run.
        SystemExit: a run failed; the others were run nonetheless.
    """
    runs = planned(options)
    failures: dict[Path, str] = {}
    for number, run in enumerate(runs, start=1):
        entry = run.entry()
        state = "done before" if entry.document else "running" if run.study else f"left out, {entry.reason}"
        print(f"{number}/{len(runs)} {run.log}, {run.way}: {state}", flush=True)
        if run.study and not entry.document:
            code = start(run, options)
            if code not in (0, REFUSED):
                failures[run.out] = f"failed with exit code {code}: the same command again goes on"
        page = worth_page([each.entry(failures.get(each.out, "")) for each in runs], options.set_)
        write_text(options.out / "worth.md", page)
    print(f"\n{page}\n{options.out / 'worth.md'}")
    if failures:
        raise SystemExit(1)


def planned(options: Options) -> list[Run]:
    """All runs; each claims its folder for its config. Raises ConfigError, DataError."""
    runs = []
    for name in options.logs:
        for way, recipes in {"once": RECIPES, "daily": DAILY}.items():
            if name in recipes:
                runs.append(_planned(name, way, recipes, options))
    return runs


def _planned(name: str, way: str, recipes: dict[str, Recipe], options: Options) -> Run:
    out, source = options.out / f"{name}-{way}", options.data / LOGS[name] if LOGS[name] else None
    there = source is None or source.is_dir()
    study = open_study(name, recipes, source, out, options.set_).study if there else None
    return Run(recipe=name, way=way, source=source, out=out, study=study)


def start(run: Run, options: Options) -> int:
    """Run the command to its end, in a process of its own, whose memory is its own.

    Returns:
        its exit code.

    Raises:
        SystemExit: Ctrl-C.
    """
    source = ["--data", str(run.source)] if run.source else []
    changes = [word for assignment in options.set_ for word in ("--set", assignment)]
    command = [
        sys.executable,
        "-m",
        "recsys.cli",
        COMMANDS[run.way],
        run.recipe,
        *source,
        "--out",
        str(run.out),
        *changes,
    ]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it has met Ctrl-C too, has ranks to stop, and says how to go on
            raise SystemExit(130) from None


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
