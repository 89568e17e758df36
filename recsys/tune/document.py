"""`tune.json`: the trials of a search, under stable keys; `tune.html` is rendered from it alone.

format_version          int; raised when a key goes or changes its meaning
name                    str; of the config
commit, hardware.*      as in report.json; of the machine that began
space.<path>            list of values, or {low, high}: what is searched, `*` for every upstream
own.<path>              the config's own values, where its upstreams agree: the first trial's settings
trials                  list, one a trial, in their order:
  number                int; its folder is trials/<number>
  state                 str; running, done or failed
  settings.<path>       value
  score                 number; mean over tasks of `ne`; null unless done
  ne.<task>             number; normalized entropy of the validation rows, recalibrated, of the rankers' first seed
  seconds               number; of its stages
  reason                str; why it failed, else empty
best                    int; number of the trial with the least score; null: none is done
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys.atomic import write_json, write_text
from recsys.config import ConfigError, StudyConfig
from recsys.evaluate.html import render
from recsys.study.environment import commit, hardware
from recsys.study.report import load_document
from recsys.tune.space import Range, Space

FORMAT_VERSION = 1
RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass
class Trial:
    """One row of the document."""

    number: int
    settings: dict[str, Any]
    state: str = RUNNING
    score: float | None = None
    ne: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""


class Trials:
    """The trials of a search in its folder: what there is of them, and the files that say so.

    Args:
        out: folder of the search.
        study: the config.
        space: path -> values to try.
        own: the config's own values of them.

    Raises:
        ConfigError: the folder holds trials of another space.
        ReportError: its tune.json cannot be read.
    """

    def __init__(self, out: Path, study: StudyConfig, space: Space, own: Mapping[str, Any]) -> None:
        self.out = out
        path = out / "tune.json"
        written = {key: asdict(values) if isinstance(values, Range) else list(values) for key, values in space.items()}
        self._head = {"format_version": FORMAT_VERSION, "name": study.name, "space": written, "own": dict(own)}
        self._head |= {"commit": commit(), "hardware": hardware()}
        self.own = dict(own)
        self.rows: list[Trial] = []
        if path.is_file():
            document = load_document(path, FORMAT_VERSION)
            if document["space"] != written:
                raise ConfigError(
                    f"{out} holds trials of another search ({path}, `space`): give the same --set, or another --out"
                )
            self._head = {key: document[key] for key in self._head}
            self.rows = [Trial(**row) for row in document["trials"]]

    @property
    def best(self) -> Trial | None:
        """The one with the least score; the first of equals."""
        done = [row for row in self.rows if row.score is not None]
        return min(done, key=lambda row: row.score or 0.0, default=None)

    def scored(self) -> list[tuple[Mapping[str, Any], float]]:
        """Settings and score of those that are done."""
        return [(row.settings, row.score) for row in self.rows if row.score is not None]

    def folder(self, trial: Trial) -> Path:
        """Where a trial's jobs work."""
        return self.out / "trials" / str(trial.number)

    def write(self) -> None:
        """Write tune.json, then tune.html."""
        best = self.best
        trials = [asdict(row) for row in self.rows]
        document = {**self._head, "trials": trials, "best": best.number if best else None}
        write_json(self.out / "tune.json", document)
        write_text(self.out / "tune.html", render_trials(document))


def render_trials(document: Mapping[str, Any]) -> str:
    """The page: every trial, the best first."""
    rows = sorted(document["trials"], key=lambda row: (row["score"] is None, row["score"] or 0.0, row["number"]))
    best = next((row for row in rows if row["number"] == document["best"]), None)
    return render(
        "recsys.tune",
        "tune.html",
        document=document,
        rows=rows,
        best=best,
        headline=_headline(document, best),
        tasks=list(best["ne"]) if best else [],
        varied=[path for path in document["space"] if len({str(row["settings"].get(path)) for row in rows}) > 1],
    )


def _headline(document: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "No trial is done yet"
    first = document["trials"][0]["score"]
    if best["number"] == 0:
        return f"The config's own settings are the best so far: validation NE {best['score']:.4f}"
    less = f", {1 - best['score'] / first:.2%} below the config's own {first:.4f}" if first else ""
    return f"Best of {len(document['trials'])} trials: validation NE {best['score']:.4f}{less}"
