"""What each choice of ours is worth, in one table: `recsys run` of a recipe as it is, and with one thing changed.

    python -m benchmarks.ablations --recipe movielens-100k --data DIR --out runs/ablations

Every variation is a run of its own, `OUT/<variation>`; what it does not change, the trained upstreams or the rankers
without vectors, is that of the run as it is. Of the arm that reads all vectors: its lift over no vectors, and that of
the variation's rankers over those of the run as it is, on the same test rows, users and seeds drawn together.
`OUT/ablations.md` is written anew after each. Stopped, the same command goes on. What is compared was chosen before;
whoever picks a winner of it has looked at the test rows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from recsys.atomic import write_text
from recsys.config import StudyConfig
from recsys.downstream.ranking import Ranker, all_rankers
from recsys.downstream.validation import REFERENCE, Validation
from recsys.evaluate.bootstrap import Interval, paired_bootstrap
from recsys.evaluate.metrics import normalized_entropy, roc_auc
from recsys.evaluate.wording import title
from recsys.opening import open_study
from recsys.recipes import RECIPES
from recsys.study.ablation import ablation_jobs, fullest_job
from recsys.study.environment import commit, hardware

AS_IS = "as it is"
UPSTREAMS, REFRESH, RANKERS = "upstreams", "refresh", "rankers"


@dataclass(frozen=True)
class Variation:
    """One thing changed."""

    name: str
    part: str = ""
    """What of the study it changes: everything behind is run anew."""
    changes: tuple[str, ...] = ()
    """`path=value`; `*` stands for every upstream."""

    @property
    def folder(self) -> str:
        """Of its run."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)


VARIATIONS = (
    Variation(AS_IS),
    Variation("no contrastive loss", UPSTREAMS, ("upstreams.*.loss.contrastive_weight=0",)),
    Variation("contrastive weight 0.5", UPSTREAMS, ("upstreams.*.loss.contrastive_weight=0.5",)),
    Variation("no logQ correction", UPSTREAMS, ("upstreams.*.loss.log_q=false",)),
    Variation("one DHEN layer", UPSTREAMS, ('upstreams.*.model.layers=[["masknet", "mlp"]]',)),
    Variation(
        "three DHEN layers",
        UPSTREAMS,
        ('upstreams.*.model.layers=[["masknet", "mlp"], ["transformer", "mlp"], ["transformer", "mlp"]]',),
    ),
    Variation("stored as float32", REFRESH, ("refresh.dtype=float32",)),
    Variation("stored as int8", REFRESH, ("refresh.dtype=int8",)),
    Variation("stored as int4", REFRESH, ("refresh.dtype=int4",)),
    Variation("cross representations too", REFRESH, ("refresh.cross=true",)),
    Variation("vectors join unprojected", RANKERS, ("rankers.network.join=raw",)),
    Variation("vectors join projected together", RANKERS, ("rankers.network.join=together",)),
    Variation("a DCNv2 ranker", RANKERS, ("rankers.network.kind=dcnv2",)),
    Variation("a DHEN ranker", RANKERS, ("rankers.network.kind=dhen",)),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, and where."""

    recipe: str = "movielens-100k"
    """Of `recsys run`."""
    data: Path | None = None
    """Its raw files; the market needs none."""
    out: Path = Path("runs/ablations")
    """Folder of the runs and of the table."""
    variations: tuple[str, ...] = tuple(each.name for each in VARIATIONS)
    """Those to run, beside the run as it is."""
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = ()
    """Change one value of every run, `path=value`; may be repeated."""

    def __post_init__(self) -> None:
        known = [each.name for each in VARIATIONS]
        for name in self.variations:
            if name not in known:
                raise ValueError(f"variations names {name!r}; use {', '.join(map(repr, known))}")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe is {self.recipe!r}; use {', '.join(RECIPES)}")


def main(options: Options) -> None:
    """Run what is missing, and write the table. Raises SystemExit if a run failed."""
    chosen = [each for each in VARIATIONS if each.name in (AS_IS, *options.variations)]
    base = options.out / chosen[0].folder
    for number, variation in enumerate(chosen, start=1):
        out = options.out / variation.folder
        done = (out / "report.json").is_file()
        print(f"{number}/{len(chosen)} {variation.name}: {'done before' if done else 'running'}", flush=True)
        if not done:
            take_over(base, out, variation)
            run(options, variation, out)
        page = table(options, chosen[:number])
        write_text(options.out / "ablations.md", page)
    print(f"\n{page}\n{options.out / 'ablations.md'}")


def assignments(options: Options, variation: Variation) -> list[str]:
    """The changes of a run, upstream by upstream."""
    names = [upstream.name for upstream in RECIPES[options.recipe].config().upstreams]
    changes = [
        change.replace("*", name, 1) for change in variation.changes for name in (names if "*" in change else names[:1])
    ]
    return [*options.set_, *changes]


def take_over(base: Path, out: Path, variation: Variation) -> None:
    """Copy what the variation does not change from the run as it is: a run goes on with what is missing."""
    if not variation.part or out.exists():
        return
    kept = ["quarantine/*", "stages/prepare.*", "data", "data.json"]
    if variation.part != UPSTREAMS:
        kept += ["upstream", "stages/upstream-*"]
    if variation.part == RANKERS:
        kept += ["store", "stages/refresh-*"]
    else:  # without vectors nothing differs
        kept += [f"downstream/*/*/{REFERENCE}-*"]
    for pattern in kept:
        for path in base.glob(pattern):
            target = out / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)


def run(options: Options, variation: Variation, out: Path) -> None:
    """The command to its end, in a process of its own. Raises SystemExit if it failed."""
    source = ["--data", str(options.data)] if options.data else []
    changes = [word for change in assignments(options, variation) for word in ("--set", change)]
    command = [sys.executable, "-m", "recsys.cli", "run", options.recipe, *source, "--out", str(out), *changes]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{variation.name} failed with exit code {code}: the same command again goes on")


def study_of(options: Options, variation: Variation) -> StudyConfig:
    """The config of a run."""
    out = options.out / variation.folder
    return open_study(options.recipe, RECIPES, options.data, out, tuple(assignments(options, variation))).study


def table(options: Options, done: list[Variation]) -> str:
    """All that is done, in Markdown."""
    machine = hardware()
    lines = [
        f"# Ablations of `recsys run {options.recipe}`",
        "Test rows; 95 % intervals over users and seeds. NE: normalized entropy, less is better.",
        "| changed | task | ROC-AUC | NE | validation NE | lift over no vectors, % | over the run as it is, % |\n"
        "|---|---|---|---|---|---|---|",
    ]
    rows = [row for variation in done for row in _rows(options, done[0], variation)]
    lines[-1] += "".join(f"\n{row}" for row in rows)
    lines.append(f"{machine['cores']} cores of {machine['cpu']}, {', '.join(machine['gpu']) or 'no GPU'}; {commit()}.")
    if RECIPES[options.recipe].needs_source is False:
        lines.insert(1, "SYNTHETIC data.")
    return "\n\n".join(lines) + "\n"


def _rows(options: Options, base: Variation, variation: Variation) -> Iterator[str]:
    study = study_of(options, variation)
    own, plain = _readers(study), _plain(study)
    before = _readers(study_of(options, base))
    folders = options.out / variation.folder, options.out / base.folder
    for task in study.rankers.tasks:
        labels, users, said = _predictions(own, folders[0], task)
        _, _, none = _predictions(plain, folders[0], task)
        _, _, reference = _predictions(before, folders[1], task)
        validation = np.mean([Validation.load(ranker.validation(folders[0], task)).ne for ranker in own])
        auc, entropy = (np.mean([metric(labels, line) for line in said]) for metric in (roc_auc, normalized_entropy))
        over_none = _interval(paired_bootstrap(labels, users, none, said))
        over_base = "" if variation == base else _interval(paired_bootstrap(labels, users, reference, said))
        yield (
            f"| {variation.name} | {title(task)} | {auc:.4f} | {entropy:.4f} | {validation:.4f} | {over_none} | "
            f"{over_base} |"
        )


def _readers(study: StudyConfig) -> list[Ranker]:
    """The rankers that read all vectors."""
    return all_rankers(fullest_job(study))


def _plain(study: StudyConfig) -> list[Ranker]:
    """The rankers that read none."""
    return [ranker for ranker in all_rankers(ablation_jobs(study)["tasks"]) if ranker.arm == REFERENCE]


def _predictions(rankers: list[Ranker], out: Path, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and users [N], logits [S, N] of the test rows for which the label exists."""
    found = [ranker.read(out, task) for ranker in rankers]
    there = found[0]["mask"]
    return found[0]["labels"][there], found[0]["users"][there], np.stack([each["logits"][there] for each in found])


def _interval(lift: Interval) -> str:
    return f"{100 * lift.lift:+.2f} ({100 * lift.low:+.2f}, {100 * lift.high:+.2f})"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
